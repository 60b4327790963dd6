"""TrainStep against the loop that it stands for: the same losses, parameters, optimizer state."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fused import forced
from layouts import LAYOUTS, Layout, windows
from processes import lets_others_run
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from twins import (
    CLASSES,
    EXACT,
    LOSSES,
    OPTIMIZERS,
    ROWS,
    SIZES,
    SMOOTH,
    WEIGHT,
    LossCase,
    MakeOptimizer,
    Twins,
    adam,
    adaptive,
    assert_close,
    assert_same_optimizer,
    cross_entropy,
    float32_bound,
    plain_step,
    plain_twin,
    sgd,
    target,
)

from fastmlp import _C, FusedMLP, TrainStep

# What torch says of KLDivLoss's mean.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")


# What is compared ---------------------------------------------------------------------------------


KINDS = [getattr(torch.optim, name) for name in _C.OPTIMIZERS]
DEFAULTS = [name for name in OPTIMIZERS if "-" not in name]  # one of each kind


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    torch.set_num_threads(1)  # networks so small are not divided; those that are say so


# Parity -------------------------------------------------------------------------------------------


# Each loss with two optimizers and each optimizer with two losses; in a sweep, all pairs.
PRODUCT = [
    pytest.param(
        loss, optimizer, id=f"{loss}-{optimizer}",
        marks=()
        if loss in ("ce", "mse") or optimizer in ("sgd", "adam-all")
        else (pytest.mark.sweep,),
    )
    for loss in LOSSES
    for optimizer in OPTIMIZERS
]  # fmt: skip


@pytest.mark.parametrize(("loss", "optimizer"), PRODUCT)
def test_every_loss_with_every_optimizer(loss: str, optimizer: str) -> None:
    Twins(LOSSES[loss], OPTIMIZERS[optimizer]).check(steps=12)
    Twins(LOSSES[loss], OPTIMIZERS[optimizer], torch.float32).check(12, float32_bound(12))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        ("ce", "sgd"),
        ("ce", "adam"),
        ("ce-all", "sgd-nesterov-decay"),
        ("ce-all-sum", "sgd-momentum"),
        ("probabilities-all", "adamw-groups"),
        ("mse", "adam-amsgrad"),
        ("mse-sum", "sgd-dampening"),
        ("bce-all-sum", "adamw-decay"),
        ("bce-pos-weight", "sgd-groups"),
        ("ce-weight", "sgd-all"),
    ],
)
def test_a_thousand_steps(loss: str, optimizer: str) -> None:
    Twins(LOSSES[loss], OPTIMIZERS[optimizer]).check(steps=1000)


@pytest.mark.parametrize(("loss", "optimizer"), [("ce", "sgd"), ("mse", "adam"), ("bce", "adamw")])
def test_a_hundred_steps_in_float32(loss: str, optimizer: str) -> None:
    Twins(LOSSES[loss], OPTIMIZERS[optimizer], torch.float32).check(100, float32_bound(100))


def test_every_kind_of_optimizer_is_compared() -> None:
    made = [type(OPTIMIZERS[name](nn.Linear(2, 3), 1)) for name in DEFAULTS]
    assert made == KINDS
    assert {type(make(small(), 1)) for make in OPTIMIZERS.values()} == set(KINDS)


@pytest.mark.parametrize("optimizer", [*DEFAULTS, "sgd-nesterov", "adamw-all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_wrong_step_shows(optimizer: str, dtype: torch.dtype) -> None:
    """The comparison can fail: with steps too long by a twentieth, it does."""
    relative = float32_bound(12) if dtype == torch.float32 else EXACT
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], dtype)
    for group in twins.optimizer.param_groups:
        group["lr"] *= 1.05
    for _ in range(12):
        twins.train(*twins.batch())
    for group in twins.optimizer.param_groups:
        group["lr"] /= 1.05
    with pytest.raises(AssertionError, match="off by"):
        twins.compare(relative)


def test_on_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    relative = EXACT if dtype == torch.float64 else float32_bound(5)
    for case in LOSSES.values():
        Twins(case, OPTIMIZERS["sgd"], dtype).check(5, relative)
    for make_optimizer in OPTIMIZERS.values():
        Twins(LOSSES["ce"], make_optimizer, dtype).check(5, relative)


@pytest.mark.parametrize("loss", ["ce", "ce-all", "probabilities-all", "mse", "bce", "nll"])
@pytest.mark.parametrize("outputs", [1, 2, 16, 37, 64, 65])
def test_many_rows_and_any_number_of_outputs(isa: str, loss: str, outputs: int) -> None:
    """More rows than are summed at a time, fewer and more outputs than a vector has numbers."""
    case = LOSSES[loss]
    if case.make().state_dict() or "all" in loss:  # a weight for each class
        options = {"ignore_index": 0} if case.target == "classes" else {}
        weight = torch.rand(outputs).tolist()
        case = case._replace(make=lambda: cross_entropy(weight, label_smoothing=0.2, **options))
    twins = Twins(case, model=FusedMLP([11, 8, outputs], activation="tanh", dtype=torch.float64))
    twins.check(3, EXACT, 150)


def gradient_twins(case: LossCase, dtype: torch.dtype, predictions: Tensor) -> Twins:
    """Twins whose model gives these predictions [rows, outputs] for the identity, and whose
    momentum is after a step the loss's gradient."""
    rows, outputs = predictions.shape
    model = nn.Sequential(nn.Linear(rows, outputs, bias=False, dtype=dtype))
    with torch.no_grad():
        model[0].weight.copy_(predictions.t())
    return Twins(case, sgd(lr=1.0, momentum=0.5), dtype, model)


def test_every_loss_of_any_size(isa: str, dtype: torch.dtype) -> None:
    """Its value and its gradient: parts of 64 rows, and vectors of 4 to 16 numbers."""
    for name, case in LOSSES.items():
        has_five = bool(case.make().state_dict()) or "weight" in name or "all" in name
        for outputs in (CLASSES,) if has_five else (1, CLASSES, 16, 37):
            for rows in (1, 15, 16, 17, 31, 32, 33, 65, 150):
                print(name, outputs, rows)  # pytest shows what it was that failed
                twins = gradient_twins(case, dtype, torch.randn(rows, outputs, dtype=dtype))
                y = target(case.target, (rows, outputs), dtype)
                relative = EXACT
                if dtype == torch.float32:
                    relative = float32_bound(1, [rows, outputs], rows)
                assert_close(*twins.train(torch.eye(rows, dtype=dtype), y), relative, "loss")
                twins.compare(relative)


# Those of each element alone; of the others a row's elements depend on each other.
ELEMENTWISE = {
    name: case
    for name, case in LOSSES.items()
    if not isinstance(case.make(), (nn.CrossEntropyLoss, nn.NLLLoss))
}
# Options with which a training would soon be one of NaN.
FRAGILE = {
    "smooth-l1-inf": LossCase(lambda: nn.SmoothL1Loss(beta=torch.inf), "numbers"),
    "poisson-rates-0": LossCase(
        lambda: nn.PoissonNLLLoss(log_input=False, full=True, eps=0.0), "counts"
    ),
}
UNUSUAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 0.3, 1.0, -1.0, 2.5]


