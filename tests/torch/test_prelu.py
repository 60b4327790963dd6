"""PReLU, whose slope is learned: of each feature, or one for all."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from blocks import assert_fused, assert_same_bits_on_threads, fused
from numerics import POISONS
from torch import Tensor, nn
from twins import LOSSES, Twins

import fastmlp
from fastmlp import _C, FusedMLP, Residual, TrainStep

KINDS = pytest.mark.parametrize("shared", [True, False])


def prelu(n: int, shared: bool) -> nn.PReLU:
    module = nn.PReLU() if shared else nn.PReLU(n)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 0.75, module.weight.numel()))
    return module


@KINDS
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 65])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 33, 70])
def test_sizes(isa: str, shared: bool, rows: int, n: int) -> None:
    x = torch.randn(rows, 5, dtype=torch.float64)
    assert_fused(fused(nn.Linear(5, n), prelu(n, shared), nn.Linear(n, 3)), x)


PLACES: dict[str, Callable[[bool], list[nn.Module]]] = {
    "at the front": lambda shared: [prelu(9, shared), nn.Linear(9, 3)],
    "at the end": lambda shared: [nn.Linear(9, 6), prelu(6, shared)],
    "twice": lambda shared: [nn.Linear(9, 6), prelu(6, shared), prelu(6, not shared)],
    "among others": lambda shared: [
        nn.Linear(9, 6), nn.BatchNorm1d(6), prelu(6, shared), nn.Dropout(0.3), nn.Tanh(),
        nn.LayerNorm(6), prelu(6, shared), nn.ReLU(), nn.Linear(6, 3, bias=False),
    ],
    "before dropout": lambda shared: [nn.Linear(9, 6), prelu(6, shared), nn.Dropout(0.3)],
    "in blocks": lambda shared: [
        nn.Linear(9, 6), Residual(prelu(6, shared), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)),
        Residual(nn.Linear(6, 6), prelu(6, shared)), prelu(6, shared),
    ],
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [6, 1500])
def test_places(isa: str, shared: bool, place: str, training: bool, rows: int) -> None:
    model = fused(*PLACES[place](shared)).train(training)
    x = torch.randn(rows, 9, dtype=torch.float64)
    assert_fused(model, x)
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.requires_grad_(False)
    assert_fused(model, x)


@KINDS
def test_strided_and_wide_inputs(shared: bool) -> None:
    model = fused(prelu(6, shared), nn.Linear(6, 4), prelu(4, shared), nn.Dropout(0.0))
    wide = torch.randn(8, 9, dtype=torch.float64)
    for x in (wide[:, :6], wide[::2, 2:8], torch.randn(6, 8, dtype=torch.float64).mT):
        assert_fused(model, x)
    for shape in ((2, 3, 6), (6,)):
        x = torch.randn(shape, dtype=torch.float64)
        if shared:
            assert_fused(model, x)
            continue
        # Of other dimensions than two, torch's weights are of another than the last, or refused.
        assert "two dimensions" in str(model.why_plain(x))
        with pytest.raises(RuntimeError, match="Mismatch of parameter numbers"):
            model(x)


ORDERED: dict[str, tuple[Callable[[], list[nn.Module]], bool]] = {
    "in front": (lambda: [nn.PReLU(), nn.Dropout(0.5), nn.Linear(6, 4)], True),
    "after a block": (
        lambda: [
            Residual(nn.Linear(6, 6)), nn.PReLU(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4),
        ],
        True,
    ),
    "after a layer": (
        lambda: [nn.Linear(6, 6), nn.PReLU(), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.2)], False,
    ),
    "in a block": (
        lambda: [nn.Linear(6, 6), nn.ReLU(), Residual(nn.Dropout(0.5), nn.Linear(6, 6))], False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDERED)
def test_dropout_is_drawn_in_the_order_of_memory(kind: str) -> None:
    make, lies = ORDERED[kind]
    model = fused(*make())
    x = torch.randn(6, 8, dtype=torch.float64).mT
    assert (_C.run_modules(model._modules, x) is None) == lies
    assert lies == ("order of an input" in str(model.why_plain(x)))
    outcomes = []
    for network in (model, model.as_sequential()):
        torch.manual_seed(1)
        outcomes.append(network(x))
    torch.testing.assert_close(*outcomes)


@KINDS
@pytest.mark.parametrize("poison", [*POISONS, 0.0, -0.0])
def test_nan_infinity_and_zero(isa: str, shared: bool, poison: float) -> None:
    for n in (3, 19):
        model = fused(prelu(n, shared), nn.Linear(n, n, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(torch.eye(n))
        x = torch.randn(9, n, dtype=torch.float64)
        x[4, 2] = poison
        outcomes = []
        for network in (model, model.as_sequential()):
            leaf = x.clone().requires_grad_()
            y = network(leaf)
            wanted = [leaf, *network.parameters()]
            outcomes.append([y, *torch.autograd.grad(y[:, :3].sum(), wanted)])
        torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("n", [1, 16, 100])
def test_a_shared_slope_in_float32(isa: str, n: int) -> None:
    """Its gradient is the sum of rows · n products: pairwise over 32 rows and more, in four chains
    of eight below, then likewise over the columns.

    With u = eps / 2, a product is off by u of itself, and each addition adds u of the sum of
    magnitudes: of 300 rows 1 + 8 + 2 + 4, of 100 columns 8 + 2 + 2 of them at most.
    """
    x = torch.randn(300, n)
    model = FusedMLP.from_sequential(nn.Sequential(nn.PReLU(), nn.Linear(n, n, bias=False)))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(n))
    incoming = torch.randn(300, n)
    model(x).backward(incoming)
    terms = [
        Fraction(g) * Fraction(a)
        for g, a in zip(incoming.flatten().tolist(), x.flatten().tolist(), strict=True)
        if a < 0
    ]
    gradient = model[0].weight.grad
    assert gradient is not None
    assert gradient.shape == (1,)
    bound = torch.finfo(torch.float32).eps / 2 * 28 * float(sum(map(abs, terms)))
    assert abs(gradient.item() - float(sum(terms))) <= bound


@KINDS
def test_second_derivatives(shared: bool) -> None:
    model = fused(nn.Linear(5, 4), prelu(4, shared), nn.Linear(4, 3), nn.Tanh())
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: model(given[0]), (x, *model.parameters()))
    assert torch.autograd.gradgradcheck(lambda *given: model(given[0]), (x, *model.parameters()))


@KINDS
@pytest.mark.parametrize("rows", [9, 1500])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_steps(shared: bool, rows: int, max_grad_norm: float | None) -> None:
    model = fused(
        nn.Linear(7, 19), prelu(19, shared), nn.Linear(19, 11), prelu(11, not shared),
        nn.Linear(11, 5),
    )  # fmt: skip
    Twins(LOSSES["ce"], model=model, max_grad_norm=max_grad_norm).check(4, 1e-9, rows)


def test_a_step_of_several_weights_takes_rows() -> None:
    model = fused(nn.Linear(6, 4), prelu(4, False))
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="PReLU of several weights"):
        step(torch.randn(2, 3, 6).double(), torch.randn(2, 3, 4).double())


@pytest.mark.parametrize("weights", [0, 3, 5])
def test_weights_that_do_not_fit(weights: int) -> None:
    model = FusedMLP.from_sequential(nn.Sequential(nn.Linear(6, 4), nn.PReLU(4)))
    model[1].weight = nn.Parameter(torch.ones(weights))
    x = torch.randn(3, 6)
    assert model.why_plain(x) is not None
    for network in (model, model.as_sequential()):
        with pytest.raises(RuntimeError, match="Mismatch of parameter numbers"):
            network(x)
    with pytest.raises(RuntimeError, match=r"weight of a PReLU, 1, of shape \(1\) or \(4\)"):
        torch.ops.fastmlp.mlp(x, [*model.parameters()], [0, 1, 13], [])


@KINDS
def test_compiled(shared: bool) -> None:
    model = fused(nn.Linear(5, 4), prelu(4, shared), nn.Dropout(0.0), nn.Linear(4, 2))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outcomes = []
    for network in (compiled, model.as_sequential()):
        y = network(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@KINDS
def test_fused_models(shared: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(6, 8), prelu(8, shared), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.fc1(x)))

    plain, x = Model(), torch.randn(9, 6)
    model = fastmlp.fuse(plain)
    assert fastmlp.explain(model, x).share == 1
    torch.testing.assert_close(model(x), plain(x))
    assert model.state_dict().keys() == plain.state_dict().keys()


@KINDS
def test_bits_do_not_hang_on_threads(shared: bool) -> None:
    x = torch.randn(1000, 9)
    for place in PLACES.values():
        model = FusedMLP.from_sequential(nn.Sequential(*place(shared))).eval()
        assert_same_bits_on_threads(model, x)
