"""Layers without a weight: softmaxes, and what stands where its layer has its own already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from blocks import assert_as_plain, assert_fused, assert_same_bits_on_threads, fused
from numerics import POISONS
from torch import nn
from twins import LOSSES, Twins

import fastmlp
from fastmlp import _C, FusedMLP, Residual, TrainStep

SOFTMAXES = {
    "softmax": lambda: nn.Softmax(-1),
    "softmax over dimension 1": lambda: nn.Softmax(1),
    "log_softmax": lambda: nn.LogSoftmax(-1),
    "log_softmax over dimension 1": lambda: nn.LogSoftmax(1),
}
SOFTMAX = pytest.mark.parametrize("kind", SOFTMAXES)


@SOFTMAX
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 65])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 33, 70])
def test_sizes(isa: str, kind: str, rows: int, n: int) -> None:
    x = torch.randn(rows, 5, dtype=torch.float64)
    assert_fused(fused(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, n), SOFTMAXES[kind]()), x)


PLACES: dict[str, Callable[[], list[nn.Module]]] = {
    "a softmax in the middle": lambda: [
        nn.Linear(9, 6), nn.Softmax(-1), nn.Tanh(), nn.Linear(6, 3),
    ],
    "a softmax at the front": lambda: [nn.Softmax(-1), nn.Linear(9, 3)],
    "a softmax before dropout": lambda: [nn.Linear(9, 6), nn.LogSoftmax(-1), nn.Dropout(0.4)],
    "two activations": lambda: [nn.Linear(9, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 3)],
    "three activations": lambda: [nn.Linear(9, 6), nn.SiLU(), nn.Tanh(), nn.ELU()],
    "an activation at the front": lambda: [nn.GELU(), nn.Linear(9, 3)],
    "dropout at the front": lambda: [nn.Dropout(0.3), nn.Linear(9, 3), nn.ReLU()],
    "dropout before the activation": lambda: [
        nn.Linear(9, 6), nn.Dropout(0.4), nn.Sigmoid(), nn.Linear(6, 3),
    ],
    "dropout twice": lambda: [nn.Linear(9, 6), nn.Dropout(0.2), nn.Dropout(0.3)],
    "an activation after a block": lambda: [
        Residual(nn.Linear(9, 9), nn.SiLU()), nn.ReLU(), nn.Linear(9, 3),
    ],
    "a block that begins with one": lambda: [
        nn.Linear(9, 6), Residual(nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)),
        Residual(nn.Dropout(0.2), nn.Linear(6, 6), nn.Dropout(0.1), nn.Tanh(), nn.ReLU()),
    ],
    "of one column": lambda: [
        nn.Linear(9, 1), nn.Dropout(0.4), nn.Tanh(), nn.SiLU(), nn.Linear(1, 3), nn.Softmax(1),
    ],
    "a norm without a weight": lambda: [
        nn.LayerNorm(9, elementwise_affine=False), nn.Linear(9, 6),
        nn.RMSNorm(6, elementwise_affine=False, eps=1e-6), nn.ReLU(), nn.Linear(6, 3),
    ],
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [6, 1500])
def test_places(isa: str, place: str, training: bool, rows: int) -> None:
    model = fused(*PLACES[place]()).train(training)
    assert_fused(model, torch.randn(rows, 9, dtype=torch.float64))
    model[0].requires_grad_(False)
    if len(list(model.parameters())) > len(list(model[0].parameters())):
        assert_as_plain(model, torch.randn(rows, 9, dtype=torch.float64))


ORDERED: dict[str, Callable[[], list[nn.Module]]] = {
    "dropout": lambda: [nn.Dropout(0.5), nn.Linear(6, 4), nn.ReLU()],
    "tanh, dropout": lambda: [nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4)],
    "block, dropout": lambda: [
        Residual(nn.Linear(6, 6), nn.ReLU()), nn.Dropout(0.5), nn.Linear(6, 4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDERED)
def test_dropout_is_drawn_in_the_order_of_memory(kind: str) -> None:
    """torch's is, and a transposed input lies in another than rows do."""
    model = fused(*ORDERED[kind]())
    x = torch.randn(8, 6, dtype=torch.float64)
    assert_fused(model, x)
    wide = torch.randn(8, 9, dtype=torch.float64)
    for other in (x.mT.contiguous().mT, wide[:, :6], x[::2], x[:1].expand(8, 6)):
        outcomes = []
        fuses = _C.run_modules(model._modules, other) is not None
        assert (model.why_plain(other) is None) == fuses
        for network in (model, fastmlp.fuse(model.as_sequential()), model.as_sequential()):
            torch.manual_seed(1)
            outcomes.append(network(other))
        torch.testing.assert_close(outcomes[0], outcomes[2])
        torch.testing.assert_close(outcomes[1], outcomes[2])
    assert "order of an input" in str(model.why_plain(x.mT.contiguous().mT))
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="contiguous input for dropout"):
        step(x.mT.contiguous().mT, torch.zeros(8, 4, dtype=torch.float64))


