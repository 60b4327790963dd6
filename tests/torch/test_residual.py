"""Residual blocks: x + f(x), alone, in a FusedMLP, cut in two, compiled, in training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import assert_as_plain, assert_fused, hooked, with_its_own_forward
from layouts import LAYOUTS, Layout
from numerics import POISONS, kinds
from reference import ACTIVATIONS
from sparse_twins import SIZES as SPARSE_SIZES
from sparse_twins import SparseTwins
from torch import Tensor, nn
from torch.optim import SGD
from travels import through_pickle, through_save
from twins import LOSSES, OPTIMIZERS, SMOOTH, Twins, float32_bound, plain_step

from fastmlp import _C, FusedLinear, FusedMLP, Residual, TrainStep

SIZES = [12, 9, 9, 9, 5]


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    """Unless a test sets more."""
    torch.set_num_threads(1)


def linear(m: int = 9, n: int = 9, bias: bool = True) -> nn.Linear:
    return nn.Linear(m, n, bias)


# The module alone ---------------------------------------------------------------------------------


def test_adds_its_input() -> None:
    inner = linear()
    block, x = Residual(inner, nn.Tanh()), torch.randn(4, 9, requires_grad=True)
    assert isinstance(block, nn.Sequential)
    expected = x + torch.tanh(inner(x))
    assert torch.equal(block(x), expected)
    grads = [
        torch.autograd.grad(y.sum(), [x, inner.weight, inner.bias], retain_graph=True)
        for y in (block(x), expected)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert list(block.state_dict()) == ["0.weight", "0.bias"]
    assert repr(block).startswith("Residual(\n  (0): Linear(")
    named = Residual(OrderedDict(layer=linear(), act=nn.ReLU()))
    assert list(named.state_dict()) == ["layer.weight", "layer.bias"]
    assert torch.equal(Residual()(x), 2 * x)  # of nothing: the identity
    deep = Residual(linear(9, 30), nn.GELU(), nn.LayerNorm(30), linear(30, 9))
    assert torch.equal(deep(x), x + nn.Sequential(*deep)(x))


@pytest.mark.parametrize(("features", "shape"), [(5, (4, 9)), (1, (4, 9)), (1, (9,)), (18, (2, 9))])
def test_a_changed_shape_is_an_error(features: int, shape: tuple[int, ...]) -> None:
    """Where torch would broadcast, too."""
    block, x = Residual(linear(9, features)), torch.randn(shape)
    given = (*shape[:-1], features)
    for network in (block, nn.Sequential(block), FusedMLP.from_sequential(nn.Sequential(block))):
        with pytest.raises(RuntimeError) as caught:
            network(x)
        assert str(shape) in str(caught.value)
        assert str(given) in str(caught.value)


# In a FusedMLP ------------------------------------------------------------------------------------


def test_what_is_made() -> None:
    """Hidden layers as wide as what comes before them; never the last."""
    model = FusedMLP([6, 6, 4, 4, 4], residual=True, dropout=0.1, output_activation="tanh")
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Residual", "Linear", "ReLU", "Dropout", "Residual", "Linear", "Tanh"]
    assert [type(m).__name__ for m in model[0]] == ["Linear", "ReLU", "Dropout"]
    assert list(model.state_dict()) == [
        f"{i}.{n}" for i in ("0.0", "1", "4.0", "5") for n in ("weight", "bias")
    ]
    plain = FusedMLP([6, 4, 4], residual=True, activation=None, bias=False)
    assert [type(module).__name__ for module in plain] == ["Linear", "Linear"]
    assert "(0): Residual(\n    (0): Linear" in repr(FusedMLP([6, 6, 6], residual=True))
    assert not any(isinstance(m, Residual) for m in FusedMLP([6, 6, 6]))
    torch.manual_seed(2)
    first = [p.detach() for p in FusedMLP([6, 6, 6, 3], residual=True, dropout=0.3).parameters()]
    torch.manual_seed(2)
    second = FusedMLP([6, 6, 6, 3]).parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("bias", [True, False])
def test_as_the_plain_network(isa: str, activation: str | None, bias: bool) -> None:
    for sizes in (SIZES, [9, 9, 5], [9] * 6, [3, 1, 1, 1, 2], [1, 1, 1]):
        model = FusedMLP(
            sizes, activation=activation, bias=bias, residual=True, dtype=torch.float64
        )
        for shape in ((4,), (1,), (), (2, 3), (0,)):
            assert_fused(model, torch.randn(*shape, sizes[0], dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("features", [9, 1])
def test_input_layouts(isa: str, layout: Layout, features: int) -> None:
    model = FusedMLP([features] * 3, activation="tanh", residual=True, dtype=torch.float64)
    block = FusedMLP.from_sequential(nn.Sequential(model[0]))
    for shape in ((6, features), (2, 3, features)):
        x = layout(torch.randn(shape, dtype=torch.float64))
        for network in (model, block):
            outcomes = []
            for one in (network, network.as_sequential()):
                leaf = x.detach().requires_grad_()
                y = one(leaf)
                grads = torch.autograd.grad(y.square().sum(), [leaf, *one.parameters()])
                outcomes.append([y.detach(), *grads])
            torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


# The modules, and what why_plain tells; None: they run fused.
ARRANGEMENTS: dict[str, tuple[Callable[[], list[nn.Module]], str | None]] = {
    "alone": (lambda: [Residual(linear(), nn.ReLU())], None),
    "a sum alone": (lambda: [Residual(linear())], None),
    "first": (lambda: [Residual(linear(), nn.GELU()), linear()], None),
    "last": (lambda: [linear(), nn.ReLU(), Residual(linear(), nn.ReLU())], None),
    "last sum": (lambda: [linear(), nn.ReLU(), Residual(linear())], None),
    "in the middle": (lambda: [linear(), Residual(linear(), nn.ReLU()), linear()], None),
    "consecutive": (lambda: [Residual(linear(), nn.SiLU()) for _ in range(5)], None),
    "with an identity": (lambda: [Residual(nn.Identity(), linear(), nn.Identity())], None),
    "without bias": (lambda: [Residual(linear(bias=False), nn.ELU())], None),
    "of one feature": (lambda: [linear(9, 1), Residual(linear(1, 1), nn.ReLU())], None),
    "dropout off": (lambda: [Residual(linear(), nn.ReLU(), nn.Dropout(0.0))], None),
    "before an identity": (lambda: [Residual(linear()), nn.Identity(), linear()], None),
    "other slopes": (lambda: [Residual(linear(), nn.LeakyReLU(0.3)), Residual(linear())], None),
    "two layers around one feature": (
        lambda: [linear(9, 1), Residual(linear(1, 9), linear(9, 1)), linear(1, 3)], None,
    ),
    "two layers": (lambda: [Residual(linear(), nn.ReLU(), linear())], None),
    "wide inside": (lambda: [Residual(linear(9, 30), nn.GELU(), linear(30, 9)), linear()], None),
    "several": (
        lambda: [
            linear(), *(Residual(linear(9, 20), nn.SiLU(), linear(20, 9)) for _ in range(3)),
            nn.LayerNorm(9),
        ],
        None,
    ),
    "of several spans": (
        lambda: [
            Residual(linear(9, 4), linear(4, 5), nn.ReLU(), linear(5, 9), nn.Tanh()),
            Residual(linear()), linear(), Residual(linear(9, 2), linear(2, 9)), Residual(linear()),
        ],
        None,
    ),
    "with dropout inside": (
        lambda: [
            linear(), Residual(linear(9, 20), nn.ReLU(), nn.Dropout(0.3), linear(20, 9)),
            Residual(linear(), nn.Dropout(0.4), linear(), nn.Dropout(0.4)), linear(),
        ],
        None,
    ),
    "norm": (lambda: [Residual(nn.LayerNorm(9), linear(), nn.ReLU())], None),
    "norm before two layers": (
        lambda: [
            Residual(nn.LayerNorm(9), linear(9, 20), nn.ReLU(), linear(20, 9)) for _ in range(3)
        ],
        None,
    ),
    "norm at the end": (
        lambda: [Residual(linear(9, 5), nn.ReLU(), linear(5, 9), nn.RMSNorm(9)), linear()], None,
    ),
    "a norm alone": (lambda: [linear(), Residual(nn.LayerNorm(9))], "no linear layer"),
    "two blocks in one": (
        lambda: [Residual(Residual(linear()), Residual(linear()))], "another block",
    ),
    "nested": (lambda: [Residual(Residual(linear(), nn.ReLU()))], ""),
    "nested sequential": (lambda: [Residual(nn.Sequential(linear(), nn.ReLU()))], None),
    "nested fused": (lambda: [Residual(FusedMLP([9, 9]), nn.ReLU())], None),
    "fused linear": (lambda: [Residual(FusedLinear(9, 9))], None),
    "empty": (lambda: [linear(), Residual(), linear()], "no linear layer"),
    "an activation alone": (lambda: [linear(), Residual(nn.Tanh())], "no linear layer"),
    "activation outside": (lambda: [Residual(linear()), nn.ReLU(), linear()], None),
    "activation before": (lambda: [linear(), Residual(nn.ReLU(), linear())], None),
    "hook": (lambda: [hooked(Residual(linear(), nn.ReLU())), linear()], "has a hook"),
    "hook inside": (lambda: [Residual(linear(), hooked(nn.ReLU())), linear()], "has a hook"),
    "its own forward": (
        lambda: [Residual(linear(), with_its_own_forward(nn.ReLU())), linear()], "of its own",
    ),
    "subclass": (lambda: [type("Mine", (Residual,), {})(linear()), linear()], "not fused"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangements(name: str) -> None:
    """Fused or plain, and the plain Sequential's numbers in each case."""
    make, reason = ARRANGEMENTS[name]
    model = FusedMLP.from_sequential(nn.Sequential(*make()).double())
    x = torch.randn(6, 9, dtype=torch.float64)
    if reason is None:
        assert_fused(model, x)
        return
    assert reason in (model.why_plain(x) or "fused")
    assert _C.run_modules(model._modules, x) is None
    assert_as_plain(model, x)