def test_unusual_predictions_and_targets(isa: str, dtype: torch.dtype) -> None:
    """Each beside each, in every loss of elements: its value and its gradient are torch's.

    What is finite has gone through a dozen roundings, of exponentials and logarithms some, of
    terms that are no greater than the values' squares or the greatest result.
    """
    eps = torch.finfo(dtype).eps
    for name, case in (ELEMENTWISE | FRAGILE).items():
        if case.make().state_dict():
            continue  # of five
        twins = gradient_twins(case, dtype, torch.zeros(1, 1, dtype=dtype))
        variances = [0.0, 1e-7, 2.5, torch.inf, torch.nan] if "variances" in case.target else [1.0]
        for z, t, variance in itertools.product(UNUSUAL, UNUSUAL, variances):
            for model, optimizer in (
                (twins.model, twins.optimizer), (twins.plain, twins.plain_optimizer)
            ):  # fmt: skip
                model[0].weight.data.fill_(z)
                optimizer.state.clear()
            y: Any = torch.tensor([[t]], dtype=dtype)
            if "variances" in case.target:
                y = y, torch.full_like(y, variance)
            value = twins.train(torch.ones(1, 1, dtype=dtype), y)
            gradient = (
                o.state[m[0].weight]["momentum_buffer"]
                for m, o in (
                    (twins.model, twins.optimizer), (twins.plain, twins.plain_optimizer)
                )
            )  # fmt: skip
            square = max(abs(x) if math.isfinite(x) else 0 for x in (z, t, 1)) ** 2
            print(name, z, t, variance)
            for actual, expected in (value, gradient):
                torch.testing.assert_close(
                    actual, expected, rtol=12 * eps, atol=12 * eps * square, equal_nan=True
                )


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "one-layer": lambda: FusedMLP([7, 5]),
    "relu": lambda: FusedMLP(SIZES),
    "no-bias": lambda: FusedMLP(SIZES, activation="tanh", bias=False),
    "some-bias": lambda: nn.Sequential(nn.Linear(7, 6, bias=False), nn.SiLU(), nn.Linear(6, 5)),
    "output-activation": lambda: FusedMLP(SIZES, activation="silu", output_activation="sigmoid"),
    "leaky": lambda: FusedMLP(SIZES, activation=nn.LeakyReLU(0.2), output_activation=nn.ELU(0.7)),
    "gelus": lambda: nn.Sequential(
        nn.Linear(7, 8), nn.GELU(), nn.Linear(8, 9), nn.GELU(approximate="tanh"), nn.Linear(9, 5)
    ),
    "linear": lambda: FusedMLP(SIZES, activation=None, output_activation="identity"),
    "identities": lambda: FusedMLP(SIZES, activation="identity"),
    "named": lambda: nn.Sequential(
        OrderedDict(first=nn.Linear(7, 8), act=nn.ELU(), last=nn.Linear(8, 5))
    ),
    "one-activation-for-all": lambda: nn.Sequential(
        nn.Linear(7, 8), act := nn.Tanh(), nn.Linear(8, 9), act, nn.Linear(9, 5)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(7, 8), nn.Sequential(nn.ReLU()), nn.Sequential()),
        nn.Sequential(nn.Linear(8, 9)),
        nn.LeakyReLU(0.3),
        nn.Linear(9, 5),
    ),
    "dropout": lambda: FusedMLP(SIZES, dropout=0.3),
    "residual": lambda: FusedMLP([7, 9, 9, 9, 5], activation="tanh", residual=True),
    "nested-fused": lambda: nn.Sequential(FusedMLP([7, 8, 9]), nn.ReLU(), FusedMLP([9, 5])),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_every_kind_of_model(model: str, loss: str) -> None:
    Twins(LOSSES[loss], OPTIMIZERS["adam"], model=MODELS[model]().double()).check(20)


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_implementations_of_the_optimizers(flag: str, kind: type[Optimizer]) -> None:
    if flag not in inspect.signature(kind).parameters:
        pytest.skip("torch has none")
    options: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {}

    def make(model: nn.Module, factor: float) -> Optimizer:
        return kind(model.parameters(), lr=0.01, **{flag: True}, **options)  # type: ignore[call-arg]

    Twins(LOSSES["mse"], make).check(20)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_parameters_of_any_number_of_elements(isa: str, dtype: torch.dtype) -> None:
    """Whole vectors and their rests, beginning with none at all."""
    relative = EXACT if dtype == torch.float64 else float32_bound(2, [3, 33])
    for outputs in (0, 1, 15, 16, 17, 31, 32, 33):
        for make_optimizer in OPTIMIZERS.values():
            model = FusedMLP([3, outputs], dtype=dtype)
            Twins(LOSSES["mse"], make_optimizer, dtype, model).check(2, relative)


# Updates in the backward pass ---------------------------------------------------------------------

WIDTHS = [300, 17, 1, 7]


def deep(layers: int, first: int, outputs: int = 5) -> list[int]:
    """Sizes of so many layers, whose hidden widths are each of WIDTHS in turn."""
    return [23, *((WIDTHS * 2)[first : first + layers - 1]), outputs]


def deep_twins(
    optimizers: dict[str, MakeOptimizer], layers: int, dtype: torch.dtype, clips: bool
) -> Iterator[tuple[Twins, list[int]]]:
    """A network for each optimizer, of other sizes each time, and these."""
    for number, make_optimizer in enumerate(optimizers.values()):
        sizes = deep(layers, number % 4, (5, 1, 33)[number % 3])
        loss = LOSSES["mse" if number % 3 == 1 else "ce"]
        model = FusedMLP(sizes, activation="gelu", dtype=dtype)
        clip = 0.5 if clips and number % 5 == 0 else None
        yield Twins(loss, make_optimizer, dtype, model, max_grad_norm=clip), sizes


@pytest.mark.parametrize("rows", [1, 50, 400, 1000])
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_any_depth_width_and_batch(layers: int, rows: int) -> None:
    """More rows than are summed up at a time, a weight of one number, and no hidden layer."""
    for twins, _ in deep_twins(OPTIMIZERS, layers, torch.float64, clips=True):
        twins.check(2, EXACT, rows)


@pytest.mark.parametrize("rows", [1, 50, 400, 1000])
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_any_depth_width_and_batch_in_float32(layers: int, rows: int) -> None:
    """The parameters. Their state may hold a single number whose terms cancel."""
    for twins, sizes in deep_twins(SMOOTH, layers, torch.float32, clips=False):
        relative = float32_bound(2, sizes, rows)
        for _ in range(2):
            assert_close(*twins.train(*twins.batch(rows)), relative, "loss")
        twins.compare_parameters(relative)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-decay", "sgd-nesterov", "adam", "adamw-groups"])
def test_frozen_layers_of_a_deep_network(isa: str, optimizer: str, clip: float | None) -> None:
    model = FusedMLP(deep(6, 1), activation="gelu", dtype=torch.float64)
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], model=model, max_grad_norm=clip)
    count = len(list(model.parameters()))
    for frozen in ([0], [1], [0, 1], [0, 1, 2, 3, 4], [5, 8], range(0, count, 2),
                   range(1, count, 2), range(2, count), range(count - 1), [count - 1]):  # fmt: skip
        before = [p.detach().clone() for p in model.parameters()]
        for one in (twins.model, twins.plain):
            for index, p in enumerate(one.parameters()):
                p.requires_grad_(index not in frozen)
        twins.check(2, EXACT, 60)
        for index, p in enumerate(model.parameters()):
            assert torch.equal(before[index], p) == (index in frozen), (frozen, index)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_norm_never_reached_changes_nothing(dtype: torch.dtype, optimizer: str) -> None:
    """The gradients take another way to the same update."""
    sizes, rows = deep(3, 0), 400
    runs = []
    for norm in (None, 1e30):
        torch.manual_seed(0)
        model = FusedMLP(sizes, activation="gelu", dtype=dtype)
        step = TrainStep(
            model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1), max_grad_norm=norm
        )
        for _ in range(3):
            step(torch.randn(rows, sizes[0], dtype=dtype), torch.randint(sizes[-1], (rows,)))
        runs.append((model, step.optimizer))
    (model, used), (other, same) = runs
    relative = EXACT if dtype == torch.float64 else float32_bound(3, sizes, rows)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_close(a, b, relative, name)
    assert_same_optimizer(used, same, relative)


