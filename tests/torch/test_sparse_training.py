"""TrainStep and fit on inputs that are mostly one value, whose first weight is kept in panels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from fused import ISAS, forced
from numerics import kinds
from sparse_inputs import every_third_column, every_third_row, rounded, samples, sparse
from sparse_twins import ROWS, SIZES, SparseTwins, forms
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from twins import (
    EXACT,
    LOSSES,
    OPTIMIZERS,
    SMOOTH,
    MakeOptimizer,
    assert_close,
    float32_bound,
    plain_step,
    plain_twin,
)

from fastmlp import _C, FusedMLP, TrainStep, _epochs, _fit
from fastmlp.data import Compose, ImageDataset, Normalize, ToTensor

VALUES = [0.0, -0.4242]


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    """Unless a test sets more."""
    torch.set_num_threads(1)


# Batches of each kind -----------------------------------------------------------------------------


def nearly_empty(value: float, dtype: torch.dtype) -> Tensor:
    return sparse(ROWS, SIZES[0], 0.02, value, dtype)


def every_third(
    fill: Callable[[Tensor, float], None],
) -> Callable[[float, torch.dtype], Tensor]:
    def make(value: float, dtype: torch.dtype) -> Tensor:
        x = torch.randn(ROWS, SIZES[0], dtype=dtype)
        fill(x, rounded(value, dtype))
        return x

    return make


def dense(value: float, dtype: torch.dtype) -> Tensor:
    return torch.randn(ROWS, SIZES[0], dtype=dtype)


def seemingly_empty(value: float, dtype: torch.dtype) -> Tensor:
    x = torch.randn(ROWS, SIZES[0], dtype=dtype)
    x.view(-1)[samples(ROWS, SIZES[0])[8:]] = rounded(value, dtype)
    return x


# By which products of the first layer leave steps out: both, forward's, none after all, none.
KINDS: dict[str, Callable[[float, torch.dtype], Tensor]] = {
    "both": nearly_empty,
    "forward": every_third(every_third_column),
    "neither": every_third(every_third_row),
    "looked": seemingly_empty,
    "dense": dense,
}
# After each kind, each other and itself: a, ab, ac, …, b, bc, …, c, …, and a again.
_NAMES = list(KINDS)
ORDER = [
    *(
        name
        for i, one in enumerate(_NAMES)
        for name in (one, *(both for other in _NAMES[i + 1 :] for both in (one, other)))
    ),
    _NAMES[0],
]


@pytest.mark.parametrize("value", VALUES)
def test_kinds(isa: str, dtype: torch.dtype, value: float) -> None:
    """They are what they are said to be: by a network of the first layer alone."""
    assert sorted(pairwise(ORDER)) == sorted(product(KINDS, KINDS))
    model = FusedMLP(SIZES[:2], dtype=dtype)
    for optimizer in (SGD(model.parameters(), 0.01), Adam(model.parameters())):
        step = TrainStep(model, nn.MSELoss(), optimizer)
        target = torch.randn(ROWS, SIZES[1], dtype=dtype)
        ran = {}
        for kind, make in KINDS.items():
            _C.record_kernels(True)
            step(make(value, dtype), target)
            ran[kind] = "listed" in forms(), forms() - {"listed"}
        assert ran["both"] == (True, set())
        assert ran["forward"] == (True, {"gemm"})
        for kind in ("neither", "looked", "dense"):
            left_out, others = ran[kind]
            assert not left_out
            assert "gemm" in others


# step(x, y) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("value", VALUES)
def test_every_optimizer(optimizer: str, value: float) -> None:
    """In more rows than are summed up at a time as well."""
    for rows, clip in ((ROWS, None), (400, None), (900, None), (400, 0.1)):
        twins = SparseTwins(make_optimizer=OPTIMIZERS[optimizer], value=value, max_grad_norm=clip)
        twins.check(3, None, rows)


@pytest.mark.parametrize("optimizer", SMOOTH)
@pytest.mark.parametrize("value", VALUES)
def test_in_float32(optimizer: str, value: float) -> None:
    for rows, clip in ((ROWS, None), (400, None), (400, 0.1)):
        SparseTwins(
            make_optimizer=SMOOTH[optimizer], dtype=torch.float32, value=value,
            max_grad_norm=clip,
        ).check(3, None, rows)  # fmt: skip


@pytest.mark.parametrize("loss", ["ce-all", "probabilities-all", "mse", "bce-all-sum"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam-all"])
def test_losses(loss: str, optimizer: str) -> None:
    case = LOSSES[loss]
    make = case.make

    def mean() -> nn.Module:
        made = make()
        made.reduction = "mean"  # type: ignore[assignment]
        return made

    SparseTwins(case._replace(make=mean), OPTIMIZERS[optimizer]).check()


@pytest.mark.parametrize("sizes", [[90, 200], [90, 130, 5], [784, 97, 5], [64, 301, 1, 7, 5]])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-maximize", "sgd-momentum", "adam-eps"])
def test_on_every_instruction_set(
    isa: str, dtype: torch.dtype, sizes: list[int], optimizer: str
) -> None:
    """The fixture's recording is off after a check, and on for the last step again."""
    loss = LOSSES["mse" if len(sizes) == 2 else "ce"]
    for value in VALUES:
        SparseTwins(loss, SMOOTH[optimizer], dtype, sizes, value=value).check(3)
    _C.record_kernels(True)
    twins = SparseTwins(loss, SMOOTH[optimizer], dtype, sizes)
    twins.train(*twins.batch())


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_frozen(optimizer: str, clip: float | None) -> None:
    """The first layer's weight, its bias, both, all but them; with steps left out in forward."""
    twins = SparseTwins(make_optimizer=OPTIMIZERS[optimizer], max_grad_norm=clip)
    for frozen in ([0], [1], [0, 1], [], range(2, 6), [0, *range(2, 6)], range(1, 6), [0, 2, 4]):
        before = [p.detach().clone() for p in twins.model.parameters()]
        for model in (twins.model, twins.plain):
            for index, p in enumerate(model.parameters()):
                p.requires_grad_(index not in frozen)
        twins.check(2)
        for index, p in enumerate(twins.model.parameters()):
            assert torch.equal(before[index], p) == (index in frozen), (frozen, index)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adamw-eps"])