def test_edits_after_use() -> None:
    model, x = FusedMLP(SIZES, residual=True).double(), torch.randn(6, 12).double()
    first = assert_fused(model, x)
    block = model[2]
    assert isinstance(block, Residual)
    edits: list[tuple[Callable[[], object], bool]] = [
        (lambda: block.__setitem__(1, nn.Tanh()), True),
        (lambda: block.append(nn.Dropout(0.5)), True),
        (lambda: block.eval(), True),
        (lambda: block.append(nn.Linear(9, 9).double()), True),
        (lambda: block.append(Residual(nn.Linear(9, 9).double())), False),
        (lambda: block.pop(-1), True),
        (lambda: block.pop(-1), True),
        (lambda: model.__setitem__(2, nn.Linear(9, 9).double()), True),
        (lambda: model.insert(3, Residual(nn.Linear(9, 9).double(), nn.ReLU())), True),
    ]
    for number, (edit, fused) in enumerate(edits):
        edit()
        assert (model.why_plain(x) is None) == fused, number
        y = (assert_fused if fused else assert_as_plain)(model, x)
        assert not torch.equal(y, first) or number == 6
        first = y


def test_frozen() -> None:
    """Any of the weights and biases, and the input with and without a gradient."""
    model = FusedMLP([9, 9, 9, 5], activation="gelu", residual=True, dtype=torch.float64)
    parameters = list(model.parameters())
    for number in range(2 ** len(parameters)):
        for index, p in enumerate(parameters):
            p.requires_grad_(bool(number >> index & 1))
        for needed in (False, True):
            x = torch.randn(4, 9, dtype=torch.float64, requires_grad=needed)
            given = [t for t in (x, *parameters) if t.requires_grad]
            if not given:
                continue
            outcomes = [
                torch.autograd.grad(network(x).square().sum(), given)
                for network in (model, model.as_sequential())
            ]
            torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", None])