@pytest.mark.parametrize("optimizer", [*DEFAULTS, "sgd-momentum"])
def test_a_rate_of_zero_changes_no_bit(isa: str, dtype: torch.dtype, optimizer: str) -> None:
    model = FusedMLP(deep(3, 0), dtype=dtype)
    before = [p.detach().clone() for p in model.parameters()]
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1))
    step.optimizer.param_groups[0]["lr"] = 0.0
    step(torch.randn(400, 23, dtype=dtype), torch.randint(5, (400,)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# Subnormal numbers --------------------------------------------------------------------------------

# What decays by 0.6 a step ends at a subnormal number that rounding keeps for ever.
DECAYING: dict[str, MakeOptimizer] = {
    "sgd": sgd(1e-3, momentum=0.6),
    "sgd-nesterov": sgd(1e-3, momentum=0.6, nesterov=True, maximize=True),
    "adam": adam(lr=1e-4, betas=(0.6, 0.6)),
    "adam-amsgrad": adam(lr=1e-4, betas=(0.6, 0.6), amsgrad=True),
    "adamw": adam(AdamW, lr=1e-4, betas=(0.6, 0.6), eps=3e-11),
    "rmsprop": adaptive(RMSprop, 1e-4, alpha=0.6, momentum=0.6),
    "nadam": adaptive(NAdam, 1e-4, betas=(0.6, 0.6)),
    "radam": adaptive(RAdam, 1e-4, betas=(0.6, 0.8)),
    "adamax": adaptive(Adamax, 1e-4, betas=(0.6, 0.6)),
    "adadelta": adaptive(Adadelta, 1e-2, rho=0.6),
}


def subnormal(optimizer: Optimizer) -> dict[str, int]:
    """How many numbers of its state are, by their names; those without any are left out."""
    counts: dict[str, int] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            tiny = (value != 0) & (value.abs() < torch.finfo(value.dtype).smallest_normal)
            counts[name] = counts.get(name, 0) + int(tiny.sum())
    return {name: count for name, count in counts.items() if count}


def with_a_dead_unit(make_optimizer: MakeOptimizer, dtype: torch.dtype) -> Twins:
    """After one step of a network whose second hidden unit gets no gradient from then on."""
    model = FusedMLP([7, 19, 5], activation="gelu", dtype=dtype)
    twins = Twins(LOSSES["ce"], make_optimizer, dtype, model)
    twins.train(*twins.batch())
    with torch.no_grad():
        for model in (twins.model, twins.plain):
            model[0].bias[1] = -1e6
    return twins


@pytest.mark.sweep
@pytest.mark.parametrize("optimizer", DECAYING)
def test_moments_end_at_zero(dtype: torch.dtype, optimizer: str) -> None:
    twins = with_a_dead_unit(DECAYING[optimizer], dtype)
    x, y = twins.batch(50)
    sides = [copy.deepcopy((twins.model, twins.step)) for _ in _C.available_isas()]
    for _ in range(2000):
        plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x[:5], y[:5])
    assert subnormal(twins.plain_optimizer)
    for isa, (_, step) in zip(_C.available_isas(), sides, strict=True):
        with forced(isa):
            step.fit((x, y), 5, epochs=200)
        assert subnormal(step.optimizer) == {}, isa
        dead = step.optimizer.state[step.model[0].weight]  # type: ignore[index]
        for name in dead.keys() & {"momentum_buffer", "exp_avg", "square_avg"}:
            assert not dead[name][1].any()
            assert dead[name][0].all()


@pytest.mark.sweep
@pytest.mark.parametrize("optimizer", DECAYING)
def test_zeros_in_place_of_subnormals_change_nothing_else(
    isa: str, dtype: torch.dtype, optimizer: str
) -> None:
    """Step by step on the way there, over the edge and beyond."""
    twins = with_a_dead_unit(DECAYING[optimizer], dtype)
    edge = 1450 if dtype == torch.float64 else 200
    relative = EXACT if dtype == torch.float64 else float32_bound(edge)
    for _ in range(edge):
        twins.train(*twins.batch())
    assert subnormal(twins.optimizer) == {}
    twins.compare(relative)


def test_a_tiny_eps_keeps_subnormal_squares(isa: str, dtype: torch.dtype) -> None:
    """Beside it their roots matter: the state is torch's, to rounding among subnormals.

    That is half of their spacing for each of at most two roundings a step, ours and torch's, which
    decay by 0.6 a step: 2 · 0.5 · 2 / 0.4 spacings at most.
    """
    twins = with_a_dead_unit(adam(lr=1e-6, betas=(0.6, 0.6), eps=1e-30), dtype)
    x, y = twins.batch()
    for _ in range(1500 if dtype == torch.float64 else 230):
        twins.train(x, y)
    kept = subnormal(twins.optimizer)
    assert kept.keys() == subnormal(twins.plain_optimizer).keys()
    assert {"exp_avg", "exp_avg_sq"} <= kept.keys()
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    weights = (model[0].weight for model in (twins.model, twins.plain))
    ours, theirs = (
        o.state[w] for o, w in zip((twins.optimizer, twins.plain_optimizer), weights, strict=True)
    )
    for name in ("exp_avg", "exp_avg_sq"):
        off = (ours[name][1].double() - theirs[name][1].double()).abs().max()
        assert off <= 5 * spacing, f"{name}: {off / spacing} spacings"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_moments_that_are_not_finite_stay(
    isa: str, dtype: torch.dtype, optimizer: str, value: float
) -> None:
    twins = Twins(LOSSES["ce"], DECAYING[optimizer], dtype)
    twins.train(*twins.batch())
    name = "momentum_buffer" if optimizer == "sgd" else "exp_avg"
    for o in (twins.optimizer, twins.plain_optimizer):
        o.state[o.param_groups[0]["params"][-1]][name][2] = value  # of the last bias: no gradient
    twins.train(*twins.batch())  # of another number than itself depends on it until now
    for o in (twins.optimizer, twins.plain_optimizer):
        assert not o.state[o.param_groups[0]["params"][-1]][name][2].isfinite()
    twins.compare(EXACT if dtype == torch.float64 else float32_bound(2))


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("loss", ["ce", "probabilities-all", "mse", "bce-all-sum", "gaussian"])
def test_layouts_in_memory(loss: str, layout: Layout) -> None:
    twins = Twins(LOSSES[loss])
    for _ in range(3):
        x, y = twins.batch()
        if isinstance(y, tuple):
            y = layout(y[0]), y[1] if layout is windows else layout(y[1])  # else negative
        else:
            y = y.repeat_interleave(2)[::2] if y.dtype == torch.int64 else layout(y)
        assert_close(*twins.train(layout(x), y), EXACT, "loss")
    twins.compare()


@pytest.mark.parametrize("rows", [(2, 3), (2, 1, 4), ()])
def test_more_dimensions_and_fewer(rows: tuple[int, ...]) -> None:
    for loss, case in ELEMENTWISE.items():
        twins = Twins(case)
        shape = (*rows, SIZES[0])
        for _ in range(3):
            x = torch.randn(shape, dtype=torch.float64)
            y = target(case.target, (*rows, CLASSES), torch.float64)
            assert_close(*twins.train(x, y), EXACT, loss)
        twins.compare()


@pytest.mark.parametrize("loss", ["ce-weight", "ce-smoothing", "probabilities-all", "nll"])
def test_cross_entropy_of_a_single_row(loss: str) -> None:
    twins = Twins(LOSSES[loss])
    for _ in range(3):
        x = torch.randn(SIZES[0], dtype=torch.float64)
        y = target(LOSSES[loss].target, (CLASSES,), torch.float64)
        assert_close(*twins.train(x, y), EXACT, "loss")
    twins.compare()


def test_cross_entropy_does_not_take_the_wrong_dimension_for_classes() -> None:
    """torch has the classes in dimension 1, which is not the layer's output in 3 dimensions."""
    twins = Twins(LOSSES["probabilities"])
    x, y = twins.batch(2, 4)
    with pytest.raises(ValueError, match="one or two dimensions"):
        twins.step(x, y)
    with pytest.raises(ValueError, match="one or two dimensions"):
        twins.step(x, y.argmax(-1))


def test_uint8_classes() -> None:
    twins = Twins(LossCase(lambda: cross_entropy(ignore_index=255), "classes"))
    for _ in range(3):
        x, y = twins.batch()
        y = y.to(torch.uint8)
        y[3] = 255
        assert_close(*twins.train(x, y), EXACT, "loss")
    twins.compare()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", ["sgd-nesterov-decay", "adam-decay"])
def test_a_batch_without_rows(loss: str, optimizer: str) -> None:
    twins = Twins(LOSSES[loss], OPTIMIZERS[optimizer])
    twins.check(2, EXACT, 0)
    assert twins.step.correct in (0, None)
    twins.check(2)


@pytest.mark.parametrize("smoothing", [0, 0.1, None])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weight"])
def test_all_rows_ignored(
    smoothing: float | None, reduction: str, weight: list[float] | None
) -> None:
    def make() -> nn.Module:
        if smoothing is None:
            return nn.NLLLoss(weight and torch.tensor(weight), reduction=reduction)
        return cross_entropy(weight, label_smoothing=smoothing, reduction=reduction)

    twins = Twins(LossCase(make, "classes"), OPTIMIZERS["adam"])
    twins.check(2)
    x, y = twins.batch()
    actual, expected = twins.train(x, y.fill_(-100))
    assert actual.isnan() == (reduction == "mean")
    assert_close(actual, expected, 0, "loss")
    assert twins.step.correct == 0
    twins.compare()


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_classes_without_any_weight(kind: type[nn.Module]) -> None:
    twins = Twins(LossCase(lambda: kind(torch.tensor([0.0, *WEIGHT[1:]])), "classes"))
    x, y = twins.batch()
    actual, expected = twins.train(x, y.zero_())
    assert actual.isnan()
    assert expected.isnan()
    twins.compare()


@pytest.mark.parametrize("loss", ["ce", "ce-smoothing", "probabilities-all", "mse", "bce-all-sum"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam-amsgrad"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_a_loss_that_is_not_finite(isa: str, loss: str, optimizer: str, value: float) -> None:
    """It is returned, and what becomes of the parameters is what becomes of them in torch.

    Of 1e200 the loss is finite but for mse, and what the gradients' squares overflow in is not.
    """
    twins = Twins(LOSSES[loss], OPTIMIZERS[optimizer], max_grad_norm=2.0)
    x, y = twins.batch()
    x[2, 3] = value
    for _ in range(2):
        actual, expected = twins.train(x, y)
        assert_close(actual, expected, EXACT, "loss")
        twins.compare()
    assert value == 1e200 or not actual.isfinite()


@pytest.mark.parametrize("loss", ["ce", "ce-smoothing", "probabilities-all", "bce", "bce-all-sum"])
def test_extreme_predictions(isa: str, dtype: torch.dtype, loss: str) -> None:
    """Nothing overflows that does not in torch: the model passes its input on."""
    model = FusedMLP([CLASSES, CLASSES], bias=False, dtype=dtype)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(CLASSES))
    twins = Twins(LOSSES[loss], lambda m, factor: SGD(m.parameters(), 1e-6), dtype, model)
    _, y = twins.batch(6)
    scales = torch.tensor([1e4, -1e4, 300.0, 90.0, 1e-30, 0.0], dtype=dtype)
    x = scales[:, None] * torch.linspace(-1, 1, CLASSES, dtype=dtype)
    # Twenty roundings, each of the size of the greatest prediction.
    assert_close(*twins.train(x, y), 20 * torch.finfo(dtype).eps, "loss")
    twins.compare(20 * torch.finfo(dtype).eps)


# step.correct -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_correct_is_counted_by_argmax(kind: type[nn.Module]) -> None:
    twins = Twins(LossCase(lambda: kind(torch.tensor(WEIGHT), ignore_index=1), "classes"))
    assert twins.step.correct is None
    for rows in (1, 9, 200):
        x, y = twins.batch(rows)
        predicted = twins.model(x).argmax(1)
        twins.step(x, y)
        assert twins.step.correct == int(((predicted == y) & (y != 1)).sum())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss()])
