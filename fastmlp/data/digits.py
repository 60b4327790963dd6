"""scikit-learn's bundled handwritten digits: real ones, offline, in MNIST's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._faults import require
from .images import ImageDataset

_HELD_OUT = 5  # every fifth image of each digit is for the test


class DigitsDataset(ImageDataset):
    """1797 handwritten digits (E. Alpaydin, C. Kaynak), from 8×8 scaled to 28×28 pixels.

    They come with scikit-learn: no file to fetch, no network. Every fifth image of each digit is
    held out for the test: 1442 for training, 355 for the test, the same on every machine.

    Args:
        train: the training part; otherwise the test part.
        transform: what to make of an image, see ImageDataset. None gives float32 `[1, 28, 28]`
            in [0, 1].

    Raises:
        MissingExtra: scikit-learn is not installed.
    """

    def __init__(self, train: bool = True, transform: Callable[[Any], Any] | None = None) -> None:
        datasets = require("sklearn.datasets", "scikit-learn", "the embedded digits")
        bunch = datasets.load_digits()
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        chosen = (_rank_in_class(labels) % _HELD_OUT == _HELD_OUT - 1) != train
        images = _enlarge(torch.from_numpy(bunch.images).to(torch.int64)[chosen])
        super().__init__(images, labels[chosen], transform)


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many of the same label come before each: int64 [n] to int64 [n]."""
    ranks = torch.empty_like(labels)
    for label in labels.unique():
        members = labels == label
        ranks[members] = torch.arange(int(members.sum()))
    return ranks


def _enlarge(images: Tensor) -> Tensor:
    """Bilinear from 8×8 in 0…16 to 28×28 in 0…255: int64 [n, 8, 8] to uint8 [n, 28, 28].

    In whole numbers, so that no rounding differs from one machine to the next: pixel i of 28 has
    its centre at (4i - 5) / 14 of the old pixels, and all weights are fourteenths.
    """
    weights = torch.zeros(28, 8, dtype=torch.int64)
    for row in range(28):
        centre = min(max(4 * row - 5, 0), 14 * 7)
        old, part = divmod(centre, 14)
        weights[row, old] += 14 - part
        weights[row, min(old + 1, 7)] += part
    scaled = weights @ images @ weights.T  # 0 … 16 · 14²
    whole = 16 * 14 * 14
    return ((scaled * 255 + whole // 2) // whole).to(torch.uint8)
