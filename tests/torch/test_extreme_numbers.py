"""Infinite, NaN and almost infinite numbers in losses and updates: what torch makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from twins import OPTIMIZERS, MakeOptimizer, plain_step, plain_twin

from fastmlp import FusedMLP, TrainStep


def trained(model: FusedMLP, loss: nn.Module, x: Tensor, y: Tensor, lr: float = 1.0) -> Any:
    """The parameters after a step of plain SGD, by TrainStep and by torch."""
    plain = copy.deepcopy(model).as_sequential()
    TrainStep(model, loss, SGD(model.parameters(), lr))(x, y)
    optimizer = SGD(plain.parameters(), lr)
    loss(plain(x), y).backward()
    optimizer.step()
    return zip(model.parameters(), plain.parameters(), strict=True)


@pytest.mark.parametrize("n", [3, 5, 40])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_great_differences(
    isa: str, dtype: torch.dtype, n: int, reduction: str
) -> None:
    """2 · difference / elements is finite where 2 · difference is not."""
    most = torch.finfo(dtype).max
    model = FusedMLP([1, n], dtype=dtype)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.linspace(0.6, 0.9, n, dtype=dtype) * most)
    x, y = torch.ones(3, 1, dtype=dtype), torch.zeros(3, n, dtype=dtype)
    for a, b in trained(model, nn.MSELoss(reduction=reduction), x, y, lr=1e-3):
        torch.testing.assert_close(a, b)
        assert bool(a.isfinite().all()) == (reduction == "mean")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss()], ids=str
)
@pytest.mark.parametrize("n", [2, 9, 40])
def test_ignored_rows_of_infinite_predictions(
    isa: str, value: float, loss: nn.Module, n: int
) -> None:
    """0 · NaN is NaN, in rows that do not count as well; NLLLoss multiplies nothing there."""
    model = FusedMLP([2, n], dtype=torch.float64)
    x = torch.zeros(6, 2, dtype=torch.float64)
    x[::2, 0] = 1
    with torch.no_grad():
        model[0].weight[n // 2, 0] = value  # of the even rows
        model[0].weight[:, 1] = 0
    y = torch.arange(6) % n
    y[::2] = -100
    for a, b in trained(model, loss, x, y):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_rows_that_are_ignored_change_nothing_else(isa: str) -> None:
    model = FusedMLP([4, 9], dtype=torch.float64)
    x, y = torch.randn(6, 4).double(), torch.arange(6)
    y[2:] = -100
    for a, b in trained(model, nn.CrossEntropyLoss(reduction="sum"), x, y):
        torch.testing.assert_close(a, b)


def made_states(make: MakeOptimizer) -> list[str]:
    """An optimizer's states that are shaped like the parameter, by name."""
    layer = nn.Linear(2, 3)
    optimizer = make(nn.Sequential(layer), 1)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    return [key for key, value in optimizer.state[layer.weight].items() if value.dim()]


def assert_as_torch(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        actual, expected, equal_nan=True, rtol=1e-9, atol=1e-11, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_optimizers_keep_what_is_not_finite(isa: str, value: float) -> None:
    """In their states and in the gradient, in places of whole vectors and of the rest."""
    for name, make in OPTIMIZERS.items():
        if name.endswith("groups"):
            continue
        for where in (*made_states(make), "gradient"):
            model = FusedMLP([3, 37], dtype=torch.float64)
            plain = plain_twin(model)
            ours, theirs = make(model, 1), make(plain, 1)
            step = TrainStep(model, nn.MSELoss(), ours)
            for number in range(3):
                x, y = torch.randn(4, 3).double(), torch.randn(4, 37).double()
                if number == 1 and where == "gradient":
                    y[:, [0, 36]] = value
                elif number == 1:
                    for m, optimizer in ((model, ours), (plain, theirs)):
                        optimizer.state[m[0].bias][where][[0, 7, 8, 35, 36]] = value
                step(x, y)
                plain_step(plain, step.loss, theirs, x, y)
            for m, n in zip(model.parameters(), plain.parameters(), strict=True):
                assert_as_torch(m, n, f"{name}, {where}: parameter")
                for key, kept in ours.state[m].items():
                    assert_as_torch(kept, theirs.state[n][key], f"{name}, {where}: {key}")


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_a_mean_that_keeps_nothing_is_the_gradient(
    isa: str, dtype: torch.dtype, optimizer: type[Adam]
) -> None:
    """Also beside a far greater one before."""
    model = FusedMLP([3, 37], dtype=dtype)
    plain = plain_twin(model)
    ours, theirs = (optimizer(m.parameters(), 1e-3, betas=(0.0, 0.9)) for m in (model, plain))
    step = TrainStep(model, nn.MSELoss(), ours)
    for size in (1 / torch.finfo(dtype).eps, 1.0):
        x, y = torch.randn(4, 3, dtype=dtype), size * torch.randn(4, 37, dtype=dtype)
        step(x, y)
        plain_step(plain, step.loss, theirs, x, y)
    mean, expected = (o.state[m[0].bias]["exp_avg"] for m, o in ((model, ours), (plain, theirs)))
    torch.testing.assert_close(mean, expected)


def test_a_variance_that_rounding_makes_negative_is_zero(isa: str, dtype: torch.dtype) -> None:
    """In RMSprop, where the gradient stays the same for long: torch's parameters are NaN then."""
    model = FusedMLP([3, 37], dtype=dtype)
    plain = plain_twin(model)
    ours, theirs = (RMSprop(m.parameters(), centered=True) for m in (model, plain))
    step = TrainStep(model, nn.MSELoss(), ours)
    for number in range(2):
        if number == 1:
            for optimizer in (ours, theirs):
                for state in optimizer.state.values():
                    state["grad_avg"].fill_(2)
                    state["square_avg"].fill_(3.9)
        x, y = torch.randn(4, 3, dtype=dtype), torch.randn(4, 37, dtype=dtype)
        step(x, y)
        plain_step(plain, step.loss, theirs, x, y)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.isnan().all() for p in plain.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_an_infinite_learning_rate_without_decay(optimizer: type[torch.optim.Optimizer]) -> None:
    """It makes parameters infinite, as in torch, and none of them NaN."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 3))
    fused = copy.deepcopy(plain)
    x, y, loss = torch.randn(5, 9), torch.randint(3, (5,)), nn.CrossEntropyLoss()
    options = {"lr": float("inf"), "weight_decay": 0}
    theirs = optimizer(plain.parameters(), **options)  # type: ignore[call-arg]
    loss(plain(x), y).backward()
    theirs.step()
    TrainStep(fused, loss, optimizer(fused.parameters(), **options))(x, y)  # type: ignore[call-arg]
    for ours, expected in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)
