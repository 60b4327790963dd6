"""Gated units: the product of two linear layers of one input, each with its activation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from blocks import assert_as_plain, assert_fused, assert_same_bits_on_threads, fused
from graphs import is_modified
from numerics import POISONS
from torch import Tensor, nn
from twins import LOSSES, OPTIMIZERS, Twins

import fastmlp
from fastmlp import FusedMLP, Gated, Residual, TrainStep

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "swiglu": nn.SiLU, "glu": nn.Sigmoid, "geglu": nn.GELU, "reglu": nn.ReLU,
    "bilinear": nn.Identity, "tanh": nn.Tanh,
}  # fmt: skip
ACTIVATION = pytest.mark.parametrize("kind", ACTIVATIONS)


def gated(m: int, n: int, kind: str = "swiglu", bias: bool = True) -> Gated:
    first = nn.Sequential(nn.Linear(m, n, bias), ACTIVATIONS[kind]())
    return Gated(first, nn.Linear(m, n, bias))


@ACTIVATION
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 65])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 33, 70])
def test_sizes(isa: str, kind: str, rows: int, n: int) -> None:
    x = torch.randn(rows, 5, dtype=torch.float64)
    assert_fused(fused(gated(5, n, kind, bias=n != 9), nn.Linear(n, 3)), x)


PLACES: dict[str, Callable[[], list[nn.Module]]] = {
    "alone": lambda: [gated(9, 6)],
    "at the end": lambda: [nn.Linear(9, 7), nn.ReLU(), gated(7, 4)],
    "twice": lambda: [gated(9, 6), gated(6, 8, "glu"), gated(8, 4, "bilinear")],
    "of two activations": lambda: [
        Gated(nn.Sequential(nn.Linear(9, 6), nn.GELU()), nn.Sequential(nn.Linear(9, 6), nn.ELU())),
        nn.Linear(6, 3),
    ],
    "the gate second": lambda: [
        Gated(nn.Linear(9, 6), nn.Sequential(nn.Linear(9, 6), nn.SiLU())), nn.Linear(6, 3),
    ],
    "before an activation": lambda: [gated(9, 6), nn.Tanh(), nn.Linear(6, 3)],
    "before dropout": lambda: [gated(9, 6), nn.Dropout(0.4), nn.Linear(6, 3)],
    "after dropout": lambda: [nn.Linear(9, 6), nn.Dropout(0.4), gated(6, 5, "geglu")],
    "among norms": lambda: [
        nn.LayerNorm(9), gated(9, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.RMSNorm(6), gated(6, 4),
        nn.PReLU(), nn.Linear(4, 2), nn.LogSoftmax(-1),
    ],
    "in a block": lambda: [
        Residual(nn.LayerNorm(9), gated(9, 12), nn.Linear(12, 9), nn.Dropout(0.2)),
        Residual(nn.RMSNorm(9), gated(9, 12, "geglu"), nn.Linear(12, 9)), nn.Linear(9, 3),
    ],
    "first in a block": lambda: [
        nn.Linear(9, 6), nn.SiLU(), Residual(gated(6, 12), nn.Linear(12, 6)), nn.Linear(6, 3),
    ],
    "a block of a gate alone": lambda: [Residual(gated(9, 9)), nn.Linear(9, 3)],
    "of one column": lambda: [gated(9, 1), gated(1, 4), gated(4, 1)],
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [6, 1500])
def test_places(isa: str, place: str, training: bool, rows: int) -> None:
    model = fused(*PLACES[place]()).train(training)
    assert_fused(model, torch.randn(rows, 9, dtype=torch.float64))


@pytest.mark.parametrize("frozen", ["first", "second", "before", "pair", "all but pair", "after"])
@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize("rows", [6, 600])
def test_frozen_weights(isa: str, frozen: str, input_gradient: bool, rows: int) -> None:
    model = fused(nn.Linear(9, 7), nn.Tanh(), gated(7, 12), nn.Linear(12, 3))
    before, both, after = model[0], model[2], model[3]
    still = {
        "first": [both.first], "second": [both.second], "before": [before], "pair": [both],
        "all but pair": [before, after], "after": [after],
    }  # fmt: skip
    for module in still[frozen]:
        module.requires_grad_(False)
    x = torch.randn(rows, 9, dtype=torch.float64)
    outcomes = []
    for network in (model, model.as_sequential()):
        leaf = x.clone().requires_grad_(input_gradient)
        wanted = [one for one in (leaf, *network.parameters()) if one.requires_grad]
        y = network(leaf)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-10)
    # The lower half frozen, and nothing below it wants a gradient.
    model = fused(gated(9, 6), nn.Linear(6, 2))
    model[0].first.requires_grad_(False)
    assert_as_plain(model, x)


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("frozen", [(), (0,), (0, 1), (2,), (4,)])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_modified_between_forward_and_backward(
    below: bool, frozen: tuple[int, ...], input_gradient: bool
) -> None:
    """Each tensor in turn is an error where it is one for eager, and makes no difference else."""
    modules = [nn.Linear(9, 9), nn.Tanh()] if below else []
    model = fused(*modules, gated(9, 6, "geglu"), nn.Linear(6, 3))
    parameters = list(model.parameters())
    gate = parameters[2:] if below else parameters
    for place in frozen:
        gate[place].requires_grad_(False)
    x = torch.randn(8, 9, dtype=torch.float64)
    for which in range(-1, len(parameters)):
        outcomes = []
        for network in (model, model.as_sequential()):
            leaf = x.clone().requires_grad_(input_gradient)
            given = leaf * 1
            y = network(given)
            with torch.no_grad():
                modified = given if which < 0 else parameters[which]
                before = modified.clone()
                modified.add_(1)
            wanted = [one for one in (leaf, *parameters) if one.requires_grad]
            try:
                outcomes.append(list(torch.autograd.grad(y.sum(), wanted)))
            except RuntimeError as error:
                outcomes.append([] if is_modified(error) else [x])
            with torch.no_grad():
                modified.copy_(before)
        torch.testing.assert_close(*outcomes)


def test_strided_and_wide_inputs() -> None:
    model = fused(gated(6, 4), nn.Linear(4, 3))
    wide = torch.randn(8, 9, dtype=torch.float64)
    transposed = torch.randn(6, 8, dtype=torch.float64).mT
    for x in (wide[:, :6], wide[::2, 2:8], transposed, wide[:, :6].view(2, 4, 6), wide[0, :6]):
        assert_fused(model, x)


SPARSE = {"dense": 0.0, "sparse": 0.9, "zeros": 1.0}


@pytest.mark.parametrize("zeros", SPARSE)
def test_inputs_of_few_values(isa: str, zeros: str) -> None:
    """The first half may pass over zeros; the second reads the same input."""
    model = fused(gated(400, 64), nn.Linear(64, 5))
    x = torch.rand(50, 400, dtype=torch.float64) * (torch.rand(50, 400) >= SPARSE[zeros])
    assert_fused(model, x.double())
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.as_sequential()(x))


@pytest.mark.parametrize("sizes", [(300, 200), (64, 1030)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_layers(isa: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """Depths of several parts, and sums that go on where the other half's end.

    With u = eps / 2, K terms of a sum are within K u of the magnitudes' sum of it, in either
    network; what follows multiplies errors by the operands' sizes, at most 8 here.
    """
    m, n = sizes
    model = FusedMLP.from_sequential(
        nn.Sequential(gated(m, n, "geglu"), nn.Linear(n, m), gated(m, n)).to(dtype)
    )
    x = torch.randn(130, m, dtype=dtype)
    exact = copy.deepcopy(model).as_sequential().double()
    outcomes = []
    for network, to in ((model, dtype), (exact, torch.float64)):
        leaf = x.detach().to(to).requires_grad_()
        y = network(leaf)
        wanted = [leaf, *network.parameters()]
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    u = torch.finfo(dtype).eps / 2
    for actual, expected in zip(*outcomes, strict=True):
        bound = 8 * (m + n + 130) * u * expected.abs().max()
        assert ((actual.double() - expected).abs() <= bound).all()


@ACTIVATION
@pytest.mark.parametrize("poison", POISONS)
def test_nan_and_infinity(isa: str, kind: str, poison: float) -> None:
    for n in (3, 19):
        model = fused(gated(n, n, kind, bias=False))
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.eye(n))
        x = torch.randn(9, n, dtype=torch.float64)
        x[4, 2] = poison
        outcomes = []
        for network in (model, model.as_sequential()):
            leaf = x.clone().requires_grad_()
            y = network(leaf)
            outcomes.append([y, torch.autograd.grad(y.sum(), leaf)[0]])
        torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12, equal_nan=True)


@ACTIVATION
def test_second_derivatives(kind: str) -> None:
    if kind == "reglu":
        kind = "swiglu"  # whose bend may lie within the differences' step
    model = fused(gated(5, 4, kind), nn.Linear(4, 3), nn.Tanh())
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    given = (x, *model.parameters())
    assert torch.autograd.gradcheck(lambda *all_of: model(all_of[0]), given)
    assert torch.autograd.gradgradcheck(lambda *all_of: model(all_of[0]), given)


@pytest.mark.parametrize("rows", [9, 1500])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_steps(rows: int, optimizer: str, max_grad_norm: float | None) -> None:
    model = fused(
        gated(7, 19), nn.Linear(19, 8), nn.ReLU(), Residual(gated(8, 11), nn.Linear(11, 8)),
        nn.Linear(8, 5),
    )  # fmt: skip
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], model=model, max_grad_norm=max_grad_norm)
    twins.check(4, 1e-8, rows)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two layers": (
        lambda: Gated(nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Linear(9, 6)),
        "two linear layers",
    ),
    "an activation alone": (lambda: Gated(nn.Linear(9, 9), nn.Sigmoid()), "two linear layers"),
    "dropout": (
        lambda: Gated(nn.Sequential(nn.Linear(9, 6), nn.Dropout(0.5)), nn.Linear(9, 6)),
        "two linear layers",
    ),
    "a norm": (
        lambda: Gated(nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6)), nn.Linear(9, 6)),
        "two linear layers",
    ),
    "a gate": (lambda: Gated(gated(9, 6), nn.Linear(9, 6)), "two linear layers"),
    "a gate second": (lambda: Gated(nn.Linear(9, 6), gated(9, 6)), "two linear layers"),
    "a block": (lambda: Gated(Residual(nn.Linear(9, 9)), nn.Linear(9, 9)), "two linear layers"),
    "shapes to broadcast": (lambda: Gated(nn.Linear(9, 6), nn.Linear(9, 1)), "different shapes"),
    "flatten": (
        lambda: Gated(nn.Sequential(nn.Flatten(), nn.Linear(9, 6)), nn.Linear(9, 6)),
        "before all linear layers",
    ),
    "two layers and nothing": (
        lambda: Gated(nn.Identity(), nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))),
        "two linear layers",
    ),
    "nothing": (lambda: Gated(nn.Sequential(), nn.Linear(9, 9)), "two linear layers"),
    "in place on the input": (
        lambda: Gated(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(9, 6)), nn.Linear(9, 6)),
        "in place on its input",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_no_gate_runs_plain(kind: str, training: bool) -> None:
    make, reason = REFUSED[kind]
    width = make()(torch.randn(2, 9)).size(-1)
    model = fused(make(), nn.Linear(width, 3))
    model.train(training)
    x = torch.randn(8, 9, dtype=torch.float64)
    if kind == "dropout" and not training:
        assert_fused(model, x)
        return
    assert reason in str(model.why_plain(x))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    outcomes = []
    for network in (model, compiled, model.as_sequential()):
        torch.manual_seed(3)
        outcomes.append(network(x.clone()))
    torch.testing.assert_close(outcomes[0], outcomes[2])
    torch.testing.assert_close(outcomes[1], outcomes[2])
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))(
            x, torch.zeros(8, 3, dtype=torch.float64)
        )


def test_hooks_are_called() -> None:
    model = fused(gated(9, 6), nn.Linear(6, 3))
    x = torch.randn(8, 9, dtype=torch.float64)
    seen: list[int] = []
    for module in (model[0], model[0].first[0], model[0].second):
        handle = module.register_forward_hook(lambda *_: seen.append(1))
        assert "hook" in str(model.why_plain(x))
        model(x)
        handle.remove()
    assert len(seen) == 3
    assert_fused(model, x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)


class Swi(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.w2(F.silu(self.w1(self.norm(x))) * self.w3(self.norm(x))))


class Shared(Model):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.head(x + self.w2(F.silu(self.w1(h)) * self.w3(h)))


class Bilinear(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.mul(self.w1(x), torch.sigmoid(self.w3(x))) @ self.w2.weight.T)


class ReadTwice(Model):
    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.w1(x))
        return self.head(self.w2(gate * self.w3(x))) + gate.sum()


class Square(Model):
    def forward(self, x: Tensor) -> Tensor:
        y = self.w1(x)
        return self.head(self.w2(y * y))


@pytest.mark.parametrize("kind", [Swi, Shared, Bilinear, ReadTwice, Square])
@pytest.mark.parametrize("training", [True, False])
def test_forwards_are_read(kind: type[Model], training: bool) -> None:
    plain = kind().double().train(training)
    x = torch.randn(9, 6, dtype=torch.float64)
    model = fastmlp.fuse(plain)
    share = fastmlp.explain(model, x).share
    if kind is Shared:
        assert share == 1
    outcomes = []
    for network in (model, plain):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        wanted = [leaf, *(p for p in network.parameters())]
        grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
        outcomes.append([y, *(g for g in grads if g is not None)])
    torch.testing.assert_close(*outcomes)
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["swiglu", "glu"])
def test_compiled(kind: str) -> None:
    model = fused(gated(5, 4, kind), nn.Dropout(0.0), nn.Linear(4, 2))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outcomes = []
    for network in (compiled, model.as_sequential()):
        y = network(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


def test_bits_do_not_hang_on_threads() -> None:
    x = torch.randn(1000, 9)
    for place in PLACES.values():
        model = FusedMLP.from_sequential(nn.Sequential(*place())).eval()
        assert_same_bits_on_threads(model, x)


@pytest.mark.parametrize(
    ("program", "weights", "reason"),
    [
        ([0, 0, 14], [(4, 3)], "not of two linear ops"),
        ([0, 0, 0, 0, 4, 14], [(4, 3), (4, 4)], "not of two linear ops"),
        ([0, 0, 0, 0, 14, 0, 0, 14], [(4, 3), (4, 3), (4, 4)], "not of two linear ops"),
        ([9, 0, 0, 0, 14], [(3,), (3,), (3,), (4, 3)], "not of two linear ops"),
        ([0, 0, 0, 0, 14], [(4, 3), (5, 3)], "as many rows as the weight before it"),
        ([0, 0, 0, 0, 14], [(4, 3), (4, 4)], r"of shape \(out_features, 3\)"),
        ([0, 0, 0, 0, 14, 0, 0, 7, 2], [(4, 3), (4, 3), (3, 4)], "half of a gate"),
    ],
)
def test_programs_that_are_none(program: list[int], weights: list[tuple[int]], reason: str) -> None:
    operands = [torch.randn(shape) for shape in weights]
    constants = [1e-5] if program[0] == 9 else []
    with pytest.raises(RuntimeError, match=reason):
        torch.ops.fastmlp.mlp(torch.randn(2, 3), operands, program, constants)
