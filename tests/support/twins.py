"""What TrainStep is compared with: losses, optimizers, and the loop that a step stands for."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from fastmlp import FusedMLP, Residual, TrainStep

SIZES = [7, 19, 13, 5]  # ragged ends for every width of vectors
CLASSES = SIZES[-1]


ROWS = 9
EXACT = 1e-9  # relative, in float64: 1e7 roundings' worth, for training may amplify them


class LossCase(NamedTuple):
    """A loss, the kind of its target, and by how much its gradient exceeds that of a mean."""

    make: Callable[[], nn.Module]
    target: str
    size: int = 1


WEIGHT = [0.3, 1.7, 0.6, 2.0, 1.1]  # of the classes


def cross_entropy(weight: list[float] | None = None, **options: Any) -> nn.Module:
    return nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight), **options)


def bce(weight: bool = False, pos_weight: bool = False, **options: Any) -> nn.Module:
    w = torch.tensor(WEIGHT)
    return nn.BCEWithLogitsLoss(
        w if weight else None, pos_weight=w.flip(0) if pos_weight else None, **options
    )


LOSSES = {
    "ce": LossCase(cross_entropy, "classes"),
    "ce-sum": LossCase(lambda: cross_entropy(reduction="sum"), "classes", ROWS),
    "ce-weight": LossCase(lambda: cross_entropy(WEIGHT), "classes"),
    "ce-ignore": LossCase(lambda: cross_entropy(ignore_index=2), "classes"),
    "ce-smoothing": LossCase(lambda: cross_entropy(label_smoothing=0.1), "classes"),
    "ce-all": LossCase(
        lambda: cross_entropy(WEIGHT, ignore_index=3, label_smoothing=0.3), "classes"
    ),
    "ce-all-sum": LossCase(
        lambda: cross_entropy(WEIGHT, ignore_index=0, label_smoothing=0.3, reduction="sum"),
        "classes", ROWS,
    ),
    "probabilities": LossCase(cross_entropy, "probabilities"),
    "probabilities-all": LossCase(
        lambda: cross_entropy(WEIGHT, label_smoothing=0.2), "probabilities"
    ),
    "probabilities-all-sum": LossCase(
        lambda: cross_entropy(WEIGHT, label_smoothing=0.2, reduction="sum"), "probabilities", ROWS
    ),
    "mse": LossCase(nn.MSELoss, "numbers"),
    "mse-sum": LossCase(lambda: nn.MSELoss(reduction="sum"), "numbers", ROWS * CLASSES),
    "l1": LossCase(nn.L1Loss, "numbers"),
    "l1-sum": LossCase(lambda: nn.L1Loss(reduction="sum"), "numbers", ROWS * CLASSES),
    "smooth-l1": LossCase(nn.SmoothL1Loss, "numbers"),
    "smooth-l1-beta-sum": LossCase(
        lambda: nn.SmoothL1Loss(beta=0.3, reduction="sum"), "numbers", ROWS * CLASSES
    ),
    "smooth-l1-zero": LossCase(lambda: nn.SmoothL1Loss(beta=0), "numbers"),
    "huber": LossCase(nn.HuberLoss, "numbers"),
    "huber-delta-sum": LossCase(
        lambda: nn.HuberLoss(delta=0.4, reduction="sum"), "numbers", ROWS * CLASSES
    ),
    "nll": LossCase(nn.NLLLoss, "classes"),
    "nll-weight-ignore": LossCase(
        lambda: nn.NLLLoss(torch.tensor(WEIGHT), ignore_index=3), "classes"
    ),
    "nll-weight-sum": LossCase(
        lambda: nn.NLLLoss(torch.tensor(WEIGHT), reduction="sum"), "classes", ROWS
    ),
    "kl": LossCase(nn.KLDivLoss, "probabilities"),
    "kl-batchmean": LossCase(
        lambda: nn.KLDivLoss(reduction="batchmean"), "probabilities", CLASSES
    ),
    "kl-log": LossCase(lambda: nn.KLDivLoss(log_target=True), "logarithms"),
    "kl-log-sum": LossCase(
        lambda: nn.KLDivLoss(reduction="sum", log_target=True), "logarithms", ROWS * CLASSES
    ),
    "poisson": LossCase(nn.PoissonNLLLoss, "counts"),
    "poisson-full-sum": LossCase(
        lambda: nn.PoissonNLLLoss(full=True, reduction="sum"), "counts", ROWS * CLASSES
    ),
    # An eps with which outputs around 0 have a logarithm.
    "poisson-rates": LossCase(lambda: nn.PoissonNLLLoss(log_input=False, eps=9.0), "counts"),
    "poisson-rates-full": LossCase(
        lambda: nn.PoissonNLLLoss(log_input=False, full=True, eps=9.0), "probabilities"
    ),
    "gaussian": LossCase(nn.GaussianNLLLoss, "variances"),
    "gaussian-full-sum": LossCase(
        lambda: nn.GaussianNLLLoss(full=True, reduction="sum"), "variances", ROWS * CLASSES
    ),
    "gaussian-eps": LossCase(lambda: nn.GaussianNLLLoss(eps=0.9), "variances"),
    "gaussian-of-rows": LossCase(nn.GaussianNLLLoss, "row-variances"),
    "bce": LossCase(bce, "probabilities"),
    "bce-weight": LossCase(lambda: bce(weight=True), "probabilities"),
    "bce-pos-weight": LossCase(lambda: bce(pos_weight=True), "probabilities"),
    "bce-all-sum": LossCase(
        lambda: bce(True, True, reduction="sum"), "probabilities", ROWS * CLASSES
    ),
}  # fmt: skip


MakeOptimizer = Callable[[nn.Module, float], Optimizer]  # of a model, with rates times a factor


def sgd(lr: float = 0.05, **options: Any) -> MakeOptimizer:
    return lambda model, factor: SGD(model.parameters(), lr * factor, **options)


def adaptive(kind: type[Optimizer], lr: float = 1e-2, **options: Any) -> MakeOptimizer:
    # It divides the gradient's size out, so that its rate needs no factor.
    return lambda model, factor: kind(model.parameters(), lr=lr, **options)


def adam(kind: type[Adam] = Adam, lr: float = 1e-2, **options: Any) -> MakeOptimizer:
    return adaptive(kind, lr, **options)


def groups(kind: type[Optimizer], lr: float, **options: Any) -> MakeOptimizer:
    """Weights and biases with options of their own, the last layer in a third group."""

    def make(model: nn.Module, factor: float) -> Optimizer:
        *inner, last = (m for m in model.modules() if isinstance(m, nn.Linear))
        return kind(
            [
                {"params": [m.weight for m in inner]},
                {"params": [m.bias for m in inner], "weight_decay": 0.0, "lr": 2 * lr * factor},
                {"params": last.parameters(), "lr": 0.3 * lr * factor},
            ],
            lr=lr * factor, weight_decay=0.01, **options,
        )  # fmt: skip

    return make


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd(),
    "sgd-momentum": sgd(momentum=0.9, lr=0.02),
    "sgd-dampening": sgd(momentum=0.8, dampening=0.3),
    "sgd-nesterov": sgd(momentum=0.8, nesterov=True, lr=0.02),
    "sgd-decay": sgd(weight_decay=0.02),
    "sgd-maximize": sgd(maximize=True, lr=1e-3),
    "sgd-all": sgd(momentum=0.7, dampening=0.2, weight_decay=0.02, maximize=True, lr=1e-3),
    "sgd-nesterov-decay": sgd(momentum=0.7, nesterov=True, weight_decay=0.02, lr=0.02),
    "sgd-groups": groups(SGD, 0.02, momentum=0.5),
    "adam": adam(),
    "adam-betas": adam(betas=(0.5, 0.9), eps=1e-3),
    "adam-amsgrad": adam(amsgrad=True),
    "adam-decay": adam(weight_decay=0.02),
    "adam-maximize": adam(maximize=True, lr=1e-3),
    "adam-all": adam(amsgrad=True, weight_decay=0.02, maximize=True, lr=1e-3),
    "adam-decoupled": adam(decoupled_weight_decay=True, weight_decay=0.1),
    "adam-groups": groups(Adam, 1e-2),
    "adamw": adam(AdamW),
    "adamw-decay": adam(AdamW, weight_decay=0.3),
    "adamw-all": adam(AdamW, amsgrad=True, weight_decay=0.1, maximize=True, lr=1e-3),
    "adamw-groups": groups(AdamW, 1e-2, amsgrad=True),
    "rmsprop": adaptive(RMSprop, 1e-3),
    "rmsprop-momentum": adaptive(RMSprop, 1e-3, alpha=0.9, eps=1e-3, momentum=0.7),
    "rmsprop-centered": adaptive(RMSprop, 1e-3, centered=True),
    "rmsprop-all": adaptive(
        RMSprop, 1e-3, centered=True, momentum=0.5, weight_decay=0.02, maximize=True
    ),
    "rmsprop-groups": groups(RMSprop, 1e-3, momentum=0.5),
    "adagrad": adaptive(Adagrad),
    "adagrad-initial": adaptive(Adagrad, initial_accumulator_value=0.1, eps=1e-3),
    "adagrad-all": adaptive(
        Adagrad,
        1e-3,
        lr_decay=0.1,
        initial_accumulator_value=1e-4,
        weight_decay=0.02,
        maximize=True,
    ),
    "adagrad-groups": groups(Adagrad, 1e-2, lr_decay=0.2),
    "nadam": adaptive(NAdam, 1e-3),
    "nadam-betas": adaptive(NAdam, betas=(0.5, 0.9), eps=1e-3, momentum_decay=0.1),
    "nadam-all": adaptive(NAdam, 1e-3, momentum_decay=0.02, weight_decay=0.02, maximize=True),
    "nadam-decoupled": adaptive(NAdam, decoupled_weight_decay=True, weight_decay=0.1),
    "nadam-groups": groups(NAdam, 1e-2),
    "radam": adaptive(RAdam, 1e-3),
    "radam-betas": adaptive(RAdam, 1e-3, betas=(0.5, 0.9), eps=1e-3),
    "radam-all": adaptive(RAdam, 1e-3, weight_decay=0.02, maximize=True),
    "radam-decoupled": adaptive(RAdam, 1e-3, decoupled_weight_decay=True, weight_decay=0.1),
    "radam-groups": groups(RAdam, 1e-3),
    "adamax": adaptive(Adamax),
    "adamax-betas": adaptive(Adamax, betas=(0.5, 0.9), eps=1e-3),
    "adamax-all": adaptive(Adamax, 1e-3, weight_decay=0.02, maximize=True),
    "adamax-groups": groups(Adamax, 1e-2),
    "adadelta": adaptive(Adadelta, 1.0),
    "adadelta-rho": adaptive(Adadelta, 0.1, rho=0.6, eps=1e-3),
    "adadelta-all": adaptive(Adadelta, 0.5, rho=0.8, weight_decay=0.02, maximize=True),
    "adadelta-groups": groups(Adadelta, 0.5),
}


def target(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """For an output of that shape: a tensor, or with variances a pair of them."""
    if kind == "classes":
        return torch.randint(shape[-1], shape[:-1])
    if kind == "counts":
        return torch.randint(5, shape).to(dtype)
    numbers = torch.randn(shape, dtype=dtype)
    if kind.endswith("variances"):
        return numbers, 0.5 + torch.rand(shape if kind == "variances" else shape[:-1], dtype=dtype)
    if kind == "logarithms":
        return numbers.log_softmax(-1)
    return numbers.softmax(-1) if kind == "probabilities" else numbers


def plain_step(
    model: nn.Module,
    loss: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Any,
    max_grad_norm: float | None = None,
) -> Tensor:
    optimizer.zero_grad()
    value: Tensor = loss(model(x), *(y if isinstance(y, tuple) else (y,)))
    value.backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return value.detach()


def plain_twin(model: nn.Sequential) -> nn.Sequential:
    """A copy that runs as torch alone would have it."""
    twin = copy.deepcopy(model)
    for name, module in twin._modules.items():
        if isinstance(module, nn.Sequential) and not isinstance(module, Residual):
            twin._modules[name] = plain_twin(module)
    return nn.Sequential(OrderedDict(twin._modules.items()))


def assert_close(actual: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """The same dtype, shape and layout; the greatest difference relative to the greatest number.

    NaN equals NaN, and infinities themselves.
    """
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    assert actual.stride() == expected.stride(), what
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    torch.testing.assert_close(
        actual[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True, msg=lambda m: what + m
    )
    if finite.any():
        off = (actual[finite] - expected[finite]).abs().max()
        limit = relative * expected[finite].abs().max()
        assert off <= limit, f"{what}: off by {off:.3g}, {limit:.3g} allowed"  # a NaN is off too


def assert_same_optimizer(actual: Optimizer, expected: Optimizer, relative: float) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert list(ours["state"][index]) == list(state), index
        for name, value in state.items():
            own = ours["state"][index][name]
            if isinstance(value, Tensor):
                assert not own.requires_grad
                assert_close(own, value, relative if value.dim() else 0, f"{name} {index}")
            else:
                assert own == value, f"{name} {index}"


class Twins:
    """One network twice, from the same numbers: for a TrainStep, and for the plain loop."""

    def __init__(
        self,
        loss: LossCase = LOSSES["ce"],
        make_optimizer: MakeOptimizer = OPTIMIZERS["sgd"],
        dtype: torch.dtype = torch.float64,
        model: nn.Sequential | None = None,
        max_grad_norm: float | None = None,
        factor: float = 1,
    ) -> None:
        self.case, self.dtype, self.max_grad_norm = loss, dtype, max_grad_norm
        self.model = model or FusedMLP(SIZES, activation="gelu", dtype=dtype)
        self.plain = plain_twin(self.model)
        self.loss, self.plain_loss = loss.make().to(dtype), loss.make().to(dtype)
        self.optimizer = make_optimizer(self.model, factor / loss.size)
        self.plain_optimizer = make_optimizer(self.plain, 1 / loss.size)
        self.step = TrainStep(self.model, self.loss, self.optimizer, max_grad_norm=max_grad_norm)

    def batch(self, *rows: int) -> tuple[Tensor, Any]:
        linears = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        shape = rows or (ROWS,)
        x = torch.randn(*shape, linears[0].in_features, dtype=self.dtype)
        return x, target(self.case.target, (*shape, linears[-1].out_features), self.dtype)

    def train(self, x: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        """A step of both, from one state of the generator to one; their losses."""
        state = torch.get_rng_state()
        expected = plain_step(
            self.plain, self.plain_loss, self.plain_optimizer, x, y, self.max_grad_norm
        )
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        actual = self.step(x, y)
        assert torch.equal(torch.get_rng_state(), after)
        return actual, expected

    def check(self, steps: int = 5, relative: float = EXACT, *rows: int) -> None:
        """Trains both, on new data in each step, and compares everything."""
        for number in range(steps):
            actual, expected = self.train(*self.batch(*rows))
            assert_close(actual, expected, relative, f"loss of step {number}")
        self.compare(relative)

    def compare(self, relative: float = EXACT) -> None:
        self.compare_parameters(relative)
        assert_same_optimizer(self.optimizer, self.plain_optimizer, relative)

    def compare_parameters(self, relative: float = EXACT) -> None:
        named = zip(self.model.named_parameters(), self.plain.parameters(), strict=True)
        for (name, actual), expected in named:
            assert_close(actual, expected, relative, name)


def roundings(sizes: list[int], rows: int) -> int:
    """How many follow on one another in a step, at most.

    The sums of each layer forward (its inputs and the bias) and backward (its outputs), over
    classes and rows, and 30 for exponentials, quotients and the update itself.
    """
    return sum(n + 1 for n in sizes[:-1]) + sum(sizes[1:]) + sizes[-1] + rows + 30


def float32_bound(steps: int, sizes: list[int] = SIZES, rows: int = ROWS) -> float:
    """How far two float32 computations may be apart after so many steps, relatively.

    A chain of k roundings is off by k·u of its terms' magnitude (N. J. Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd edition, section 3.1), with u = eps/2, and two
    computations in different order are apart by twice that. With rates small enough for the update
    not to amplify what is there already, as here, the steps' contributions add up. Activations are
    smooth here: a kink would turn rounding into another slope.
    """
    return steps * roundings(sizes, rows) * torch.finfo(torch.float32).eps


# Adam's eps is large here: beside a small one the rounding of a gradient near 0 is a whole step.
SMOOTH = {name: make for name, make in OPTIMIZERS.items() if name.startswith("sgd")} | {
    "adam-eps": adam(eps=0.1),
    "adam-eps-amsgrad": adam(eps=0.1, amsgrad=True, weight_decay=0.02),
    "adamw-eps": adam(AdamW, eps=0.1, weight_decay=0.3),
    "rmsprop-eps": adaptive(RMSprop, 1e-3, eps=0.1, centered=True, momentum=0.5),
    "adagrad-eps": adaptive(Adagrad, eps=0.1),
    "nadam-eps": adaptive(NAdam, eps=0.1),
    "radam-eps": adaptive(RAdam, 1e-3, betas=(0.9, 0.99), eps=0.1),
    "adamax-eps": adaptive(Adamax, eps=0.1),
    "adadelta-eps": adaptive(Adadelta, 0.1, eps=0.1),
}


def assert_same(model: nn.Module, twin: nn.Module) -> None:
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
