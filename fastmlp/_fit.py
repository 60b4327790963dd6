"""What TrainStep.fit needs around its steps: data as tensors, their order, and runs of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fastmlp.data import Compose, ImageDataset, Normalize, TensorLoader, ToTensor

_SECONDS_A_CALL = 0.1  # between two looks at Ctrl-C and the progress bar


class Report(NamedTuple):
    """How far `TrainStep.fit` has come.

    Attributes:
        epoch: from 1.
        batch: batches of this epoch that are done.
        batches: of an epoch.
        loss: mean over the batches since the last report, each by its number of rows.
        error: the fraction of wrong predictions among these rows; None unless the targets are
            classes.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    error: float | None


class Table(NamedTuple):
    """A data set's rows: inputs `[rows, features]`, read as `scale · x + shift` where uint8."""

    inputs: Tensor
    targets: Tensor
    scale: float
    shift: float


def as_table(dataset: Any, normalize: tuple[float, float] | None) -> Table:
    """The tensors behind a data set; nothing is copied if they are contiguous."""
    scale, shift = 1 / 255, 0.0
    if isinstance(dataset, ImageDataset):
        inputs, targets = dataset.images, dataset.labels
        scale, shift = _affine(dataset.transform)
    elif type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        inputs, targets = dataset.tensors
    elif (
        isinstance(dataset, Sequence)
        and len(dataset) == 2
        and all(isinstance(item, Tensor) for item in dataset)
    ):
        inputs, targets = dataset
    else:
        raise TypeError(
            "fastmlp.TrainStep.fit: expected (inputs, targets), a TensorDataset of two tensors, or "
            f"a data set of fastmlp.data, got {type(dataset).__name__}. For others, call the step "
            "on the batches of a DataLoader"
        )
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            "fastmlp.TrainStep.fit: expected as many inputs as targets, got shapes "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise ValueError("fastmlp.TrainStep.fit: expected at least one row, got none")
    if normalize is not None:
        if inputs.dtype != torch.uint8:
            raise ValueError(
                f"fastmlp.TrainStep.fit: normalize is for uint8 inputs, got {inputs.dtype}"
            )
        mean, std = normalize
        scale, shift = scale / std, (shift - mean) / std
    return Table(inputs.reshape(len(inputs), -1), targets, scale, shift)


def _affine(transform: Any) -> tuple[float, float]:
    """What a transform of bytes does to each of them, as (scale, shift)."""
    scale, shift = 1 / 255, 0.0
    parts = transform.transforms if type(transform) is Compose else [transform]
    for i, part in enumerate(parts):
        if type(part) is Normalize and i > 0 and len(part.mean) == len(part.std) == 1:
            scale, shift = scale / part.std[0], (shift - part.mean[0]) / part.std[0]
        elif i > 0 or not (part is None or type(part) is ToTensor):
            raise ValueError(
                "fastmlp.TrainStep.fit: expected the data set's transform to be ToTensor and "
                f"Normalize of fastmlp.data, got {transform}. For others, call the step on the "
                "batches of a DataLoader"
            )
    return scale, shift


def epoch_order(rows: int, shuffle: bool, generator: torch.Generator | None) -> Tensor:
    """The order in which a DataLoader would visit the rows, int64 `[rows]`."""
    loader = TensorLoader(torch.arange(rows), batch_size=rows, shuffle=shuffle, generator=generator)
    [[order]] = loader
    return order


def calls(first: int, end: int, *every: int) -> Iterator[tuple[int, int]]:
    """Runs of the batches from `first` on, each as (first, end), that take about a tenth of a
    second each and end at each multiple of a number of `every`."""
    size = 1
    while first < end:
        until = min(end, first + size, *((first // number + 1) * number for number in every))
        began = perf_counter()
        yield first, until
        seconds = perf_counter() - began
        size = max(1, min(2 * size, int((until - first) * _SECONDS_A_CALL / max(seconds, 1e-9))))
        first = until
