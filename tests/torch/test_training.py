"""Trained side by side, the fused and the plain network draw the same loss curve."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from fused import forced
from torch import Tensor, nn

from fastmlp import _C, FusedMLP

SIZES = [20, 40, 30, 5]
STEPS = 80


def dataset(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Five blobs that overlap."""
    labels = torch.randint(5, (256,))
    centres = torch.randn(5, 20, dtype=dtype)
    return centres[labels] + 2 * torch.randn(256, 20, dtype=dtype), labels


def curve(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The loss of each step of SGD with momentum over batches of 32."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for step in range(STEPS):
        batch = slice(32 * step % 256, 32 * step % 256 + 32)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def permuted(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with its hidden units in another order: it differs in rounding only."""
    generator = torch.Generator().manual_seed(seed)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    for before, after in pairwise(linears):
        order = torch.randperm(before.out_features, generator=generator)
        before.weight.data = before.weight.data[order]
        before.bias.data = before.bias.data[order]
        after.weight.data = after.weight.data[:, order]
    return model


def plain(activation: str, dtype: torch.dtype, state: dict[str, Tensor]) -> nn.Sequential:
    model = FusedMLP(SIZES, activation=activation, dtype=dtype)
    model.load_state_dict(state)
    return model.as_sequential()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_curves_coincide(threads: int, dtype: torch.dtype, activation: str) -> None:
    """Apart by no more than a few times what rounding does to the plain network by itself.

    Training amplifies rounding errors by a factor that nobody knows beforehand, so it is measured:
    with plain networks that differ in the order of their sums only. Four times the largest of eight
    deviations is far beyond chance, and far below what a wrong gradient would do.
    """
    torch.set_num_threads(1)
    x, labels = dataset(dtype)
    state = FusedMLP(SIZES, activation=activation, dtype=dtype).state_dict()
    expected = curve(plain(activation, dtype, state), x, labels)
    assert expected[-8:].mean() < expected[:8].mean() / 1.5  # it learned
    others = (permuted(plain(activation, dtype, state), seed) for seed in range(8))
    spread = max(float((curve(other, x, labels) - expected).abs().max()) for other in others)
    assert 0 < spread < 1e4 * STEPS * torch.finfo(dtype).eps  # and is no chaos
    for isa in _C.available_isas():
        model = FusedMLP(SIZES, activation=activation, dtype=dtype)
        model.load_state_dict(state)
        with forced(isa):
            fused = curve(model, x, labels)
        assert float((fused - expected).abs().max()) <= 4 * spread, isa


def test_a_wrong_gradient_shows() -> None:
    """The comparison of curves can fail: one weight's gradient off by a thousandth, and it does."""
    x, labels = dataset(torch.float64)
    model = FusedMLP(SIZES, dtype=torch.float64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = curve(plain("relu", torch.float64, state), x, labels)
    model[2].weight.register_hook(lambda g: g * 1.001)
    off = float((curve(model, x, labels) - expected).abs().max())
    assert off > 1e6 * torch.finfo(torch.float64).eps


def test_it_learns() -> None:
    """A training loop as anybody writes it, to an error that chance would not give."""
    x, labels = dataset(torch.float32)
    model = FusedMLP(SIZES)
    losses = curve(model, x, labels)
    assert math.isfinite(losses[-1])
    with torch.no_grad():
        wrong = (model(x).argmax(1) != labels).float().mean()
    assert wrong < 0.3
