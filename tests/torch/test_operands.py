"""A step's operands: memory that they share, lazy views, other threads' writes, sizes of zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from fused import ISAS, forced
from processes import output
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fastmlp import _C, FusedMLP, TrainStep

# Of steps in float64 beside the same in torch: a thousand roundings' worth. What reads a number
# after it was written is off by the learning rate times a gradient, 1e-6 at least.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), 0.1),
    "momentum": lambda model: SGD(model.parameters(), 0.1, momentum=0.9),
    # A gradient's rounding grows by lr / eps at most, ten times.
    "adam": lambda model: Adam(model.parameters(), 0.01, eps=1e-3, amsgrad=True),
}
MEMORY = "share a parameter, or two of the parameters and of the optimizer's tensors"


@pytest.fixture(autouse=True)
def _two_threads(threads: int) -> None:
    torch.set_num_threads(2)


def tensors(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Parameters, and the optimizer's state in their order."""
    parameters = list(model.parameters())
    state = [optimizer.state.get(p, {}) for p in parameters]
    kept = [v for s in state for v in s.values() if isinstance(v, Tensor)]
    return [*(p.detach() for p in parameters), *kept]


def plain_step(
    model: FusedMLP, loss: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    optimizer.zero_grad()
    value: Tensor = loss(model.as_sequential()(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


# Memory that is shared ----------------------------------------------------------------------------

# What a step is given of a model [n, n] and its optimizer, [rows, n].
SHARING: dict[str, Callable[[FusedMLP, Optimizer], Tensor]] = {
    "weight": lambda model, _: model[0].weight.detach(),
    "part of the weight": lambda model, _: model[0].weight.detach()[1:-1],
    "weight, transposed": lambda model, _: model[0].weight.detach().t(),
    "bias in each row": lambda model, _: model[0].bias.detach().expand(5, -1),
    "second weight": lambda model, _: model[2].weight.detach(),
    "state of the weight": lambda model, optimizer: next(
        v for v in optimizer.state[model[0].weight].values() if v.dim() == 2
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "shared"),
    [pair for pair in product(OPTIMIZERS, SHARING) if pair != ("sgd", "state of the weight")],
)
def test_input_and_target_in_the_step_s_memory(isa: str, optimizer: str, shared: str) -> None:
    """Sizes of several tiles on each instruction set: one tile is read before it is written."""
    for n in (7, 33, 100):
        model = FusedMLP([n, n, n], activation="tanh", dtype=torch.float64)
        plain = copy.deepcopy(model)
        ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](plain)
        step = TrainStep(model, nn.MSELoss(), ours)
        x = torch.randn(5, n, dtype=torch.float64)
        step(x, x)
        plain_step(plain, step.loss, theirs, x, x)
        for _ in range(2):
            given = SHARING[shared](model, ours)
            same = SHARING[shared](plain, theirs).clone()
            actual = step(given, given)
            torch.testing.assert_close(actual, plain_step(plain, step.loss, theirs, same, same))
            for a, b in zip(tensors(model, ours), tensors(plain, theirs), strict=True):
                torch.testing.assert_close(a, b, **CLOSE)


def test_weights_of_the_loss_in_the_step_s_memory(isa: str) -> None:
    model = FusedMLP([6, 33], dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.abs_()
    plain = copy.deepcopy(model)
    for make in (
        lambda bias: nn.CrossEntropyLoss(bias, label_smoothing=0.1),
        lambda bias: nn.BCEWithLogitsLoss(bias, pos_weight=bias),
    ):
        ours, theirs = OPTIMIZERS["sgd"](model), OPTIMIZERS["sgd"](plain)
        step = TrainStep(model, make(model[0].bias.detach()), ours)
        x, y = torch.randn(40, 6).double(), torch.rand(40, 33).double()
        loss = make(plain[0].bias.detach().clone())
        torch.testing.assert_close(step(x, y), plain_step(plain, loss, theirs, x, y))
        for a, b in zip(tensors(model, ours), tensors(plain, theirs), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_fit_on_the_weight_itself(isa: str, what: str) -> None:
    """Mostly zeros: the weight is kept in another layout, and could be written after the steps."""
    n, rows = 600, 120  # enough for that to pay in both passes
    model = FusedMLP([n, n], bias=False, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[:, n // 20 :] = 0  # and their gradients are zero, too
    plain = copy.deepcopy(model)
    other = model[0].weight.detach().flip(0).clone()

    def data(weight: Tensor) -> tuple[Tensor, Tensor]:
        return (weight, other) if what == "inputs" else (other, weight)

    step = TrainStep(model, nn.MSELoss(reduction="sum"), SGD(model.parameters(), 0.01))
    step.fit(data(model[0].weight.detach()), rows, shuffle=False, progress=False)
    optimizer = SGD(plain.parameters(), 0.01)
    for first in range(0, n, rows):
        x, y = (t[first : first + rows].clone() for t in data(plain[0].weight.detach()))
        plain_step(plain, step.loss, optimizer, x, y)
    torch.testing.assert_close(model[0].weight, plain[0].weight, **CLOSE)


def share_weights(model: FusedMLP, _: Optimizer) -> None:
    model[2].weight.data = model[0].weight.data


def share_a_part(model: FusedMLP, _: Optimizer) -> None:
    memory = torch.randn(9 * 8, dtype=torch.float64)
    model[0].weight.data, model[2].weight.data = memory[:64].view(8, 8), memory[8:].view(8, 8)


def share_a_bias(model: FusedMLP, _: Optimizer) -> None:
    model[0].bias.data = model[2].weight.data[3]


def share_a_frozen_weight(model: FusedMLP, optimizer: Optimizer) -> None:
    model[2].weight.requires_grad_(False)
    share_weights(model, optimizer)


def share_a_moment(model: FusedMLP, optimizer: Optimizer) -> None:
    optimizer.state[model[0].weight]["exp_avg"] = model[2].weight.data


def share_moments(model: FusedMLP, optimizer: Optimizer) -> None:
    of = [optimizer.state[layer.weight] for layer in (model[0], model[2])]
    of[0]["exp_avg_sq"] = of[1]["exp_avg_sq"]


def share_the_count(model: FusedMLP, optimizer: Optimizer) -> None:
    optimizer.state[model[0].bias]["step"] = optimizer.state[model[2].bias]["step"]


@pytest.mark.parametrize(
    "share",
    [
        share_weights, share_a_part, share_a_bias, share_a_frozen_weight, share_a_moment,
        share_moments, share_the_count,
    ],
)  # fmt: skip
@pytest.mark.parametrize("fit", [False, True])
def test_what_is_written_may_share_no_memory(share: Callable[..., None], fit: bool) -> None:
    """torch updates one after the other, each by what the one before has left."""
    model = FusedMLP([8, 8, 8], dtype=torch.float64)
    optimizer = OPTIMIZERS["adam"](model)
    step = TrainStep(model, nn.MSELoss(), optimizer)
    x = torch.randn(5, 8, dtype=torch.float64)
    step(x, x)
    share(model, optimizer)
    before = [t.clone() for t in tensors(model, optimizer)]
    with pytest.raises(RuntimeError, match=MEMORY):
        step.fit((x, x), 5, progress=False) if fit else step(x, x)
    assert all(torch.equal(a, b) for a, b in zip(tensors(model, optimizer), before, strict=True))


def test_frozen_parameters_may_share_memory() -> None:
    model = FusedMLP([8, 8, 8, 8], activation="tanh", dtype=torch.float64)
    for layer in (model[0], model[4]):
        layer.weight.requires_grad_(False)
    model[4].weight.data = model[0].weight.data
    plain = copy.deepcopy(model)
    step = TrainStep(model, nn.MSELoss(), SGD(model.parameters(), 0.1))
    optimizer = SGD(plain.parameters(), 0.1)
    x = torch.randn(5, 8, dtype=torch.float64)
    for _ in range(3):
        step(x, x)
        plain_step(plain, nn.MSELoss(), optimizer, x, x)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# Lazy views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (nn.MSELoss(), torch.randn(9, 3)),
        (nn.BCEWithLogitsLoss(), torch.rand(9, 3)),
        (nn.CrossEntropyLoss(), torch.rand(9, 3)),
        (nn.CrossEntropyLoss(), torch.arange(9) % 3),
        (nn.PoissonNLLLoss(), torch.arange(27).view(9, 3) % 4),
        (nn.GaussianNLLLoss(), (torch.randn(9, 3), torch.rand(9))),
    ],
    ids=["mse", "bce", "probabilities", "classes", "counts", "variances"],
)
@pytest.mark.parametrize("fit", [False, True])
def test_targets_with_a_negative_bit(loss: nn.Module, y: Any, fit: bool) -> None:
    def promised(t: Tensor) -> Tensor:
        view = torch._neg_view(-t)
        assert view.is_neg()
        return view

    given = tuple(map(promised, y)) if isinstance(y, tuple) else promised(y)
    results = []
    for target in (given, y):
        torch.manual_seed(1)
        model = FusedMLP([4, 3])
        step = TrainStep(model, loss, SGD(model.parameters(), 0.1))
        x = torch.randn(9, 4)
        value = step.fit((x, target), 4, progress=False)[0].loss if fit else step(x, target)
        results.append([torch.as_tensor(value), *(p.detach() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_inputs_and_weights_with_a_negative_bit() -> None:
    pixels = torch.randint(256, (20, 4), dtype=torch.uint8)
    weight = torch.rand(3)
    results = []
    for x, w in ((pixels, weight), (torch._neg_view(pixels.neg()), torch._neg_view(-weight))):
        torch.manual_seed(1)
        model = FusedMLP([4, 3])
        step = TrainStep(model, nn.CrossEntropyLoss(w), SGD(model.parameters(), 0.1))
        step.fit((x, torch.arange(20) % 3), 5, progress=False)
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_target_that_is_a_promise_of_zeros() -> None:
    values = []
    for y in (torch._efficientzerotensor((9, 3)), torch.zeros(9, 3)):
        torch.manual_seed(1)
        model = FusedMLP([4, 3])
        values.append(
            TrainStep(model, nn.MSELoss(), SGD(model.parameters(), 0.1))(torch.randn(9, 4), y)
        )
    assert torch.equal(*values)


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_state_with_a_negative_bit_is_refused(key: str) -> None:
    model = FusedMLP([4, 3])
    optimizer = OPTIMIZERS["adam"](model)
    step = TrainStep(model, nn.MSELoss(), optimizer)
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    step(x, y)
    state = optimizer.state[model[0].weight]
    state[key] = torch._neg_view(state[key])
    before = [t.clone() for t in tensors(model, optimizer)]
    with pytest.raises(RuntimeError, match=r"the optimizer's (state|step)"):
        step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(tensors(model, optimizer), before, strict=True))


# Another thread writes to them --------------------------------------------------------------------


def test_classes_that_change_while_a_step_runs() -> None:
    """Whatever was checked is what is used: a class is a place in memory."""
    program = """
import threading, torch
from torch import nn
from fastmlp import _C, FusedMLP, TrainStep
torch.set_num_threads(1)
model = FusedMLP([64, 512, 512, 10])
step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.01))
x, y = torch.randn(256, 64), torch.zeros(256, dtype=torch.int64)
done = threading.Event()
def spoil():
    while not done.is_set():
        y.fill_(10**9)
        y.zero_()
writer = threading.Thread(target=spoil)
writer.start()
trained = refused = 0
for _ in range(400):
    try:
        step(x, y)
        trained += 1
    except IndexError:
        refused += 1
done.set()
writer.join()
print(trained + refused, bool(model[0].weight.isfinite().all()))
"""
    assert output(program).split() == ["400", "True"]


# Sizes of zero ------------------------------------------------------------------------------------

NO_SIZES = [[0, 3], [4, 0], [0, 0], [4, 0, 3], [4, 5, 0], [0, 5, 3], [1, 1], [4, 0, 0, 2]]


@pytest.fixture(params=ISAS)
def any_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """As `isa`, but there may be nothing for kernels to do."""
    before = _C.get_isa()
    _C.set_isa(request.param)
    yield
    _C.set_isa(before)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("rows", [0, 5, 6000])  # several blocks of any usual cache
@pytest.mark.parametrize("sizes", NO_SIZES, ids=str)
def test_networks_of_no_features(any_isa: None, sizes: list[int], rows: int) -> None:
    for activation in ("relu", "silu"):
        model = FusedMLP(sizes, activation=activation, dtype=torch.float64)
        x = torch.randn(rows, sizes[0], dtype=torch.float64, requires_grad=True)
        results = []
        for network in (model, model.as_sequential()):
            y = network(x)
            wanted = [x, *model.parameters()]
            gradients = torch.autograd.grad(y.sum(), wanted, allow_unused=True)
            results.append([y.detach(), *gradients])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(
                torch.zeros(0) if a is None else a, torch.zeros(0) if b is None else b, **CLOSE
            )


def no_sizes_losses() -> dict[str, tuple[nn.Module, bool]]:
    """Losses, and whether their target is classes."""
    made: dict[str, tuple[nn.Module, bool]] = {}
    for reduction in ("mean", "sum"):
        for smoothing in (0.0, 0.1):
            for classes in (True, False):
                loss = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
                made[f"ce-{reduction}-{smoothing}-{'classes' if classes else 'p'}"] = loss, classes
        made[f"mse-{reduction}"] = nn.MSELoss(reduction=reduction), False
        made[f"bce-{reduction}"] = nn.BCEWithLogitsLoss(reduction=reduction), False
        made[f"l1-{reduction}"] = nn.L1Loss(reduction=reduction), False
        made[f"smooth-l1-{reduction}"] = nn.SmoothL1Loss(reduction=reduction), False
        made[f"huber-{reduction}"] = nn.HuberLoss(reduction=reduction), False
        made[f"nll-{reduction}"] = nn.NLLLoss(reduction=reduction), True
        made[f"poisson-{reduction}"] = nn.PoissonNLLLoss(reduction=reduction), False
    for reduction in ("mean", "sum", "batchmean"):
        made[f"kl-{reduction}"] = nn.KLDivLoss(reduction=reduction), False
    return made


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("sizes", NO_SIZES, ids=str)
def test_steps_of_no_features(sizes: list[int], rows: int) -> None:
    """With 0 rows or 0 classes torch's losses are NaN or 0: whichever, it is ours."""
    for name, (loss, classes) in no_sizes_losses().items():
        for optimizer in OPTIMIZERS.values():
            model = FusedMLP(sizes, dtype=torch.float64)
            plain = copy.deepcopy(model)
            ours, theirs = optimizer(model), optimizer(plain)
            x = torch.randn(rows, sizes[0], dtype=torch.float64)
            y: Any = torch.rand(rows, sizes[-1], dtype=torch.float64)
            if classes:
                y = torch.full((rows,), -100 if sizes[-1] == 0 else 0)
            step = TrainStep(model, loss, ours)
            for _ in range(2):
                actual, expected = step(x, y), plain_step(plain, loss, theirs, x, y)
                torch.testing.assert_close(actual, expected, equal_nan=True, msg=name)
            for a, b in zip(tensors(model, ours), tensors(plain, theirs), strict=True):
                torch.testing.assert_close(a, b, equal_nan=True, **CLOSE)


def test_a_class_among_none_is_out_of_bounds() -> None:
    model = FusedMLP([8, 0])
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
    with pytest.raises(IndexError, match=r"Target 0 is out of bounds"):
        step(torch.randn(5, 8), torch.zeros(5, dtype=torch.int64))


def test_a_wrong_step_would_show() -> None:
    """The comparisons above can fail: a target read after the first write is such a case."""
    with forced("generic"):
        model = FusedMLP([33, 33], dtype=torch.float64)
        x = model[0].weight.detach().clone()
        late = x - 0.1 * torch.autograd.grad(nn.MSELoss()(model(x), x), model[0].weight)[0]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(late, x, **CLOSE)