def test_correct_takes_the_first_of_equals_and_nan(loss: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    step = TrainStep(model, loss, SGD(model.parameters(), 0.0))
    x = torch.tensor([[1.0, 2, 2, 0], [3, 3, 3, 3], [0, 0, 0, 1]])
    for classes, correct in (([1, 0, 3], 3), ([2, 1, 3], 1), ([0, 2, 0], 0)):
        step(x, torch.tensor(classes))
        assert step.correct == correct
    # A row with a NaN makes the product's other numbers NaN as well: the first is taken.
    bad = torch.full((1, 4), torch.nan)
    for label in range(4):
        step(bad, torch.tensor([label]))
        assert step.correct == int(bad.argmax(1) == label)


@pytest.mark.parametrize("loss", ["probabilities", "mse", "bce", "kl", "gaussian"])
def test_correct_is_none_without_classes(loss: str) -> None:
    twins = Twins(LOSSES[loss])
    twins.step(*twins.batch())
    assert twins.step.correct is None


# The user's objects are the truth -----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_and_plain_loops_alternate(optimizer: str) -> None:
    """Whoever comes first makes the optimizer's state, and the other goes on with it."""
    for offset in (0, 1):
        twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer])
        for number in range(30):
            x, y = twins.batch()
            expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, y)
            if (number // 3 + offset) % 2:
                actual = plain_step(twins.model, twins.loss, twins.optimizer, x, y)
            else:
                actual = twins.step(x, y)
            assert_close(actual, expected, EXACT, f"loss of step {number}")
        twins.compare()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_checkpoints_go_to_and_from_plain_torch(optimizer: str) -> None:
    twins = Twins(LOSSES["bce"], OPTIMIZERS[optimizer])
    twins.check(10)
    fresh = Twins(LOSSES["bce"], OPTIMIZERS[optimizer])
    fresh.model.load_state_dict(through_a_file(twins.plain.state_dict()))
    fresh.optimizer.load_state_dict(through_a_file(twins.plain_optimizer.state_dict()))
    fresh.plain.load_state_dict(through_a_file(twins.model.state_dict()))
    fresh.plain_optimizer.load_state_dict(through_a_file(twins.optimizer.state_dict()))
    fresh.check(10)


def test_a_state_that_is_missing_is_made_as_the_constructor_makes_it() -> None:
    for make_optimizer in OPTIMIZERS.values():
        twins = Twins(LOSSES["ce"], make_optimizer)
        twins.optimizer.state.clear()
        twins.check(2)


def test_a_checkpoint_loaded_midway_acts_at_once() -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS["adam-all"])
    twins.check(3)
    sides = [(twins.model, twins.optimizer), (twins.plain, twins.plain_optimizer)]
    saved = [copy.deepcopy((m.state_dict(), o.state_dict())) for m, o in sides]
    twins.check(3)
    for (model, optimizer), (weights, state) in zip(sides, saved, strict=True):
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    twins.check(3)


# What an option is changed to; any other is left as it is.
OTHERWISE = {
    "betas": (0.7, 0.8), "eps": 1e-2, "alpha": 0.8, "rho": 0.7, "lr_decay": 0.3,
    "momentum_decay": 0.05, "decoupled_weight_decay": True,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", [*DEFAULTS, "sgd-momentum"])
def test_options_act_at_once(optimizer: str) -> None:
    twins = Twins(LOSSES["ce-all"], OPTIMIZERS[optimizer])
    sides = (twins.optimizer, twins.plain_optimizer)
    changes: list[dict[str, Any]] = [
        {"lr": 0.003}, {"weight_decay": 0.1}, {"maximize": True}, {"lr": 0.0}, {"lr": 0.01},
    ]  # fmt: skip
    if optimizer.startswith("sgd"):
        changes += [{"momentum": 0.5}, {"nesterov": True}, {"momentum": 0, "nesterov": False}]
        changes += [{"momentum": 0.3, "dampening": 0.2}]
    group = twins.optimizer.param_groups[0]
    changes += [{key: value} for key, value in OTHERWISE.items() if key in group]
    for change in changes:
        for side in sides:
            side.param_groups[0].update(change)
        twins.check(2)
    weight = torch.rand(CLASSES, dtype=torch.float64)
    for loss in (twins.loss, twins.plain_loss):
        loss.reduction, loss.label_smoothing, loss.ignore_index = "sum", 0.0, 0
        loss.weight = weight
    twins.check(2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_is_a_tensor(kind: type[Optimizer]) -> None:
    rates: list[Tensor] = []

    def make(model: nn.Module, factor: float) -> Optimizer:
        rates.append(torch.tensor(0.01, dtype=torch.float64))
        return kind(model.parameters(), lr=rates[-1])

    twins = Twins(make_optimizer=make)
    twins.check(3)
    for rate in rates:
        rate.fill_(0.03)
    twins.check(3)


SCHEDULERS: dict[str, Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15),
    # which changes momentum and betas as well
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=20),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "sgd-groups", "adam-groups"])
def test_schedulers_act_at_once_and_do_not_warn(scheduler: str, optimizer: str) -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedulers = [SCHEDULERS[scheduler](o) for o in (twins.optimizer, twins.plain_optimizer)]
        for _ in range(15):
            twins.check(1)
            for one in schedulers:
                one.step()


@pytest.mark.parametrize("optimizer", [*DEFAULTS, "sgd-momentum"])
def test_frozen_parameters(optimizer: str) -> None:
    """Frozen, trained, frozen others: the state is that of torch, which passes them over."""
    twins = Twins(LOSSES["mse"], OPTIMIZERS[optimizer])
    for frozen in ([0], [0, 1, 2], [3], [5], [1, 4], [], [4, 5]):
        before = [p.detach().clone() for p in twins.model.parameters()]
        for model in (twins.model, twins.plain):
            for index, p in enumerate(model.parameters()):
                p.requires_grad_(index not in frozen)
        twins.check(3)
        after = list(twins.model.parameters())
        for index in frozen:
            assert torch.equal(before[index], after[index]), (frozen, index)


def test_with_everything_frozen_nothing_moves(isa: str) -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS["adam"])
    twins.model.requires_grad_(False)
    before = Snapshot(twins)
    x, y = twins.batch()
    assert_close(twins.step(x, y), twins.loss(twins.plain(x), y).detach(), EXACT, "loss")
    before.assert_unchanged()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_optimizer_of_some_parameters(clip: float | None) -> None:
    def make(model: nn.Module, factor: float) -> Optimizer:
        weights = [p for p in model.parameters() if p.dim() == 2]
        for p in model.parameters():
            p.requires_grad_(p.dim() == 2)
        return Adam(weights[1:] if clip is None else weights, 0.01)

    Twins(LOSSES["ce"], make, max_grad_norm=clip).check(10)


def test_the_gradients_of_no_optimizer_are_not_formed() -> None:
    twins = Twins(make_optimizer=lambda m, factor: SGD([m[2].weight], 0.1))
    twins.check(3)
    assert all(p.grad is None for p in twins.model.parameters())


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_groups_may_be_added(kind: type[Optimizer]) -> None:
    options = {"momentum": 0.9} if kind is SGD else {}
    twins = Twins(make_optimizer=lambda m, factor: kind(m[4].parameters(), lr=0.01, **options))
    twins.check(4)
    for model, optimizer in (
        (twins.model, twins.optimizer),
        (twins.plain, twins.plain_optimizer),
    ):
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.02})
    twins.check(4)


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1e6, torch.inf])
@pytest.mark.parametrize("optimizer", ["sgd-nesterov-decay", "sgd-maximize", "adam-all"])
def test_max_grad_norm(norm: float, optimizer: str) -> None:
    Twins(LOSSES["mse"], OPTIMIZERS[optimizer], max_grad_norm=norm).check(10)


def test_max_grad_norm_matters() -> None:
    """The last test could fail: clipped and unclipped steps differ."""
    torch.manual_seed(0)
    clipped = Twins(LOSSES["mse"], max_grad_norm=0.1)
    torch.manual_seed(0)
    free = Twins(LOSSES["mse"])
    x, y = free.batch()
    clipped.step(x, y)
    free.step(x, y)
    assert not torch.equal(clipped.model[0].weight, free.model[0].weight)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan")])