def test_steps_by_batches_of_all_kinds(dtype: torch.dtype, optimizer: str) -> None:
    """The weight may be read, and changed, between two steps."""
    twins = SparseTwins(make_optimizer=SMOOTH[optimizer], dtype=dtype)
    for number, kind in enumerate(ORDER, 1):
        relative = EXACT if dtype == torch.float64 else float32_bound(number, SIZES, ROWS)
        x = KINDS[kind](0.0, dtype)
        assert_close(*twins.train(x, torch.randint(5, (ROWS,))), relative, kind)
        twins.compare_parameters(relative)
        if number % 3 == 0:
            for model in (twins.model, twins.plain):
                with torch.no_grad():
                    model[0].weight[number % 200] *= -0.5


def test_a_rate_of_zero_changes_no_bit(isa: str, dtype: torch.dtype) -> None:
    """Panels and back are the same weight."""
    for features, outputs in ((90, 200), (784, 301), (65, 97)):
        model = FusedMLP([features, outputs, 5], dtype=dtype)
        before = [p.detach().clone() for p in model.parameters()]
        step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.0))
        step(sparse(ROWS, features, dtype=dtype), torch.randint(5, (ROWS,)))
        assert "listed" in forms()
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# fit ----------------------------------------------------------------------------------------------


@pytest.fixture
def _one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches of an epoch in one call: nothing but its end needs the weight itself."""
    monkeypatch.setattr(_epochs, "calls", lambda first, end, *every: iter([(first, end)]))


def data(
    order: list[str], dtype: torch.dtype, value: float = 0.0, more: int = 0
) -> tuple[Tensor, Tensor]:
    """Batches of these kinds, and so many rows after them."""
    x = torch.cat([KINDS[kind](value, dtype) for kind in order])
    if more:
        x = torch.cat([x, sparse(more, SIZES[0], 0.02, value, dtype)])
    return x, torch.randint(SIZES[-1], (len(x),))


def pair(
    make_optimizer: MakeOptimizer, dtype: torch.dtype, clip: float | None = None
) -> tuple[TrainStep, TrainStep]:
    """The same network twice."""
    steps = []
    for _ in range(2):
        torch.manual_seed(5)
        model = FusedMLP(SIZES, activation="gelu", dtype=dtype)
        optimizer = make_optimizer(model, 1)
        steps.append(TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=clip))
    return steps[0], steps[1]


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(x), ROWS):
        yield x[first : first + ROWS], y[first : first + ROWS]


def numbers(step: TrainStep) -> list[Tensor]:
    """All that training changes, as it is now."""
    state = [v for s in step.optimizer.state.values() for v in s.values()]
    return [t.detach().clone() for t in (*step.model.parameters(), *state)]


def assert_equal(actual: list[Tensor], expected: list[Tensor], what: str = "") -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"{what}: number {index}"


TRAINED = {
    "sgd": OPTIMIZERS["sgd"],
    "sgd-maximize": OPTIMIZERS["sgd-maximize"],
    "sgd-groups-plain": lambda model, factor: SGD(
        [
            {"params": [model[0].weight], "lr": 0.03},
            {"params": list(model.parameters())[1:], "momentum": 0.9},
        ],
        lr=0.01,
    ),
    "sgd-decay": OPTIMIZERS["sgd-decay"],
    "sgd-momentum": OPTIMIZERS["sgd-momentum"],
    "adam": OPTIMIZERS["adam"],
}
WITH_VALUES = [("sgd", VALUES[1]), *((name, VALUES[i % 2]) for i, name in enumerate(TRAINED))]


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize(("optimizer", "value"), WITH_VALUES)
def test_fit_is_steps(isa: str, dtype: torch.dtype, optimizer: str, value: float) -> None:
    """Bit for bit, whatever kind of batch follows on which, and whichever is the last."""
    whole = TRAINED[optimizer]
    orders = [ORDER] if optimizer != "sgd" else [ORDER, *(["both", kind] for kind in KINDS)]
    for order in orders:
        for more in (0, 9):
            x, y = data(order, dtype, value, more)
            fitted, stepped = pair(whole, dtype)
            report = fitted.fit((x, y), ROWS, shuffle=False)[0]
            losses = [stepped(*batch).item() * len(batch[0]) for batch in batches(x, y)]
            assert_equal(numbers(fitted), numbers(stepped), f"{order[-2:]} and {more}")
            assert report.loss == pytest.approx(sum(losses) / len(x), rel=1e-6)
            assert fitted.correct == stepped.correct


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize(("optimizer", "value"), WITH_VALUES)
def test_fit_is_the_plain_loop(isa: str, optimizer: str, value: float) -> None:
    x, y = data(ORDER, torch.float64, value, 9)
    step, other = pair(TRAINED[optimizer], torch.float64)
    twin = plain_twin(other.model)
    plain = TRAINED[optimizer](twin, 1)
    step.fit((x, y), ROWS, epochs=2, shuffle=False)
    for _ in range(2):
        for batch in batches(x, y):
            plain_step(twin, nn.CrossEntropyLoss(), plain, *batch)
    for a, b in zip(step.model.parameters(), twin.parameters(), strict=True):
        assert_close(a, b, EXACT, optimizer)


@pytest.mark.usefixtures("_one_call")
def test_fit_with_clipping(dtype: torch.dtype) -> None:
    x, y = data(ORDER, dtype)
    fitted, stepped = pair(OPTIMIZERS["sgd"], dtype, 0.05)
    fitted.fit((x, y), ROWS, shuffle=False)
    for batch in batches(x, y):
        stepped(*batch)
    assert_equal(numbers(fitted), numbers(stepped))


@pytest.mark.sweep
@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_weight_is_whole_at_every_callback(isa: str, dtype: torch.dtype, every: int) -> None:
    """And what is done to it there counts: a rate, a frozen weight, other numbers, threads."""
    x, y = data(ORDER, dtype)
    fitted, stepped = pair(OPTIMIZERS["sgd"], dtype)
    seen: list[list[Tensor]] = []

    def meddle(step: TrainStep, done: int) -> None:
        weight = step.model[0].weight
        step.optimizer.param_groups[0]["lr"] = 0.05 / (1 + done)
        weight.requires_grad_(done % 4 != 3)
        step.model[0].bias.requires_grad_(done % 7 < 5)
        with torch.no_grad():
            weight[done % 200] *= -0.9

    def callback(report: Any) -> None:
        seen.append(numbers(fitted))
        meddle(fitted, report.batch)
        torch.set_num_threads(1 + report.batch % 3)

    fitted.fit((x, y), ROWS, shuffle=False, callback=callback, callback_every=every)
    torch.set_num_threads(1)
    for number, batch in enumerate(batches(x, y), 1):
        stepped(*batch)
        if number % every == 0 or number == len(ORDER):
            assert_equal(seen.pop(0), numbers(stepped), f"batch {number}, {ORDER[number - 1]}")
            meddle(stepped, number)
    assert not seen


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("last", KINDS)
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum"])
def test_a_bad_class_leaves_the_steps_before_it(last: str, optimizer: str) -> None:
    """The weight is as after them, though no call came to its end."""
    for order in ([], [last], ["both", "forward", "both", last]):
        done = len(order)
        order = [*order, "both", "both"]
        x, y = data(order, torch.float32)
        y[done * ROWS + 57] = SIZES[-1]
        fitted, stepped = pair(OPTIMIZERS[optimizer], torch.float32)
        before = [p._version for p in fitted.model.parameters()]
        with pytest.raises(IndexError, match="out of bounds"):
            fitted.fit((x, y), ROWS, shuffle=False)
        for batch in list(batches(x, y))[:done]:
            stepped(*batch)
        assert_equal(numbers(fitted), numbers(stepped), f"{order}")
        versions = [p._version for p in fitted.model.parameters()]
        assert [v > b for v, b in zip(versions, before, strict=True)] == [done > 0] * 6
        for step in (fitted, stepped):  # and goes on from there
            step(*data(["both"], torch.float32))


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("frozen", [[0], [1], [0, 1], [2, 3, 4, 5], [0, 2, 4]])
def test_fit_with_frozen_parameters(dtype: torch.dtype, frozen: list[int]) -> None:
    x, y = data(ORDER[:12], dtype)
    fitted, stepped = pair(OPTIMIZERS["sgd"], dtype)
    before = numbers(fitted)
    for step in (fitted, stepped):
        for index in frozen:
            list(step.model.parameters())[index].requires_grad_(False)
    fitted.fit((x, y), ROWS, shuffle=False)
    for batch in batches(x, y):
        stepped(*batch)
    assert_equal(numbers(fitted), numbers(stepped))
    for index, (a, b) in enumerate(zip(before, numbers(fitted), strict=True)):
        assert torch.equal(a, b) == (index in frozen)


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("batch_size", [16, 40, 384, 385, 1000])
def test_fit_by_any_batch(dtype: torch.dtype, batch_size: int) -> None:
    """Shuffled, with a last batch that may be too small to be looked at."""
    x = sparse(1007, SIZES[0], 0.02, 0.0, dtype)
    x[::5] = torch.randn(len(x[::5]), SIZES[0], dtype=dtype)
    y = torch.randint(SIZES[-1], (len(x),))
    fitted, stepped = pair(OPTIMIZERS["sgd"], dtype)
    fitted.fit((x, y), batch_size, epochs=2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        order = _fit.epoch_order(len(x), True, generator)
        for chosen in order.split(batch_size):
            stepped(x[chosen], y[chosen])
    assert_equal(numbers(fitted), numbers(stepped))


@pytest.mark.parametrize("pixels", [784, 785])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bytes_that_are_normalised(
    isa: str, dtype: torch.dtype, pixels: int, optimizer: str
) -> None:
    """The zeros of images become one value all over."""
    images = torch.randint(1, 256, (3 * ROWS, pixels), dtype=torch.uint8)
    images[torch.rand(images.shape) > 0.06] = 0
    labels = torch.randint(5, (len(images),))
    transform = Compose([ToTensor(), Normalize((0.13,), (0.31,))])
    results = []
    for dataset, options in (
        (ImageDataset(images[:, None], labels, transform), {}),
        ((images, labels), {"normalize": (0.13, 0.31)}),
        ((((images.to(dtype) / 255) - 0.13) / 0.31, labels), {}),
    ):
        torch.manual_seed(1)
        model = FusedMLP([pixels, 200], dtype=dtype)
        step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1))
        _C.record_kernels(True)
        step.fit(dataset, ROWS, shuffle=False, **options)
        assert forms() == {"listed"}
        results.append(model[0].weight.detach())
    bound = 1000 * torch.finfo(dtype).eps  # as in test_fit.py
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], rtol=bound, atol=bound)


# Numbers that are not finite ----------------------------------------------------------------------


@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["weight", "empty feature's weight", "bias", "x"])
def test_what_becomes_of_a_poisoned_number(
    isa: str, dtype: torch.dtype, value: float, poison: float, place: str
) -> None:
    """In steps and in fit, it spreads as in the plain loop."""
    torch.manual_seed(1)
    model = FusedMLP(SIZES, activation="relu", dtype=dtype)
    x, y = data(["both", "forward", "both", "dense", "both"], dtype, value)
    x[:, 40] = rounded(value, dtype)
    with torch.no_grad():
        if place == "bias":
            model[0].bias[3] = poison
        elif place == "x":
            x[2 * ROWS + 7, 11] = poison
        else:
            model[0].weight[3, 11 if place == "weight" else 40] = poison
    twin = plain_twin(model)
    plain = SGD(twin.parameters(), 0.01)
    other = plain_twin(model)
    stepped = TrainStep(other, nn.CrossEntropyLoss(), SGD(other.parameters(), 0.01))
    fitted = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.01))
    for batch in batches(x, y):
        expected = plain_step(twin, nn.CrossEntropyLoss(), plain, *batch)
        assert torch.equal(kinds(stepped(*batch)), kinds(expected))
        for a, b in zip(other.parameters(), twin.parameters(), strict=True):
            assert torch.equal(kinds(a), kinds(b))
    fitted.fit((x, y), ROWS, shuffle=False)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(kinds(a), kinds(b))


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.sweep
@pytest.mark.usefixtures("_one_call")
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adamw"])
@pytest.mark.parametrize("value", VALUES)
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, optimizer: str, value: float
) -> None:
    order = ["both", "both", "forward", "both", "dense", "both", "neither", "both", "looked"]
    x, y = data(order, dtype, value, 9)
    runs = []
    for count in (1, 2, 3, 4, 7):
        torch.set_num_threads(count)
        fitted, stepped = pair(OPTIMIZERS[optimizer], dtype)
        fitted.fit((x, y), ROWS, shuffle=False)
        for batch in list(batches(x, y))[:4]:
            stepped(*batch)
        runs.append(numbers(fitted) + numbers(stepped))
    for count, run in zip((2, 3, 4, 7), runs[1:], strict=True):
        assert_equal(run, runs[0], f"{count} threads")


def test_other_instruction_sets_in_between() -> None:
    """Panels are of one of them, and no call leaves any."""
    x, y = data(ORDER[:8], torch.float64)
    fitted, stepped = pair(OPTIMIZERS["sgd"], torch.float64)
    for number, batch in enumerate(batches(x, y)):
        with forced(ISAS[number % len(ISAS)]):
            fitted.fit(batch, ROWS, shuffle=False)
            stepped(*batch)
    assert_equal(numbers(fitted), numbers(stepped))


def state_of(optimizer: Optimizer) -> list[Any]:
    return list(optimizer.state.values())


def test_steps_leave_no_state_and_no_gradient(dtype: torch.dtype) -> None:
    """What is kept between the steps of a call is nobody else's."""
    fitted, _ = pair(OPTIMIZERS["sgd"], dtype)
    fitted.fit(data(ORDER[:6], dtype), ROWS, shuffle=False)
    assert state_of(fitted.optimizer) == []
    assert all(p.grad is None for p in fitted.model.parameters())