def test_poison_passes_through(
    isa: str, dtype: torch.dtype, poison: float, activation: str | None
) -> None:
    """NaN and inf come out where they do in torch, forward and backward."""
    model = FusedMLP([32] * 4, activation=activation, residual=True, dtype=dtype)
    for place in ("x", "weight", "gradient"):
        x, g = torch.randn(2, 32, 32, dtype=dtype)
        network = copy.deepcopy(model)
        if place == "weight":
            network[1][0].weight.data[3, 5] = poison
        else:
            (x if place == "x" else g)[7, 11] = poison
        x.requires_grad_()
        outcomes = []
        for one in (network, network.as_sequential()):
            y = one(x)
            outcomes.append([y, *torch.autograd.grad(y, [x, *network.parameters()], g)])
        for index, (a, b) in enumerate(zip(*outcomes, strict=True)):
            assert torch.equal(kinds(a), kinds(b)), (place, index)
        assert any(kinds(t).any() for t in outcomes[0])


def test_a_lost_unit_keeps_its_input(isa: str, dtype: torch.dtype) -> None:
    """Under relu, a unit that is off hands on what came in, bit for bit, and its gradient."""
    model = FusedMLP([33, 33, 33], residual=True, dtype=dtype)[:1]
    with torch.no_grad():
        model[0][0].bias.fill_(-1000)
    x = torch.randn(9, 33, dtype=dtype, requires_grad=True)
    y = model(x)
    assert torch.equal(y, x)
    g = torch.randn_like(y)
    y.backward(g)
    assert x.grad is not None
    assert torch.equal(x.grad, g)


