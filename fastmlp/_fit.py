"""What TrainStep.fit needs around its steps: data as tensors, their order, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from fastmlp._epochs import EpochLoop, Scores
from fastmlp._progress import Score
from fastmlp.data import Compose, ImageDataset, Normalize, TensorLoader, ToTensor
from fastmlp.data.images import has_own_items

if TYPE_CHECKING:
    from fastmlp.train_step import TrainStep


class Report(NamedTuple):
    """How far `TrainStep.fit` has come.

    Attributes:
        epoch: from 1.
        batch: batches of this epoch that are done.
        batches: of an epoch.
        loss: mean over the batches since the last report, each by its number of rows.
        error: the fraction of wrong predictions among those of these rows whose class the loss
            does not ignore, NaN where there are none; None unless the targets are classes.
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
    rows: Tensor | None = None  # int64: those of a Subset, in its order; None: all
    variances: Tensor | float | None = None  # of the targets, where the loss takes them

    @property
    def size(self) -> int:
        return len(self.inputs if self.rows is None else self.rows)


def as_table(
    dataset: Any,
    normalize: tuple[float, float] | None,
    dtype: torch.dtype = torch.float32,
    *,
    classes: bool = True,
) -> Table:
    """The tensors behind a data set; what the steps can read as it lies is not copied.

    Args:
        dataset, normalize: as of `TrainStep.fit`.
        dtype: of the parameters, which float32 and float64 inputs are brought to.
        classes: whether whole numbers as targets are classes, which may be of any such type.
    """
    inputs, targets, scale, shift, rows = _parts(dataset)
    for tensor in (inputs, targets):
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
            raise TypeError(
                f"fastmlp.TrainStep.fit: expected dense tensors, got one of layout {tensor.layout}"
                f"{', nested' * tensor.is_nested}{', quantized' * tensor.is_quantized}"
            )
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            "fastmlp.TrainStep.fit: expected as many inputs as targets, got shapes "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if len(inputs) == 0 or (rows is not None and len(rows) == 0):
        raise ValueError("fastmlp.TrainStep.fit: expected at least one row, got none")
    if inputs.dtype in (torch.float32, torch.float64):
        inputs = inputs.to(dtype)
    elif inputs.dtype != torch.uint8:
        # As torch has it: of another floating point type than the weights, or none at all.
        error = RuntimeError if inputs.is_floating_point() else TypeError
        raise error(
            "fastmlp.TrainStep.fit: expected inputs of float32 or float64, or uint8 for pixels, "
            f"got {inputs.dtype}. Convert them: inputs.float()"
        )
    if normalize is not None:
        if inputs.dtype != torch.uint8:
            raise ValueError(
                f"fastmlp.TrainStep.fit: normalize is for uint8 inputs, got {inputs.dtype}"
            )
        mean, std = normalize
        scale, shift = scale / std, (shift - mean) / std
    if classes and targets.dtype in _WHOLE:
        targets = targets.to(torch.int64)
    inputs = inputs.flatten(1) if inputs.ndim > 1 else inputs.unsqueeze(1)
    # Batches are gathered by rows, from memory in which these are no rows one number at a time.
    return Table(inputs.contiguous(), targets, scale, shift, rows)


