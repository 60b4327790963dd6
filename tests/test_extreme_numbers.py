"""Infinite, NaN and almost infinite numbers in losses and updates: what torch makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

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


@pytest.mark.parametrize("where", ["max_exp_avg_sq", "exp_avg_sq", "exp_avg", "gradient"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_amsgrad_keeps_what_is_not_finite(isa: str, where: str, value: float) -> None:
    """In places of whole vectors and of the rest."""
    sizes = [3, 37]
    model = FusedMLP(sizes, dtype=torch.float64)
    plain = copy.deepcopy(model)
    ours, theirs = (Adam(m.parameters(), 0.01, amsgrad=True) for m in (model, plain))
    step = TrainStep(model, nn.MSELoss(), ours)
    x, y = torch.randn(4, 3).double(), torch.randn(4, 37).double()
    for number in range(3):
        if number == 1:
            if where == "gradient":
                y[:, [0, 36]] = value
            else:
                for m, optimizer in ((model, ours), (plain, theirs)):
                    optimizer.state[m[0].bias][where][[0, 7, 8, 35, 36]] = value
        else:
            y = torch.randn(4, 37).double()
        step(x, y)
        theirs.zero_grad()
        nn.functional.mse_loss(plain.as_sequential()(x), y).backward()
        theirs.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-9, atol=1e-11)
    for m, n in zip(model.parameters(), plain.parameters(), strict=True):
        for key, tensor in ours.state[m].items():
            torch.testing.assert_close(
                tensor, theirs.state[n][key], equal_nan=True, rtol=1e-9, atol=1e-11
            )