def test_a_norm_has_to_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match=r"max_grad_norm above 0, got"):
        Twins(max_grad_norm=bad)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_scalars_have_torchs_dtype(default_dtype: None, default: torch.dtype, fused: bool) -> None:
    torch.set_default_dtype(default)
    for kind in KINDS:
        options = {"fused": fused} if "fused" in inspect.signature(kind).parameters else {}
        twins = Twins(make_optimizer=adaptive(kind, 1e-3, **options))
        twins.optimizer.state.clear()
        twins.check(20)


def test_gradients_are_left_alone() -> None:
    twins = Twins()
    twins.step(*twins.batch())
    assert all(p.grad is None for p in twins.model.parameters())
    sentinels = [torch.full_like(p, 3.0) for p in twins.model.parameters()]
    for p, sentinel in zip(twins.model.parameters(), sentinels, strict=True):
        p.grad = sentinel
    twins.step(*twins.batch())
    for p, sentinel in zip(twins.model.parameters(), sentinels, strict=True):
        assert p.grad is sentinel
        assert torch.equal(sentinel, torch.full_like(p, 3.0))


def test_a_graph_from_before_the_step_is_not_walked_with_other_numbers() -> None:
    twins = Twins()
    x, y = twins.batch()
    output = twins.model(x)
    versions = [p._version for p in twins.model.parameters()]
    twins.step(x, y)
    assert all(p._version > v for p, v in zip(twins.model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_frozen_parameters_version_stays() -> None:
    twins = Twins()
    twins.model[0].requires_grad_(False)
    before = [p._version for p in twins.model.parameters()]
    twins.step(*twins.batch())
    raised = [p._version > v for p, v in zip(twins.model.parameters(), before, strict=True)]
    assert raised == [False, False, True, True, True, True]


def test_parameters_stay_the_same_objects_in_the_same_memory() -> None:
    twins = Twins(make_optimizer=OPTIMIZERS["adam"])
    before = [(id(p), p.data_ptr()) for p in twins.model.parameters()]
    twins.step(*twins.batch())
    kept = {id(v): v.data_ptr() for s in twins.optimizer.state.values() for v in s.values()}
    twins.step(*twins.batch())
    assert [(id(p), p.data_ptr()) for p in twins.model.parameters()] == before
    assert kept == {id(v): v.data_ptr() for s in twins.optimizer.state.values() for v in s.values()}


def test_the_loss_returned_is_a_plain_number() -> None:
    twins = Twins(dtype=torch.float32)
    x, y = twins.batch()
    first = twins.step(x, y)
    value = first.item()
    twins.step(x, y)
    assert first.item() == value  # not overwritten by the next
    assert first.dtype == torch.float32
    assert first.dim() == 0
    assert first.grad_fn is None
    assert not first.requires_grad


def test_a_replaced_parameter_with_the_optimizer_remade() -> None:
    twins = Twins(make_optimizer=OPTIMIZERS["adam"])
    twins.check(3)
    for model, optimizer in ((twins.model, twins.optimizer), (twins.plain, twins.plain_optimizer)):
        torch.manual_seed(5)
        model[2] = nn.Linear(19, 13, dtype=torch.float64)
        optimizer.state.clear()
        optimizer.param_groups[0]["params"] = list(model.parameters())
    twins.check(3)


def test_data_replaced_and_activations_exchanged() -> None:
    twins = Twins()
    twins.check(3)
    for model in (twins.model, twins.plain):
        model[1] = nn.LeakyReLU(0.4)
        model[0].weight.data = torch.ones(SIZES[1], SIZES[0], dtype=torch.float64)
    twins.check(3)


def test_a_model_moved_to_another_dtype_without_state_is_handled() -> None:
    twins = Twins(dtype=torch.float32)
    twins.check(2, float32_bound(2))
    for model in (twins.model, twins.plain):
        model.double()
    twins.plain.load_state_dict(twins.model.state_dict())
    twins.dtype = torch.float64
    twins.check(3)


# Contexts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam-amsgrad"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_inside_contexts(context: Callable[[], Any], optimizer: str) -> None:
    """A step does not ask autograd; what it leaves is fit for a plain loop after the context."""
    twins = Twins(make_optimizer=OPTIMIZERS[optimizer])
    for _ in range(3):
        x, y = twins.batch()
        expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, y)
        with context():
            actual = twins.step(x.clone(), y.clone())
        assert_close(actual, expected, EXACT, "loss")
    twins.compare()
    x, y = twins.batch()
    actual = plain_step(twins.model, twins.loss, twins.optimizer, x, y)
    expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, y)
    assert_close(actual, expected, EXACT, "loss")
    twins.compare()


def test_the_input_as_its_own_target_and_as_a_parameter() -> None:
    """Batches are read before anything is written."""
    twins = Twins(LOSSES["mse"], model=FusedMLP([7, 7], dtype=torch.float64))
    for _ in range(3):
        weight = twins.model[0].weight.detach()
        actual = twins.step(weight, weight)
        x = twins.plain[0].weight.detach().clone()
        expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, x)
        assert_close(actual, expected, EXACT, "loss")
    twins.compare()


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(
    ("loss", "optimizer", "dtype"),
    [
        ("ce", "sgd", torch.float32),
        ("ce", "sgd-momentum", torch.float32),
        ("probabilities", "adam-amsgrad", torch.float64),
        ("mse", "adamw", torch.float32),
        ("bce", "sgd-nesterov-decay", torch.float64),
        ("nll", "sgd-momentum", torch.float32),
        ("gaussian-full-sum", "sgd", torch.float64),
    ],
)
def test_bits_do_not_depend_on_threads(
    isa: str, loss: str, optimizer: str, dtype: torch.dtype, clip: float | None
) -> None:
    """Products, loss, norm and update are all large enough here to be divided among four."""
    runs = []
    for count in (1, 2, 3, 4, 7):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        model = FusedMLP([201, 803, 161], activation="gelu", dtype=dtype)
        case = LOSSES[loss]
        optimizer_ = OPTIMIZERS[optimizer](model, 1)
        step = TrainStep(model, case.make().to(dtype), optimizer_, max_grad_norm=clip)
        values: list[Any] = []
        for _ in range(2):
            x = torch.randn(130, 201, dtype=dtype)
            values += [step(x, target(case.target, (130, 161), dtype)), step.correct]
        state = [v for s in optimizer_.state.values() for v in s.values()]
        runs.append([*values, *(p.detach() for p in model.parameters()), *state])
    for count, run in zip((2, 3, 4, 7), runs[1:], strict=True):
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f"{count} threads"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_weight_changes_while_it_is_read(optimizer: str) -> None:
    """Weights are updated while others of the team may still multiply with them: many times."""
    runs = []
    for count in (1, 4):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        model = FusedMLP([129] + [97] * 6 + [41], dtype=torch.float32)
        step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1))
        for _ in range(40):
            step(torch.randn(120, 129), torch.randint(41, (120,)))
        runs.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_a_step_that_is_divided_is_right(loss: str) -> None:
    torch.set_num_threads(2)
    model = FusedMLP([201, 803, 161], dtype=torch.float64)
    Twins(LOSSES[loss], OPTIMIZERS["adam"], model=model, max_grad_norm=0.1).check(3, EXACT, 130)


def test_steps_on_several_python_threads() -> None:
    torch.set_num_threads(2)

    def work(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        model = copy.deepcopy(models[seed])
        step = TrainStep(model, nn.CrossEntropyLoss(), Adam(model.parameters(), 0.01))
        losses = []
        for _ in range(10):
            x = torch.randn(64, 100, generator=generator)
            losses.append(step(x, torch.randint(50, (64,), generator=generator)))
        return [*losses, *(p.detach() for p in model.parameters())]

    models = [FusedMLP([100, 300, 50]) for _ in range(4)]
    expected = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(4)), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_gil_is_released() -> None:
    model = FusedMLP([1024] * 9)
    step = TrainStep(model, nn.MSELoss(), SGD(model.parameters(), 0.01))
    x = torch.randn(1024, 1024)
    step(x[:1], x[:1])
    assert lets_others_run(lambda: step(x, x))


# Refused at construction --------------------------------------------------------------------------


def small(**options: Any) -> FusedMLP:
    return FusedMLP([4, 6, 6, 3], **options)


def build(
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    optimizer: Callable[[nn.Module], Optimizer] = lambda m: SGD(m.parameters(), 0.1),
    prepare: Callable[[nn.Module], object] = lambda m: None,
) -> TrainStep:
    model = model or small()
    prepare(model)
    return TrainStep(model, loss or nn.CrossEntropyLoss(), optimizer(model))  # type: ignore[arg-type]


class OwnLoss(nn.CrossEntropyLoss):
    pass


class OwnSGD(SGD):
    pass


class Doubled(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input)
        return 2 * output


