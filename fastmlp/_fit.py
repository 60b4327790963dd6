"""What TrainStep.fit needs around its steps: data as tensors, their order, and its progress."""

from __future__ import annotations

import contextlib
import sys
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


class Tally:
    """Losses and right predictions of some batches."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.correct = self.rows = 0
        self.classes = True

    def add(self, losses: Tensor, correct: Tensor, rows: int, batch_size: int) -> None:
        """losses float64 and correct int64, `[batches]`; the last batch may have fewer rows."""
        last = rows - batch_size * (len(losses) - 1)
        self.loss += float(losses[:-1].sum()) * batch_size + float(losses[-1]) * last
        self.rows += rows
        self.classes = self.classes and int(correct.min()) >= 0
        self.correct += int(correct.sum())

    def report(self, epoch: int, batch: int, batches: int) -> Report:
        error = 1 - self.correct / self.rows if self.classes else None
        return Report(epoch, batch, batches, self.loss / self.rows, error)


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


def calls(batches: int, every: int) -> Iterator[tuple[int, int]]:
    """Runs of batches, first and end, that take about a tenth of a second each and end at each
    multiple of `every`."""
    first, size = 0, 1
    while first < batches:
        end = min(batches, first + size, (first // every + 1) * every)
        began = perf_counter()
        yield first, end
        seconds = perf_counter() - began
        size = max(1, min(2 * size, int((end - first) * _SECONDS_A_CALL / max(seconds, 1e-9))))
        first = end


class Bar(contextlib.AbstractContextManager["Bar"]):
    """A progress bar on stderr: wanted or not, or (None) where stderr is a terminal and tqdm is
    installed."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self.bar: Any = None
        if wanted or (wanted is None and sys.stderr.isatty()):
            try:
                from tqdm import tqdm
            except ImportError:
                if wanted:
                    raise ImportError(
                        "fastmlp.TrainStep.fit: progress=True needs tqdm: pip install tqdm"
                    ) from None
            else:
                self.bar = tqdm(total=total, unit="batch", dynamic_ncols=True)

    def advance(self, batches: int, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(batches)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
