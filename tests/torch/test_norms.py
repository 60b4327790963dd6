"""LayerNorm and RMSNorm as layers of a network: anywhere in it, forward, backward, in training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from blocks import assert_as_plain, assert_fused, assert_same_bits_on_threads
from layouts import LAYOUTS, Layout
from numerics import POISONS
from torch import nn
from twins import OPTIMIZERS, Twins

from fastmlp import FusedMLP

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
NORM = pytest.mark.parametrize("kind", NORMS)


def filled(model: nn.Module) -> nn.Module:
    """With norms whose weights and biases are no ones and zeros."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0.5)
    return model


def fused(*modules: nn.Module) -> FusedMLP:
    return FusedMLP.from_sequential(filled(nn.Sequential(*modules)).double())


def usual(kind: str, n: int) -> FusedMLP:
    norm = NORMS[kind]
    return fused(
        nn.Linear(5, n), norm(n), nn.SiLU(), nn.Linear(n, n), norm(n), nn.Tanh(), nn.Linear(n, 3)
    )


@NORM
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 65])
@pytest.mark.parametrize("n", [2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70])
def test_sizes(isa: str, kind: str, rows: int, n: int) -> None:
    assert_fused(usual(kind, n), torch.randn(rows, 5, dtype=torch.float64))


PLACES: dict[str, Callable[[type[nn.Module]], list[nn.Module]]] = {
    "front": lambda norm: [norm(9), nn.Linear(9, 4)],
    "end": lambda norm: [nn.Linear(9, 4), norm(4)],
    "before the activation": lambda norm: [nn.Linear(9, 4), norm(4), nn.ReLU(), nn.Linear(4, 2)],
    "after the activation": lambda norm: [nn.Linear(9, 4), nn.ReLU(), norm(4), nn.Linear(4, 2)],
    "two in a row": lambda norm: [nn.Linear(9, 4), norm(4), norm(4), nn.GELU(), nn.Linear(4, 2)],
    "with an activation in front": lambda norm: [norm(9), nn.Tanh(), nn.Linear(9, 2)],
    "before dropout": lambda norm: [nn.Linear(9, 4), norm(4), nn.Dropout(0.3), nn.Linear(4, 2)],
    "everywhere": lambda norm: [
        norm(9), nn.Linear(9, 4), norm(4), nn.ReLU(), nn.Dropout(0.2), norm(4), nn.Linear(4, 6),
        norm(6), nn.Sigmoid(),
    ],
}  # fmt: skip


@NORM
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("frozen", ["none", "norm's weights", "norms", "linear layers", "lower"])
def test_places(kind: str, place: str, frozen: str) -> None:
    model = fused(*PLACES[place](NORMS[kind]))
    modules = list(model)
    for i, module in enumerate(modules):
        is_norm = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        if frozen == "norm's weights" and is_norm:
            module.weight.requires_grad_(False)
        elif frozen == "lower":
            module.requires_grad_(i >= len(modules) // 2)
        elif frozen != "none":
            module.requires_grad_(is_norm != (frozen == "norms"))
    x = torch.randn(11, 9, dtype=torch.float64)
    assert_fused(model, x)
    if any(p.requires_grad for p in model.parameters()):
        outcomes = []
        for network in (model, model.as_sequential()):  # an input that wants no gradient
            torch.manual_seed(3)
            wanted = [p for p in model.parameters() if p.requires_grad]
            outcomes.append(torch.autograd.grad(network(x).square().sum(), wanted))
        torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@NORM
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(kind: str, layout: str) -> None:
    place: Layout = LAYOUTS[layout]
    norm = NORMS[kind]
    model = fused(norm(9), nn.Linear(9, 6), norm(6), nn.ELU())
    for module in model:
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(place(parameter.detach())))
    assert_fused(model, place(torch.randn(7, 9, dtype=torch.float64)))