# Copies and conversions ---------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_save])
def test_copies(duplicate: Callable[[FusedMLP], FusedMLP]) -> None:
    model = FusedMLP(SIZES, residual=True, dtype=torch.float64)
    x = torch.randn(4, 12, dtype=torch.float64)
    model(x).sum().backward()
    other = duplicate(model)
    assert repr(other) == repr(model)
    before = assert_fused(other, x)
    assert torch.equal(before, model(x))
    with torch.no_grad():
        other[2][0].weight.add_(1)
    assert torch.equal(before, model(x))
    assert not torch.equal(before, other(x))


def test_as_and_from_sequential() -> None:
    model = FusedMLP(SIZES, residual=True, dropout=0.2, dtype=torch.float64)
    x = torch.randn(4, 12, dtype=torch.float64)
    plain = model.as_sequential()
    assert type(plain) is nn.Sequential
    assert list(plain.state_dict()) == list(model.state_dict())
    assert repr(plain).split("\n")[1:] == repr(model).split("\n")[1:]
    back = FusedMLP.from_sequential(plain)
    assert all(a is b for a, b in zip(back, model, strict=True))
    assert torch.equal(assert_fused(back, x), assert_fused(model, x))
    other = FusedMLP(SIZES, residual=True, dropout=0.2, dtype=torch.float64)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(assert_fused(other, x), assert_fused(model, x))
    with pytest.raises(RuntimeError, match="Missing key"):
        FusedMLP(SIZES).double().load_state_dict(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_run_plain(dtype: torch.dtype) -> None:
    model, x = FusedMLP(SIZES, residual=True).to(dtype), torch.randn(4, 12, dtype=dtype)
    assert model.why_plain(x) is not None
    assert torch.equal(model(x), model.as_sequential()(x))
    model = model.float()
    with torch.autocast("cpu", dtype):
        assert model(x.float()).dtype == model.as_sequential()(x.float()).dtype
    meta = FusedMLP(SIZES, residual=True, dropout=0.5, device="meta")
    assert meta(torch.empty(4, 12, device="meta")).shape == (4, 5)


def test_functional_transforms() -> None:
    model = FusedMLP(SIZES, residual=True, activation="tanh", dtype=torch.float64)
    x = torch.randn(4, 12, dtype=torch.float64)
    plain = model.as_sequential()
    torch.testing.assert_close(torch.func.vmap(model)(x), plain(x))
    torch.testing.assert_close(torch.func.jacrev(model)(x[0]), torch.func.jacrev(plain)(x[0]))
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.func.jvp(plain, (x,), (torch.ones_like(x),))[1])


# Taps: the network in two parts, joined by a hidden layer -----------------------------------------


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"residual": True, "dropout": 0.3}])
def test_two_parts_are_the_whole(at: int, options: dict[str, Any]) -> None:
    """The same parameters, modules and masks; both run fused, with the whole's gradients."""
    model = FusedMLP(SIZES, activation="gelu", dtype=torch.float64, **options)
    at = min(at, len(model) - 1)
    lower, upper = model[:at], model[at:]
    assert isinstance(lower, FusedMLP)
    assert isinstance(upper, FusedMLP)
    shared = [*lower.parameters(), *upper.parameters()]
    assert all(a is b for a, b in zip(shared, model.parameters(), strict=True))
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for network in (lambda x: upper(lower(x)), model):
        torch.manual_seed(1)
        y = network(x)
        grads = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
        outcomes.append([y.detach(), *grads])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)
    assert lower.why_plain(x) is None
    assert upper.why_plain(lower(x)) is None