IN_PLACE: dict[str, Callable[[], list[nn.Module]]] = {
    "in front": lambda: [nn.ELU(inplace=True), nn.Linear(6, 4), nn.ReLU()],
    "in front, after an identity": lambda: [
        nn.Identity(), nn.Dropout(0.0), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.ReLU(),
    ],
    "first in a block": lambda: [
        nn.Linear(6, 6), Residual(nn.ELU(inplace=True), nn.Linear(6, 6)), nn.Linear(6, 4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_PLACE)
def test_in_place_on_what_others_read(kind: str) -> None:
    model = fused(*IN_PLACE[kind]())
    x = torch.randn(8, 6, dtype=torch.float64)
    assert "in place on its input" in str(model.why_plain(x))
    outcomes = []
    for network in (model, fastmlp.fuse(model.as_sequential()), model.as_sequential()):
        given = x.clone()
        outcomes.append([network(given), given])
    torch.testing.assert_close(outcomes[0], outcomes[2])
    torch.testing.assert_close(outcomes[1], outcomes[2])


def test_in_place_on_a_layers_own_output_is_fused() -> None:
    model = fused(
        nn.Linear(6, 6), nn.SiLU(), nn.ReLU(inplace=True), nn.Linear(6, 6),
        Residual(nn.Linear(6, 6), nn.ELU(inplace=True)), nn.ReLU(inplace=True), nn.Linear(6, 2),
    )  # fmt: skip
    assert_fused(model, torch.randn(8, 6, dtype=torch.float64))


def test_over_another_dimension() -> None:
    """Of three, dimension 1 is not the last: torch's own module runs then."""
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    model = fused(nn.Linear(5, 3), nn.Softmax(1))
    assert "two dimensions" in str(model.why_plain(x))
    torch.testing.assert_close(model(x), model.as_sequential()(x))
    assert_fused(model, x[0])
    model = fused(nn.Linear(5, 3), nn.Softmax(-1))
    assert_fused(model, x)
    model = fused(nn.Linear(5, 3), nn.Softmax(0))
    assert "over dimension 0" in str(model.why_plain(x))
    torch.testing.assert_close(model(x), model.as_sequential()(x))
    for bad in (nn.Softmax(), nn.Softmax(2)):
        assert "over dimension" in str(fused(nn.Linear(5, 3), bad).why_plain(x[0]))


@SOFTMAX
@pytest.mark.parametrize("poison", POISONS)
def test_nan_and_infinity(isa: str, kind: str, poison: float) -> None:
    for n in (3, 19):
        model = fused(SOFTMAXES[kind](), nn.Linear(n, n, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(torch.eye(n))
        x = torch.randn(9, n, dtype=torch.float64)
        x[4, 2] = poison
        outcomes = []
        for network in (model, model.as_sequential()):
            leaf = x.clone().requires_grad_()
            y = network(leaf)
            outcomes.append([y, torch.autograd.grad(y[:, :2].sum(), leaf)[0]])
        torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("n", [2, 10, 100])
@pytest.mark.parametrize("log", [True, False])
def test_float32(isa: str, n: int, log: bool) -> None:
    """p = e / sum of e, each exponential right to a few roundings of its argument |x - max|.

    With u = eps / 2: relatively, an exponential is off by u (|x - max| + 4), the sum of n positive
    ones by n u more, so p by u (2 spread + n + 12); the logarithm by that of the sum absolutely,
    and by the roundings of x - max and of the result.
    """
    model = FusedMLP.from_sequential(
        nn.Sequential(nn.LogSoftmax(-1) if log else nn.Softmax(-1), nn.Linear(n, n, bias=False))
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(n))
        x = 5 * torch.randn(64, n)
        y = model(x).double()
    wide, u = x.double(), torch.finfo(torch.float32).eps / 2
    spread = wide.amax(1, keepdim=True) - wide.amin(1, keepdim=True)
    exact = wide.log_softmax(-1) if log else wide.softmax(-1)
    bound = u * (2 * spread + n + 12) * (1 if log else exact)
    assert ((y - exact).abs() <= bound).all()


@SOFTMAX
def test_second_derivatives(kind: str) -> None:
    model = fused(nn.Linear(5, 4), nn.Tanh(), nn.SiLU(), nn.Linear(4, 3), SOFTMAXES[kind]())
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


@pytest.mark.parametrize("rows", [9, 1500])
def test_steps(rows: int) -> None:
    model = fused(
        nn.Dropout(0.1), nn.Linear(7, 19), nn.Dropout(0.2), nn.GELU(), nn.Tanh(),
        nn.Linear(19, 5), nn.LogSoftmax(1),
    )  # fmt: skip
    Twins(LOSSES["nll"], model=model).check(4, 1e-9, rows)


@pytest.mark.parametrize("dim", [1, -1])
def test_compiled(dim: int) -> None:
    model = fused(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.0), nn.Tanh(), nn.LogSoftmax(dim))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outcomes = []
    for network in (compiled, model.as_sequential()):
        y = network(x)
        grads = torch.autograd.grad(F.nll_loss(y, torch.arange(6) % 4), [x, *model.parameters()])
        outcomes.append([y, *grads])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)
    wide = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(compiled(wide), model.as_sequential()(wide))


def test_bits_do_not_hang_on_threads() -> None:
    x = torch.randn(1000, 9)
    for place in PLACES.values():
        model = FusedMLP.from_sequential(nn.Sequential(*place())).eval()
        assert_same_bits_on_threads(model, x)
