"""Inputs that are mostly one value."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


def samples(rows: int, features: int) -> Tensor:
    """The elements of the input by which it is judged, [128]."""
    places = [math.fmod(i * 0.6180339887498949, 1.0) * (rows * features) for i in range(128)]
    return torch.tensor([int(place) for place in places])


def sparse(
    rows: int,
    features: int,
    density: float = 0.02,
    value: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normal numbers at so many places, some of them in the sample; the value elsewhere."""
    size = max(1, 2 * abs(value))
    numbers = size * torch.randn(rows, features, dtype=dtype)
    x = numbers.where(torch.rand(rows, features) < density, torch.tensor(value, dtype=dtype))
    if value != 0 and density > 0 and rows * features > 128:
        x.view(-1)[samples(rows, features)[::40]] = size
    return x


def every_third_row(x: Tensor, value: float) -> None:
    """Tiles of rows hold dense ones all over; tiles of features may leave out the rows between."""
    x[1::3], x[2::3] = value, value


def every_third_column(x: Tensor, value: float) -> None:
    """… and the other way round."""
    x[:, 1::3], x[:, 2::3] = value, value