class DoubledFused(FusedMLP):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def nothing(*args: Any) -> None:
    """A hook that does nothing: that it would be called is enough."""


def share(model: nn.Module) -> None:
    model[2].weight = model[0].weight  # type: ignore[index]


def hooked_loss() -> nn.Module:
    loss = nn.MSELoss()
    loss.register_forward_hook(nothing)
    return loss


def hooked_optimizer(when: str) -> Callable[[nn.Module], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        optimizer = Adam(model.parameters())
        getattr(optimizer, f"register_step_{when}_hook")(nothing)
        return optimizer

    return make


def own_forward(model: nn.Module) -> None:
    model.forward = lambda input: input  # type: ignore[method-assign]


def transpose_memory(model: nn.Module) -> None:
    weight = model[0].weight  # type: ignore[index]
    weight.data = weight.data.t().contiguous().t()


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], TrainStep]]] = {
    "module": (TypeError, "FusedMLP or an nn.Sequential", lambda: build(nn.Bilinear(4, 4, 3))),
    "subclass": (TypeError, "Doubled", lambda: build(Doubled(nn.Linear(4, 3)))),
    "fused-subclass": (TypeError, "DoubledFused", lambda: build(DoubledFused([4, 3]))),
    "own-forward": (ValueError, "forward of its own", lambda: build(prepare=own_forward)),
    "nested-own-forward": (
        ValueError, "forward of its own",
        lambda: build(nn.Sequential(small()), prepare=lambda m: own_forward(m[0])),
    ),
    "alpha-dropout": (
        ValueError, r"module 1, AlphaDropout.*not fused",
        lambda: build(nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout())),
    ),
    "nested-alpha-dropout": (
        ValueError, r"module 1\.0, AlphaDropout.*not fused",
        lambda: build(nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.AlphaDropout()))),
    ),
    "nested-subclass": (
        ValueError, "Doubled", lambda: build(nn.Sequential(Doubled(nn.Linear(4, 3))))
    ),
    "no-layer": (
        ValueError, "no linear layer",
        lambda: build(
            nn.Sequential(nn.Identity()), optimizer=lambda m: SGD([torch.zeros(1)], 0.1)
        ),
    ),
    "inplace-dropout": (
        ValueError, "module 1 works in place",
        lambda: build(nn.Sequential(nn.Linear(4, 3), nn.Dropout(inplace=True))),
    ),
    "forward-hook": (
        ValueError, "module 2 has a hook",
        lambda: build(prepare=lambda m: m[2].register_forward_hook(nothing)),
    ),
    "forward-pre-hook": (
        ValueError, "module 0 has a hook",
        lambda: build(prepare=lambda m: m[0].register_forward_pre_hook(nothing)),
    ),
    "backward-hook": (
        ValueError, "module 1 has a hook",
        lambda: build(prepare=lambda m: m[1].register_full_backward_hook(nothing)),
    ),
    "nested-hook": (
        ValueError, "module 0 has a hook",
        lambda: build(
            nn.Sequential(small()), prepare=lambda m: m[0].register_forward_hook(nothing)
        ),
    ),
    "model-hook": (
        ValueError, "hook", lambda: build(prepare=lambda m: m.register_forward_hook(nothing))
    ),
    "model-backward-hook": (
        ValueError, "hook",
        lambda: build(prepare=lambda m: m.register_full_backward_pre_hook(nothing)),
    ),
    "parameter-hook": (
        ValueError, "parameter has a hook",
        lambda: build(prepare=lambda m: m[0].weight.register_hook(lambda g: g)),
    ),
    "accumulate-hook": (
        ValueError, "parameter has a hook",
        lambda: build(
            prepare=lambda m: m[2].bias.register_post_accumulate_grad_hook(nothing)
        ),
    ),
    "parametrized": (
        ValueError, "not fused",
        lambda: build(prepare=lambda m: nn.utils.parametrizations.weight_norm(m[0])),
    ),
    "shared-weight": (
        ValueError, "share a parameter", lambda: build(FusedMLP([6, 6, 6, 3]), prepare=share)
    ),
    "shared-layer": (
        ValueError, "share a parameter",
        lambda: build(nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer)),
    ),
    "half": (ValueError, "float16", lambda: build(small(dtype=torch.float16))),
    "bfloat16": (ValueError, "bfloat16", lambda: build(small(dtype=torch.bfloat16))),
    "meta": (ValueError, "on meta", lambda: build(small(device="meta"))),
    "mixed": (
        ValueError, "dtype", lambda: build(prepare=lambda m: m[2].double())
    ),
    "not-contiguous": (ValueError, "contiguous", lambda: build(prepare=transpose_memory)),
    "loss": (TypeError, "HingeEmbeddingLoss", lambda: build(loss=nn.HingeEmbeddingLoss())),
    "loss-subclass": (TypeError, "OwnLoss", lambda: build(loss=OwnLoss())),
    "loss-function": (
        TypeError, "function", lambda: build(loss=nn.functional.mse_loss)  # type: ignore[arg-type]
    ),
    "loss-hook": (ValueError, "loss has a hook", lambda: build(loss=hooked_loss())),
    "reduction": (ValueError, "'none'", lambda: build(loss=nn.MSELoss(reduction="none"))),
    "reduction-kl": (
        ValueError, "'mean', 'sum' or 'batchmean', got 'none'",
        lambda: build(loss=nn.KLDivLoss(reduction="none")),
    ),
    "batchmean": (
        ValueError, "'mean' or 'sum', got 'batchmean'",
        lambda: build(loss=nn.MSELoss(reduction="batchmean")),
    ),
    "beta": (
        ValueError, "smooth_l1_loss does not support negative values for beta",
        lambda: build(loss=nn.SmoothL1Loss(beta=-0.1)),
    ),
    "delta": (
        ValueError, "huber_loss does not support non-positive values for delta",
        lambda: build(loss=nn.HuberLoss(delta=0.0)),
    ),
    "delta-nan": (
        ValueError, "huber_loss does not support non-positive values for delta",
        lambda: build(loss=nn.HuberLoss(delta=torch.nan)),
    ),
    "smoothing": (
        ValueError, r"label_smoothing.*1\.5",
        lambda: build(loss=nn.CrossEntropyLoss(label_smoothing=1.5)),
    ),
    "optimizer": (
        TypeError, "Rprop", lambda: build(optimizer=lambda m: torch.optim.Rprop(m.parameters()))
    ),
    "sparse-optimizer": (
        TypeError, "SparseAdam",
        lambda: build(optimizer=lambda m: torch.optim.SparseAdam(list(m.parameters()))),
    ),
    "optimizer-subclass": (
        TypeError, "OwnSGD", lambda: build(optimizer=lambda m: OwnSGD(m.parameters(), 0.1))
    ),
    "pre-hook": (ValueError, "step hook", lambda: build(optimizer=hooked_optimizer("pre"))),
    "post-hook": (ValueError, "step hook", lambda: build(optimizer=hooked_optimizer("post"))),
    "capturable": (
        ValueError, "capturable",
        lambda: build(optimizer=lambda m: Adam(m.parameters(), capturable=True)),
    ),
    "differentiable": (
        ValueError, "differentiable",
        lambda: build(optimizer=lambda m: SGD(m.parameters(), 0.1, differentiable=True)),
    ),
    "foreign": (
        ValueError, r"shape \[3, 2\] that is not the model's",
        lambda: build(
            optimizer=lambda m: SGD([*m.parameters(), nn.Parameter(torch.zeros(3, 2))], 0.1)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_construction(name: str) -> None:
    error, message, make = REFUSED[name]
    with pytest.raises(error, match=message) as caught:
        make()
    assert str(caught.value).startswith("fastmlp.TrainStep: ")


def test_hooks_that_are_no_more_do_not_matter() -> None:
    def without(model: nn.Module) -> None:
        parameter = model[0].weight  # type: ignore[index]
        for handle in (
            parameter.register_hook(lambda g: g),
            parameter.register_post_accumulate_grad_hook(nothing),
            model.register_forward_hook(nothing),
            model[1].register_full_backward_hook(nothing),  # type: ignore[index]
        ):
            handle.remove()

    assert build(prepare=without)(torch.randn(2, 4), torch.tensor([1, 2])).isfinite()


def test_a_model_loaded_as_a_whole() -> None:
    """Its parameters come with empty dicts of hooks."""
    file = io.BytesIO()
    saved = small()
    torch.save(saved, file)
    file.seek(0)
    model = torch.load(file, weights_only=False)
    x, y = torch.randn(2, 4), torch.tensor([1, 2])
    assert torch.equal(build(model)(x, y), build(saved)(x, y))
    assert torch.equal(model[0].weight, saved[0].weight)


def test_a_copy_is_a_step_of_its_own() -> None:
    twins = Twins(make_optimizer=OPTIMIZERS["adam"])
    twins.step(*twins.batch())
    before = Snapshot(twins)
    step = copy.deepcopy(twins.step)
    x, y = twins.batch()
    value = step(x, y)
    before.assert_unchanged()
    assert torch.equal(value, twins.step(x, y))
    step.optimizer.register_step_post_hook(nothing)
    with pytest.raises(RuntimeError, match="hook"):
        step(x, y)


def test_a_global_module_hook_is_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(nothing)
    try:
        with pytest.raises(ValueError, match="global module hook"):
            build()
    finally:
        handle.remove()


def test_a_global_optimizer_hook_is_refused() -> None:
    handle = register_optimizer_step_post_hook(nothing)
    try:
        with pytest.raises(ValueError, match="hook"):
            build()
    finally:
        handle.remove()


# Refused later ------------------------------------------------------------------------------------


class Snapshot:
    """All that a refused step must not touch."""

    def __init__(self, twins: Twins) -> None:
        self.twins = twins
        self.before = self._take()

    def _take(self) -> tuple[Any, ...]:
        parameters = [(p.detach().clone(), p._version) for p in self.twins.model.parameters()]
        state = {
            id(p): {k: copy.deepcopy(v) for k, v in values.items()}
            for p, values in self.twins.optimizer.state.items()
        }
        return parameters, state

    def assert_unchanged(self) -> None:
        torch.testing.assert_close(self._take(), self.before, rtol=0, atol=0, equal_nan=True)


Spoil = Callable[[Twins], "tuple[Tensor, Any] | None"]  # the batch to give, None: a right one


def call(*functions: Callable[[Twins], object]) -> Spoil:
    """Does these things to the twins, and leaves the batch alone."""

    def spoil(twins: Twins) -> None:
        for function in functions:
            function(twins)

    return spoil


def batch(
    x: Callable[[Tensor], Any] = lambda x: x, y: Callable[[Tensor], Any] = lambda y: y
) -> Spoil:
    """Gives these instead of the batch's input and target."""

    def spoil(twins: Twins) -> tuple[Any, Any]:
        right = twins.batch()
        return x(right[0]), y(right[1])

    return spoil


def replace_layer(twins: Twins) -> None:
    twins.model[2] = nn.Linear(19, 13, dtype=twins.dtype)


def replace_parameter(twins: Twins) -> None:
    twins.model[2].bias = nn.Parameter(torch.zeros(13, dtype=twins.dtype))


def share_later(twins: Twins) -> None:
    """Two layers of one weight, which the optimizer holds."""
    twins.model[2] = nn.Linear(19, 19, dtype=twins.dtype)
    twins.model[4] = nn.Linear(19, 5, dtype=twins.dtype)
    twins.model.insert(4, layer := nn.Linear(19, 19, dtype=twins.dtype))
    layer.weight = twins.model[2].weight
    twins.optimizer.param_groups[0]["params"] = list(twins.model.parameters())
    twins.optimizer.state.clear()


Errors = type[Exception] | tuple[type[Exception], ...]
LATER: dict[str, tuple[Errors, str, Spoil]] = {
    "layer-replaced": (RuntimeError, "not the model's", call(replace_layer)),
    "parameter-replaced": (RuntimeError, "not the model's", call(replace_parameter)),
    "layer-removed": (
        RuntimeError, "not the model's",
        call(lambda t: t.model.pop(3), lambda t: t.model.pop(2)),
    ),
    "layer-shared": (RuntimeError, "share", call(share_later)),
    "alpha-dropout": (
        RuntimeError, "AlphaDropout.*not fused",
        call(lambda t: t.model.__setitem__(1, nn.AlphaDropout())),
    ),
    "float": (RuntimeError, "differ in dtype", call(lambda t: t.model.float())),
    "half": (RuntimeError, "float32 or float64", call(lambda t: t.model.half())),
    "one-layer-moved": (RuntimeError, "differ in dtype", call(lambda t: t.model[2].float())),
    "meta": (RuntimeError, "CPU", call(lambda t: t.model.to("meta"))),
    "not-contiguous": (RuntimeError, "contiguous", call(lambda t: transpose_memory(t.model))),
    "module-hook": (
        RuntimeError, "hook", call(lambda t: t.model[2].register_forward_hook(nothing))
    ),
    "model-hook": (RuntimeError, "hook", call(lambda t: t.model.register_forward_hook(nothing))),
    "own-forward": (RuntimeError, "forward of its own", call(lambda t: own_forward(t.model))),
    "parameter-hook": (
        RuntimeError, "hook", call(lambda t: t.model[0].weight.register_hook(lambda g: g))
    ),
    "accumulate-hook": (
        RuntimeError, "hook",
        call(lambda t: t.model[0].bias.register_post_accumulate_grad_hook(nothing)),
    ),
    "loss-hook": (RuntimeError, "hook", call(lambda t: t.loss.register_forward_hook(nothing))),
    "optimizer-hook": (
        RuntimeError, "hook", call(lambda t: t.optimizer.register_step_post_hook(nothing))
    ),
    "reduction": (
        (RuntimeError, ValueError), "'none'",
        call(lambda t: setattr(t.loss, "reduction", "none")),
    ),
    "smoothing": (
        (RuntimeError, ValueError), "label_smoothing",
        call(lambda t: setattr(t.loss, "label_smoothing", -0.1)),
    ),
    "capturable": (
        RuntimeError, "capturable",
        call(lambda t: t.optimizer.param_groups[0].update(capturable=True)),
    ),
    "foreign": (
        RuntimeError, "not the model's",
        call(
            lambda t: t.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
        ),
    ),
    "class-too-great": (IndexError, "Target 5 is out of bounds", batch(y=lambda y: y.fill_(5))),
    "class-negative": (
        IndexError, "Target -1 is out of bounds", batch(y=lambda y: y.index_fill_(0, y[:1] * 0, -1))
    ),
    "probability-shape": (
        ValueError, r"\[9, 5\].*got \[9, 4\]", batch(y=lambda y: torch.rand(9, 4).double())
    ),
    "class-shape": (ValueError, r"\[9\].*got \[9, 1\]", batch(y=lambda y: y[:, None])),
    "class-rows": (ValueError, r"\[9\].*got \[8\]", batch(y=lambda y: y[:8])),
    "class-dtype": (RuntimeError, "Long or Byte.*Int", batch(y=lambda y: y.int())),
    "target-type": ((TypeError, RuntimeError), "Tensor", batch(y=lambda y: y.tolist())),
    "target-device": (RuntimeError, "CPU", batch(y=lambda y: y.to("meta"))),
    "input-features": (RuntimeError, r"\[9, 6\]", batch(x=lambda x: x[:, 1:])),
    "input-dimensions": (RuntimeError, "dimensions", batch(x=lambda x: x[0, 0])),
    "input-dtype": (RuntimeError, "dtype", batch(x=lambda x: x.float())),
    "input-half": (RuntimeError, "float32 or float64", batch(x=lambda x: x.half())),
    "input-type": ((TypeError, RuntimeError), "Tensor", batch(x=lambda x: x.numpy())),
    "input-sparse": (RuntimeError, "dense", batch(x=lambda x: x.to_sparse())),
    "input-device": (RuntimeError, "CPU", batch(x=lambda x: x.to("meta"))),
    "weight-device": (
        RuntimeError, "weight on the CPU",
        call(lambda t: setattr(t.loss, "weight", torch.ones(5, device="meta"))),
    ),
    "weight-of-classes": (
        RuntimeError, "weight tensor should be defined",
        call(lambda t: setattr(t.loss, "weight", torch.ones(4).double())),
    ),
}  # fmt: skip


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("name", LATER)
def test_refused_later(name: str, optimizer: str, trained: bool) -> None:
    error, message, spoil = LATER[name]
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer])
    if trained:
        twins.step(*twins.batch())
    right = twins.batch()
    given = spoil(twins) or right
    before = Snapshot(twins) if name != "meta" else None
    with pytest.raises(error, match=message):
        twins.step(*given)
    if before:
        before.assert_unchanged()