VARIANTS: dict[str, tuple[nn.Module, bool]] = {
    "no bias": (nn.LayerNorm(6, bias=False), True),
    "a large eps": (nn.LayerNorm(6, eps=0.5), True),
    "a given eps": (nn.RMSNorm(6, eps=1e-3), True),
    "a whole eps": (nn.LayerNorm(6, eps=1), True),
    "no weight": (nn.LayerNorm(6, elementwise_affine=False), True),
    "no weight of RMSNorm": (nn.RMSNorm(6, eps=1e-6, elementwise_affine=False), True),
    "neither weight nor eps": (nn.RMSNorm(6, elementwise_affine=False), False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    module, is_fused = VARIANTS[variant]
    model, x = fused(nn.Linear(4, 6), module, nn.ReLU()), torch.randn(5, 4, dtype=torch.float64)
    if is_fused:
        assert_fused(model, x)
    else:
        assert "without a weight and without an eps" in str(model.why_plain(x))
        assert_as_plain(model, x)


def test_over_several_dimensions_is_plain() -> None:
    model, x = fused(nn.Linear(4, 6), nn.LayerNorm((3, 6))), torch.randn(2, 3, 4).double()
    assert "several dimensions" in str(model.why_plain(x))
    torch.testing.assert_close(model(x), model.as_sequential()(x))


def test_of_another_width_raises_as_torch() -> None:
    model, x = fused(nn.Linear(4, 6), nn.LayerNorm(5)), torch.randn(2, 4).double()
    with pytest.raises(RuntimeError, match="norm"):
        model(x)
    with pytest.raises(RuntimeError, match="norm"):
        model.as_sequential()(x)


@NORM
@pytest.mark.parametrize("poison", POISONS)
def test_nan_and_infinity(isa: str, kind: str, poison: float) -> None:
    """Of one row, they stay in it."""
    model, x = usual(kind, 19), torch.randn(9, 5, dtype=torch.float64)
    x[4, 2] = poison
    outcomes = []
    for network in (model, model.as_sequential()):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        outcomes.append([y, *torch.autograd.grad(y.sum(), [leaf, *model.parameters()])])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12, equal_nan=True)


@NORM
@pytest.mark.parametrize("n", [3, 64, 1000])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_float32_is_as_accurate_as_arithmetic_allows(
    isa: str, kind: str, n: int, shift: float
) -> None:
    """The bounds of a sum of n terms in any order, carried through the formula (Higham 2002, 3.5).

    With u = eps / 2, gamma = (n + 8) u, m the mean and d = x - m, which are exact for RMSNorm:

        Δd = gamma mean|x| + u |d|
        Δv = gamma v + 2 mean(|d| Δd) + mean(Δd²)            v: mean of d², and eps
        Δz = |w| (Δd s + |d| s Δv / (2 v) + 6 u |d| s) + u |z|   s = 1 / sqrt(v + eps)
    """
    norm = NORMS[kind](n)
    nn.init.normal_(norm.weight)
    model = FusedMLP.from_sequential(nn.Sequential(norm, nn.Linear(n, 1)))
    with torch.no_grad():  # each feature in turn
        picked = min(n, 5)
        model[1] = nn.Linear(n, picked, bias=False)
        model[1].weight.copy_(torch.eye(picked, n))
    x = torch.randn(40, n) + shift
    with torch.no_grad():
        z = model(x).double()
    eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
    wide = x.double()
    u = torch.finfo(torch.float32).eps / 2
    gamma = (n + 8) * u / (1 - (n + 8) * u)
    d = wide - wide.mean(1, keepdim=True) if kind == "layer" else wide
    off_d = gamma * wide.abs().mean(1, keepdim=True) + u * d.abs() if kind == "layer" else 0 * d
    v = d.square().mean(1, keepdim=True) + eps
    off_v = gamma * v + 2 * (d.abs() * off_d).mean(1, keepdim=True)
    off_v = off_v + off_d.square().mean(1, keepdim=True)
    s, w = v.rsqrt(), norm.weight.detach().double().abs()
    exact = d * s * norm.weight.detach().double()
    if kind == "layer":
        exact = exact + norm.bias.detach().double()
    bound = w * s * (off_d + d.abs() * off_v / (2 * v) + 6 * u * d.abs()) + 3 * u * exact.abs()
    assert ((z - exact[:, :picked]).abs() <= bound[:, :picked]).all()


@NORM
def test_bits_do_not_hang_on_threads(kind: str) -> None:
    x = torch.randn(1000, 5)
    for n in (40, 300):
        assert_same_bits_on_threads(usual(kind, n).float(), x)


@NORM
def test_second_derivatives(kind: str) -> None:
    model = usual(kind, 4)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


@NORM
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("rows", [9, 1000])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_steps(kind: str, optimizer: str, rows: int, clip: float | None) -> None:
    norm = NORMS[kind]
    model = fused(norm(7), nn.Linear(7, 19), norm(19), nn.GELU(), nn.Dropout(0.2), nn.Linear(19, 5))
    twins = Twins(make_optimizer=OPTIMIZERS[optimizer], model=model, max_grad_norm=clip)
    twins.check(4, 1e-9, rows)


@pytest.mark.parametrize("kind", [*NORMS, "batch"])
def test_by_name(kind: str) -> None:
    model = FusedMLP([7, 9, 9, 3], activation="silu", dropout=0.1, norm=kind, residual=True)
    norm = {**NORMS, "batch": nn.BatchNorm1d}[kind]
    assert [type(m) for m in model.modules() if isinstance(m, (nn.Linear, norm))] == [
        nn.Linear, norm, nn.Linear, norm, nn.Linear,
    ]  # fmt: skip
    first, hidden = [type(m) for m in model[:4]], [type(m) for m in model[4]]
    assert first == hidden == [nn.Linear, norm, nn.SiLU, nn.Dropout]
    x = torch.randn(5, 7)
    assert model.why_plain(x) is None
    torch.manual_seed(1)
    y = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, copy.deepcopy(model).as_sequential()(x))
    with pytest.raises(ValueError, match="expected a norm of 'layer', 'rms', 'batch' or None"):
        FusedMLP([3, 2], norm="group")


@NORM
def test_compiled(kind: str) -> None:
    model, x = usual(kind, 8), torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outcomes = []
    for network in (compiled, model.as_sequential()):
        y = network(x)
        outcomes.append([y, *torch.autograd.grad(y.sum(), [x, *model.parameters()])])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)