@pytest.mark.parametrize("options", [{}, {"residual": True, "dropout": 0.3}])
def test_a_head_on_the_hidden_layer_trains(options: dict[str, Any]) -> None:
    """An auxiliary loss of a tap, whose gradient joins that of the layers above."""
    model = FusedMLP(SIZES, activation="tanh", dtype=torch.float64, **options)
    head = FusedMLP([9, 4, 3], dtype=torch.float64)
    twin, twin_head = copy.deepcopy(model), copy.deepcopy(head)
    cut = next(i for i, m in enumerate(model) if i > 0 and isinstance(m, nn.Linear | Residual))

    def train(lower: nn.Module, upper: nn.Module, head: nn.Module) -> list[Tensor]:
        torch.manual_seed(6)
        parameters = [p for m in (lower, upper, head) for p in m.parameters()]
        optimizer = SGD(parameters, 0.1, momentum=0.9)
        for _ in range(5):
            x, y = torch.randn(8, 12, dtype=torch.float64), torch.randint(5, (8,))
            hidden = lower(x)
            auxiliary = F.cross_entropy(head(hidden), y % 3)
            loss = F.cross_entropy(upper(hidden), y) + 0.3 * auxiliary
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach() for p in parameters]

    ours = train(model[:cut], model[cut:], head)
    plain = twin.as_sequential()
    theirs = train(plain[:cut], plain[cut:], twin_head.as_sequential())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(ours, [*model.parameters()], strict=False))


def test_a_tap_of_a_frozen_network() -> None:
    """Features of a hidden layer, without gradients: bit for bit those of the whole network."""
    model = FusedMLP(SIZES, residual=True).eval()
    x = torch.randn(50, 12)
    with torch.no_grad():
        hidden = model[:3](x)
        assert torch.equal(model[3:](hidden), model(x))
    step_model = model[3:].requires_grad_().train()
    before = model[0].weight.detach().clone()
    step = TrainStep(step_model, nn.CrossEntropyLoss(), SGD(step_model.parameters(), 0.1))
    step(hidden, torch.randint(5, (50,)))
    assert torch.equal(model[0].weight, before)
    with torch.no_grad():
        assert torch.equal(model[3:](hidden), step_model(hidden))


# torch.compile and torch.export -------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch._dynamo.reset()
    model = FusedMLP([6, 8, 8, 8], activation="gelu", output_activation="tanh", residual=True)
    model = model.double().append(Residual(nn.Linear(8, 8).double(), nn.ReLU()))
    plain = model.as_sequential()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for rows in (9, 17) if dynamic else (9, 9):
        x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
        outcomes = []
        for network in (compiled, plain):
            y = network(x)
            grads = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
            outcomes.append([y.detach(), *grads])
        torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()


def test_exported() -> None:
    model = FusedMLP([6, 8, 8, 5], residual=True, dropout=0.5).eval()
    x = torch.randn(9, 6)
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    for rows in (9, 17):
        x = torch.randn(rows, 6)
        assert torch.equal(program(x), model(x))


# TrainStep ----------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[], nn.Sequential]] = {
    "first": lambda: FusedMLP([19, 19, 5], activation="gelu", residual=True),
    "in the middle": lambda: FusedMLP([7, 19, 19, 19, 5], activation="gelu", residual=True),
    "last": lambda: nn.Sequential(
        nn.Linear(7, 5), nn.Tanh(), Residual(nn.Linear(5, 5), nn.SiLU())
    ),
    "last sum": lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), Residual(nn.Linear(5, 5))),
    "only": lambda: nn.Sequential(Residual(nn.Linear(5, 5), nn.SiLU())),
    "of one feature": lambda: FusedMLP([7, 1, 1, 1, 5], activation="gelu", residual=True),
    "nested": lambda: nn.Sequential(
        nn.Sequential(Residual(nn.Linear(7, 7), nn.GELU())), FusedMLP([7, 7, 5], residual=True)
    ),
    "without bias": lambda: FusedMLP([19, 19, 5], activation="tanh", residual=True, bias=False),
}  # fmt: skip


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "sgd-decay", "adam", "adamw-all"])
def test_steps(isa: str, blocks: str, optimizer: str) -> None:
    for loss in ("ce", "mse"):
        for clip in (None, 0.05):
            model = BLOCKS[blocks]().double()
            Twins(LOSSES[loss], OPTIMIZERS[optimizer], model=model, max_grad_norm=clip).check(4)
    _C.record_kernels(True)
    twins = Twins(model=BLOCKS[blocks]().double())
    twins.train(*twins.batch())