OF_ONE_BATCH = ("class-", "probability-", "target-", "input-", "weight-", "float")


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", [name for name in LATER if not name.startswith(OF_ONE_BATCH)])
def test_what_a_step_refuses_the_constructor_does(name: str, trained: bool) -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS["adam"])
    if trained:
        twins.step(*twins.batch())
    LATER[name][2](twins)
    before = Snapshot(twins) if name != "meta" else None
    with pytest.raises(ValueError, match=r"^fastmlp\.TrainStep: "):
        TrainStep(twins.model, twins.loss, twins.optimizer)
    if before:
        before.assert_unchanged()


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_constructor_changes_nothing(optimizer: str, trained: bool) -> None:
    twins = Twins(make_optimizer=OPTIMIZERS[optimizer])
    if trained:
        twins.step(*twins.batch())
    before = Snapshot(twins)
    TrainStep(twins.model, twins.loss, twins.optimizer)
    before.assert_unchanged()


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])
def test_state_of_another_dtype_is_refused(optimizer: str) -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], torch.float32)
    twins.step(*twins.batch())
    twins.model.double()
    before = Snapshot(twins)
    x, y = twins.batch()
    with pytest.raises(RuntimeError, match="dtype Float"):
        twins.step(x.double(), y)
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("optimizer", "option", "value", "state"),
    [
        ("adam", "amsgrad", True, "max_exp_avg_sq"),
        ("rmsprop", "momentum", 0.9, "momentum_buffer"),
        ("rmsprop", "centered", True, "grad_avg"),
    ],
)
def test_an_option_whose_state_is_missing_is_refused(
    optimizer: str, option: str, value: float, state: str
) -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer])
    twins.step(*twins.batch())
    twins.optimizer.param_groups[0][option] = value
    before = Snapshot(twins)
    with pytest.raises(RuntimeError, match=state):
        twins.step(*twins.batch())
    before.assert_unchanged()


