"""Batches of tensors that are in memory anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

_BATCHES_AT_ONCE = 1024  # whose rows are made views of the order in one call


class TensorLoader(DataLoader[tuple[Tensor, ...]]):
    """`DataLoader(TensorDataset(*tensors), ...)` that gathers a batch in one go.

        loader = TensorLoader(x, y, batch_size=50, shuffle=True)
        for inputs, labels in loader: ...                    # float32 [50, 784], int64 [50]

    The batches are the same, in the same order for the same state of the generator, and the
    generator is at every moment where DataLoader would leave it. There are no workers, and no
    sampler of one's own: a DataLoader is the place for those.

    Args:
        data: tensors `[n, ...]` with equally many rows, on one device, of any dtype that
            `torch.index_select` takes; or one TensorDataset of such tensors. Nothing is copied.
        batch_size: rows of a batch; positive.
        shuffle: a new order every epoch; otherwise the rows come as they lie.
        drop_last: leaves out the rows at the end that do not fill a batch.
        generator: where the order comes from. None: from torch's global generator.

    An epoch gives lists with a tensor `[batch_size, ...]` for each of the tensors, of its dtype and
    on its device: new memory, which is the caller's to write to. The last may have fewer rows.

    Raises:
        TypeError: data is neither tensors nor exactly a TensorDataset, since a class derived from
            it may make its items otherwise.
        ValueError: the tensors differ in the number of rows or in their device, one cannot be
            gathered from, batch_size or drop_last is not what it should be, or there is nothing to
            shuffle.
    """

    dataset: TensorDataset
    batch_size: int

    def __init__(
        self,
        *data: Tensor | TensorDataset,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        dataset = _dataset(data)
        if batch_size is None:  # DataLoader's way to ask for single items
            raise ValueError(
                "batch_size should be a positive integer value, but got batch_size=None"
            )
        super().__init__(dataset, batch_size, shuffle, drop_last=drop_last, generator=generator)

    def __iter__(self) -> Iterator[list[Tensor]]:  # type: ignore[override]
        # The seed that DataLoader draws for its workers, even where there are none.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return self._batches()

    def _batches(self) -> Iterator[list[Tensor]]:
        tensors = self.dataset.tensors
        for rows in self._rows():
            yield [tensor.index_select(0, rows) for tensor in tensors]

    def _rows(self) -> Iterator[Tensor]:
        """The rows of each batch, int64 `[batch_size]`.

        What DataLoader's samplers yield, and draws when they draw, but never as a list of numbers,
        which would take half as long again as gathering.
        """
        count = len(self.dataset)
        whole = count - count % self.batch_size
        generator = None
        if isinstance(self.sampler, RandomSampler):
            generator = self.sampler.generator
            order = torch.randperm(count, generator=generator or _seeded())
        else:
            order = torch.arange(count)
        order = order.to(self.dataset.tensors[0].device)
        for batches in order[:whole].view(-1, self.batch_size).split(_BATCHES_AT_ONCE):
            yield from batches.unbind()
        if generator is not None:
            torch.randperm(count, generator=generator)  # RandomSampler's, when asked past its end
        if whole < count and not self.drop_last:
            yield order[whole:]


def _seeded() -> torch.Generator:
    """What RandomSampler draws from if it is given no generator."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return torch.Generator().manual_seed(seed)


def _dataset(data: Sequence[Tensor | TensorDataset]) -> TensorDataset:
    """The one given, or one of the tensors given; all of them can be gathered from."""
    if len(data) == 1 and type(data[0]) is TensorDataset:
        _check(data[0].tensors)
        return data[0]
    tensors = [tensor for tensor in data if isinstance(tensor, Tensor)]
    if not tensors or len(tensors) < len(data):
        given = ", ".join(type(item).__name__ for item in data) or "nothing"
        raise TypeError(
            f"TensorLoader takes tensors or one TensorDataset, but got {given} "
            "(batch_size and what follows are given by name)"
        )
    _check(tensors)
    return TensorDataset(*tensors)


def _check(tensors: Sequence[Tensor]) -> None:
    if any(tensor.ndim == 0 for tensor in tensors):
        raise ValueError("tensors should have rows, but got one of no dimension")
    counts = [len(tensor) for tensor in tensors]
    if len(set(counts)) > 1:
        raise ValueError(f"tensors should have equally many rows, but got {counts}")
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors should be on one device, but got {sorted(devices)}")
    for tensor in tensors:
        rows = torch.zeros(min(1, len(tensor)), dtype=torch.int64, device=tensor.device)
        try:
            tensor.index_select(0, rows)
        except RuntimeError as error:
            raise ValueError(
                "tensors should be such that index_select gathers their rows, but got one of "
                f"{tensor.dtype} {list(tensor.shape)}: {str(error).splitlines()[0]}"
            ) from error