@pytest.mark.parametrize("optimizer", SMOOTH)
def test_steps_in_float32(optimizer: str) -> None:
    sizes = [16] * 7 + [5]
    model = FusedMLP(sizes, activation="gelu", residual=True)
    Twins(LOSSES["mse"], SMOOTH[optimizer], torch.float32, model).check(4, float32_bound(4, sizes))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_of_frozen_layers(optimizer: str) -> None:
    """dx and what the block hands on have to pass frozen layers, and stop below the last one."""
    for frozen in ((0, 1), (2, 3), (4, 5), (0, 1, 2, 3), (0, 2, 4), (1, 3, 5), (6, 7), range(6)):
        model = FusedMLP([7, 7, 7, 7, 5], activation="gelu", residual=True).double()
        twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], model=model)
        for one in (twins.model, twins.plain):
            for index, p in enumerate(one.parameters()):
                p.requires_grad_(index not in frozen)
        before = [p.detach().clone() for p in model.parameters()]
        twins.check(3)
        for index, p in enumerate(model.parameters()):
            assert torch.equal(before[index], p) == (index in frozen), (frozen, index)


@pytest.mark.parametrize("value", [0.0, -0.4242])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_on_sparse_inputs(isa: str, optimizer: str, value: float) -> None:
    """Steps are left out of a first layer that adds its input, and of one that does not."""
    for sizes in ([200, 200, 17, 5], [SPARSE_SIZES[0], 200, 200, 5]):
        model = FusedMLP(sizes, activation="gelu", residual=True).double()
        SparseTwins(
            make_optimizer=OPTIMIZERS[optimizer], sizes=sizes, value=value, model=model
        ).check(3)
    _C.record_kernels(True)
    model(torch.zeros(1, SPARSE_SIZES[0], dtype=torch.float64))


def test_what_a_step_needs_is_told() -> None:
    bad = nn.Sequential(nn.Linear(7, 5), Residual(nn.Linear(5, 5), Residual(nn.Linear(5, 5))))
    with pytest.raises(ValueError, match="module 1: it holds another block"):
        TrainStep(bad, nn.CrossEntropyLoss(), SGD(bad.parameters(), 0.1))
    model = FusedMLP([5, 5, 5], residual=True)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
    hooked(model[0][1])
    with pytest.raises(RuntimeError, match="hook"):
        step(torch.randn(4, 5), torch.randint(5, (4,)))


def blocks(n: int) -> FusedMLP:
    """Before a norm and after one, of one layer and of several."""
    model = FusedMLP.from_sequential(
        nn.Sequential(
            nn.Linear(7, n),
            Residual(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, n)),
            Residual(nn.Linear(n, n), nn.GELU()),
            Residual(nn.Linear(n, 3), nn.SiLU(), nn.Dropout(0.2), nn.Linear(3, n), nn.RMSNorm(n)),
            nn.Linear(n, 5),
        )
    )
    return model.double()


@pytest.mark.parametrize("n", [1, 8, 19])
@pytest.mark.parametrize("rows", [1, 17, 900])  # the last in blocks of rows
def test_blocks_of_several_layers(isa: str, n: int, rows: int) -> None:
    assert_fused(blocks(n), torch.randn(rows, 7, dtype=torch.float64))


def test_frozen_blocks_of_several_layers() -> None:
    model = blocks(6)
    parameters = list(model.parameters())
    x = torch.randn(4, 7, dtype=torch.float64)
    for first in range(len(parameters)):  # the lower ones, and then all but one
        for trained in (set(range(first, len(parameters))), {first}):
            for i, p in enumerate(parameters):
                p.requires_grad_(i in trained)
            for needed in (False, True):
                leaf = x.clone().requires_grad_(needed)
                given = [t for t in (leaf, *parameters) if t.requires_grad]
                outcomes = []
                for network in (model, model.as_sequential()):
                    torch.manual_seed(2)
                    outcomes.append(torch.autograd.grad(network(leaf).square().sum(), given))
                torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [9, 900])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_of_blocks_of_several_layers(rows: int, optimizer: str) -> None:
    twins = Twins(make_optimizer=OPTIMIZERS[optimizer], model=blocks(6))
    twins.check(3, 1e-9, rows)


def test_deep_training_goes_on() -> None:
    """Sixty blocks, which without what they add would hand on nothing: the loss falls by half."""
    torch.manual_seed(0)
    model = FusedMLP([16] * 61 + [4], residual=True, activation="tanh", dtype=torch.float64)
    twin = copy.deepcopy(model).as_sequential()
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.003))
    plain = SGD(twin.parameters(), 0.003)
    x = torch.randn(128, 16, dtype=torch.float64)
    y = x[:, :4].argmax(1)
    losses = []
    for _ in range(60):
        losses.append(step(x, y).item())
        expected = plain_step(twin, nn.CrossEntropyLoss(), plain, x, y).item()
        assert losses[-1] == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0] / 2