_WHOLE = (
    torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def _parts(dataset: Any) -> tuple[Tensor, Tensor, float, float, Tensor | None]:
    """A data set's tensors, the scale and the shift of uint8 inputs, and which rows it has."""
    if isinstance(dataset, ImageDataset):
        if has_own_items(dataset):
            raise TypeError(
                f"fastmlp.TrainStep.fit: {type(dataset).__name__} makes items of its own, which "
                f"its images and labels do not tell. {_OTHERWISE}"
            )
        return dataset.images, dataset.labels, *_affine(dataset.transform), None
    if type(dataset) is Subset and not isinstance(dataset.dataset, (tuple, list)):  # of two items
        inputs, targets, scale, shift, among = _parts(dataset.dataset)
        count = len(inputs) if among is None else len(among)
        rows = torch.tensor([range(count)[index] for index in dataset.indices], dtype=torch.int64)
        return inputs, targets, scale, shift, rows if among is None else among[rows]
    pair = dataset.tensors if type(dataset) is TensorDataset else dataset
    if isinstance(pair, Sequence) and len(pair) == 2:
        tensors = [_as_tensor(item) for item in pair]
        if tensors[0] is not None and tensors[1] is not None:
            return tensors[0], tensors[1], 1 / 255, 0.0, None
    raise TypeError(
        "fastmlp.TrainStep.fit: expected (inputs, targets) of tensors or arrays, a TensorDataset "
        f"of two tensors, a data set of fastmlp.data, or a Subset of these, got {_named(dataset)}. "
        f"{_OTHERWISE}"
    )


def without_variances(dataset: Any) -> tuple[tuple[Any, Any], Tensor | float]:
    """`(inputs, targets)` and the variances of `(inputs, (targets, variances))`."""
    if isinstance(dataset, (tuple, list)) and len(dataset) == 2:
        inputs, pair = dataset
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            targets, given = pair
            variances = given if isinstance(given, float) else _as_tensor(given)
            if variances is not None:
                return (inputs, targets), variances
    raise TypeError(
        "fastmlp.TrainStep.fit: expected (inputs, (targets, variances)) of tensors or arrays, got "
        f"{_named(dataset)}. {_OTHERWISE}"
    )


_OTHERWISE = "For others, call the step on the batches of a DataLoader"


def _as_tensor(item: Any) -> Tensor | None:
    """Of a tensor, or of what NumPy takes for an array, which is not copied where torch can read
    it; None for anything else."""
    if isinstance(item, Tensor):
        return item.detach() if item.requires_grad and not torch.is_grad_enabled() else item
    if not hasattr(item, "__array__"):
        return None
    array = np.asarray(item)
    if array.dtype.kind not in "biuf":  # no numbers
        return None
    if array.dtype == np.longdouble:  # torch has none
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch would warn of the one, and cannot have the other
    return torch.from_numpy(array)


def _named(dataset: Any) -> str:
    if isinstance(dataset, (tuple, list)):
        return f"({', '.join(type(item).__name__ for item in dataset[:3])})"
    return type(dataset).__name__


def as_columns(targets: Tensor, outputs: int, classes: bool) -> Tensor:
    """Targets `[rows]` of a model with one output, which is `[rows, 1]`, in that shape: torch would
    compare each with every other."""
    return targets.unsqueeze(1) if targets.ndim == 1 and outputs == 1 and not classes else targets


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


class TableSteps:
    """Steps on the rows of a table, batch after batch.

    Args:
        step: the step.
        table: the rows.
        buffer: `[batch_size, features]` of the parameters' dtype, overwritten.
    """

    def __init__(self, step: TrainStep, table: Table, buffer: Tensor) -> None:
        self.step, self.table, self.buffer = step, table, buffer

    def start(self, order: Tensor) -> None:
        """These rows come next, int64."""
        self.order = order

    def learn(self, batches: int) -> tuple[list[float], list[int], Tensor]:
        """Each batch's loss and right predictions, and the rows of all."""
        rows, self.order = self.order.tensor_split((batches * len(self.buffer),))
        losses, correct = self.step._steps(self.buffer, self.table, rows)
        return losses.tolist(), correct.tolist(), rows


class Fit(EpochLoop):
    """The loop of `TrainStep.fit`.

    Args:
        steps: the step and its data.
        order: gives the rows of an epoch.
        classes: whether the targets are classes.
        epochs, batches: as of `EpochLoop`.
        callback, every: as of `TrainStep.fit`.
    """

    def __init__(
        self,
        steps: TableSteps,
        order: Callable[[], Tensor],
        classes: bool,
        epochs: int,
        batches: int,
        callback: Callable[[Report], object] | None,
        every: int,
    ) -> None:
        self.score = Scores(len(steps.buffer))
        super().__init__(epochs, batches, [self.score])
        self.steps, self.order, self.classes = steps, order, classes
        self.callback, self.every = callback, every
        self.reports: list[Report] = []

    def start_epoch(self) -> None:
        self.steps.start(self.order())

    def limits(self) -> tuple[int, ...]:
        return self.batch, self.batches, self.every

    def learn(self, batches: int) -> float:
        losses, correct, rows = self.steps.learn(batches)
        step, targets = self.steps.step, self.steps.table.targets
        ignored = step._ignored(targets, rows) if self.classes else 0
        self.score.count(losses, correct, len(rows), ignored)
        return losses[-1]

    def end_run(self) -> None:
        is_due = self.batch % self.every == 0 or self.batch == self.batches
        if self.callback is not None and is_due:
            self.callback(self._report(self.score.window))
            self.score.window = Score()

    def end_epoch(self) -> None:
        self.reports.append(self._report(self.score.epoch))
        super().end_epoch()

    def _report(self, score: Score) -> Report:
        error = score.wrong_fraction if self.classes else None
        return Report(self.epoch + 1, self.batch, self.batches, score.loss, error)