def test_after_a_refusal_training_goes_on() -> None:
    twins = Twins(LOSSES["ce"], OPTIMIZERS["adam"])
    x, y = twins.batch()
    for bad in (y + CLASSES, y[:1], y.int()):
        with pytest.raises((IndexError, ValueError, RuntimeError)):
            twins.step(x, bad)
        twins.check(3)


def test_probabilities_know_no_ignored_class() -> None:
    """torch refuses the pair; so does the step, rather than ignore the option."""
    twins = Twins(LossCase(lambda: cross_entropy(ignore_index=1), "probabilities"))
    x, y = twins.batch()
    with pytest.raises(RuntimeError, match="ignore_index is not supported"):
        twins.plain_loss(twins.plain(x), y)
    before = Snapshot(twins)
    with pytest.raises((RuntimeError, ValueError), match="ignore_index"):
        twins.step(x, y)
    before.assert_unchanged()


def test_targets_are_not_broadcast() -> None:
    for case in ELEMENTWISE.values():
        twins = Twins(case)
        x, y = twins.batch()
        y, *variance = y if isinstance(y, tuple) else (y,)
        for bad in (y[:1], y[:, :1], y[0], y[None]):
            with pytest.raises(ValueError, match="like the model's output"):
                twins.step(x, (bad, *variance) if variance else bad)


def test_targets_of_a_whole_type_are_refused() -> None:
    for case in ELEMENTWISE.values():
        twins = Twins(case)
        if isinstance(twins.loss, nn.PoissonNLLLoss):
            continue
        x, y = twins.batch()
        before = Snapshot(twins)
        whole = torch.ones(ROWS, CLASSES, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="expected floating point targets, got Long"):
            twins.step(x, (whole, y[1]) if isinstance(y, tuple) else whole)
        before.assert_unchanged()


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_counts_of_any_type(kind: torch.dtype) -> None:
    twins = Twins(LOSSES["poisson-full-sum"])
    x, y = twins.batch()
    expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, y)
    assert_close(twins.step(x, y.to(kind)), expected, EXACT, "loss")
    twins.compare()
    with pytest.raises(RuntimeError, match="expected real targets, got Bool"):
        twins.step(x, y > 1)


def test_variances_in_the_shapes_that_torch_broadcasts() -> None:
    for rows, shapes in (
        ((ROWS,), [(ROWS, CLASSES), (ROWS,), (ROWS, 1), (1, CLASSES)]),
        ((2, 3), [(2, 3, CLASSES), (2, 3), (2, 3, 1), (2, 1, CLASSES), (1, 3, CLASSES)]),
        ((), [(CLASSES,), (), (1,)]),
    ):
        twins = Twins(LOSSES["gaussian"])
        x = torch.randn(*rows, SIZES[0], dtype=torch.float64)
        y = torch.randn(*rows, CLASSES, dtype=torch.float64)
        for shape in shapes:
            var = 0.5 + torch.rand(shape, dtype=torch.float64)
            assert_close(*twins.train(x, (y, var)), EXACT, f"variances of {shape}")
        assert_close(*twins.train(x, (y, 0.7)), EXACT, "a variance that is a number")
        twins.compare()


@pytest.mark.parametrize(
    ("var", "error", "message"),
    [
        (torch.ones(()), ValueError, "var is of incorrect size"),
        (torch.ones(CLASSES), ValueError, "var is of incorrect size"),
        (torch.ones(1, 1), ValueError, "var is of incorrect size"),
        (torch.ones(ROWS - 1), ValueError, "var is of incorrect size"),
        (torch.ones(ROWS, CLASSES, 1), ValueError, "var is of incorrect size"),
        (torch.ones(ROWS).index_fill_(0, torch.tensor(3), -1e-9), ValueError, "var has negative"),
        (-0.5, ValueError, "var has negative entry/entries"),
        (torch.ones(ROWS, dtype=torch.int64), RuntimeError, "floating point variances, got Long"),
        (1, TypeError, "var to be a torch.Tensor, got int"),
        (None, TypeError, "var to be a torch.Tensor, got NoneType"),
        (torch.ones(ROWS, device="meta"), RuntimeError, "var on the CPU"),
        (torch.ones(ROWS, requires_grad=True), RuntimeError, "the var requires a gradient"),
    ],
)  # fmt: skip
def test_variances_that_are_refused(var: Any, error: type[Exception], message: str) -> None:
    """With torch's exception, where torch refuses them."""
    twins = Twins(LOSSES["gaussian"], OPTIMIZERS["adam"])
    x, (y, _) = twins.batch()
    before = Snapshot(twins)
    with pytest.raises(error, match=message):
        twins.step(x, (y, var))
    before.assert_unchanged()
    if error is ValueError:
        with pytest.raises(ValueError, match=message):
            twins.plain_loss(twins.plain(x), y, var)
    for given in (y, (y,), (y, y, y)):
        with pytest.raises(TypeError, match=r"target of GaussianNLLLoss to be a pair"):
            twins.step(x, given)
    other = Twins(LOSSES["mse"])
    with pytest.raises(TypeError, match=r"target to be a torch\.Tensor, got tuple"):
        other.step(x, (y, y))


def test_logarithms_of_any_number(isa: str, dtype: torch.dtype) -> None:
    """log(v) / 2 is what the loss of a variance v is where prediction and target are equal.

    Its terms are no greater than it but near 1, where it has one that is not 0; each is rounded a
    few times.
    """
    limits = torch.finfo(dtype)
    most, least = math.log2(limits.max), math.log2(limits.smallest_normal * limits.eps)
    exponents = torch.arange(math.ceil(least), math.floor(most), 1.37, dtype=torch.float64)
    near = 1 + torch.arange(-40, 40, dtype=torch.float64) * limits.eps
    ends = torch.tensor([limits.max, torch.inf, torch.nan], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=dtype))
    step = TrainStep(model, nn.GaussianNLLLoss(eps=0.0), SGD(model.parameters(), 0.0))
    zero = torch.zeros(1, 1, dtype=dtype)
    for v in torch.cat((2**exponents, 2 ** exponents.round(), near, ends)).to(dtype):
        actual = 2 * step(zero, (zero, v.expand(1, 1))).double()
        expected = v.double().log()
        print(v)
        torch.testing.assert_close(actual, expected, rtol=4 * limits.eps, atol=0, equal_nan=True)


def test_autocast_and_modes_are_refused() -> None:
    twins = Twins(dtype=torch.float32)
    x, y = twins.batch()
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast"):
        twins.step(x, y)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda rows: twins.step(rows, y))(x[None])


def test_every_instruction_set_is_proven_to_run() -> None:
    """The fixture's proof holds for steps: their kernels are recorded."""
    twins = Twins(dtype=torch.float32)
    for isa in _C.available_isas():
        with forced(isa):
            twins.step(*twins.batch())
            ran = _C.recorded_kernels()
        assert {name.split("_")[-1] for name in ran} == {isa}


def test_hooks_of_what_took_a_place_are_seen() -> None:
    model, called = small(), []
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda *_: called.append("loss"))
    step.loss = loss
    with pytest.raises(RuntimeError, match="hook"):
        step(x, y)
    step.loss = nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: called.append("optimizer"))
    step.optimizer = optimizer
    with pytest.raises(RuntimeError, match="hook"):
        step(x, y)
    assert not called


@pytest.mark.parametrize("kind", [Adam, RMSprop, Adadelta, RAdam])
def test_squares_that_would_overflow(isa: str, kind: type[Optimizer]) -> None:
    """Of a gradient whose square is infinite in float32, a part of it is not."""
    model = FusedMLP([1, 1], bias=False)
    model[0].weight.data.fill_(0.5)
    plain = plain_twin(model)
    x, y = torch.full((1, 1), 2e19), torch.zeros(1, 1)
    step = TrainStep(model, nn.L1Loss(), kind(model.parameters(), foreach=False))
    optimizer = kind(plain.parameters(), foreach=False)
    for _ in range(3):
        step(x, y)
        plain_step(plain, nn.L1Loss(), optimizer, x, y)
    assert_same_optimizer(step.optimizer, optimizer, 1e-5)
    assert_close(model[0].weight, plain[0].weight, 1e-5, "weight")
