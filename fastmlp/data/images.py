"""Labelled images in memory: what all datasets here have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .._faults import Fault, require
from .transforms import ToTensor, takes_batches


class DataError(Fault, ValueError):
    """A file or folder of data is missing or broken; the message names it and the fault."""


class LabelError(DataError):
    """A label is beyond the number of classes."""


class ImageDataset(Dataset[tuple[Any, int]]):
    """Grey images of one size and their labels, all in memory, in a fixed order.

    Args:
        images: uint8 `[n, H, W]`, contiguous; 0 is black.
        labels: int64 `[n]`.
        transform: what to make of an image. None gives a tensor, float32 `[1, H, W]` in [0, 1], as
            ToTensor() does. A transform with a true attribute `on_batches` (as those of this
            package) gets a uint8 tensor `[1, H, W]`, or `[n, 1, H, W]` from `__getitems__`; one
            that inherits the attribute and has a `__call__` of its own gets `[1, H, W]` alone.
            Any other gets a PIL image of mode L, as torchvision would give it.

    Items are pairs of the transformed image and the label, an int. A derived class may make them
    otherwise, in `__getitem__`: batches are then made of its items, one by one.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                "expected images uint8 [n, H, W] and labels [n], not "
                f"{images.dtype} {list(images.shape)} and {list(labels.shape)}"
            )
        self.images = images.contiguous()
        self.labels = labels.to(torch.int64)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        row = range(len(self))[index]  # counts from the end if negative; raises IndexError
        label = int(self.labels[row])
        transform = self._batch_transform()
        if transform is not None:
            return transform(self.images[row : row + 1].clone()), label
        assert self.transform is not None
        pil = require("PIL.Image", "Pillow", "this transform, which takes PIL images,")
        return self.transform(pil.fromarray(self.images[row].numpy())), label

    def __getitems__(self, indices: Sequence[SupportsIndex] | Tensor) -> Sequence[tuple[Any, int]]:
        """`[self[index] for index in indices]`, at once where the transform allows it.

        Args:
            indices: what a batch sampler yields; fastest as a tensor, int64 `[n]`, none negative.
        """
        transform = self._batch_transform()
        if transform is None or not takes_batches(transform) or _differs(self, _ITEM):
            rows = indices.tolist() if isinstance(indices, Tensor) else indices
            return [self[row] for row in rows]
        if not isinstance(indices, Tensor):
            all_rows = range(len(self))
            indices = torch.tensor([all_rows[index] for index in indices], dtype=torch.int64)
        # index_select: two and a half times as fast as images[indices]
        images = transform(self.images.index_select(0, indices).unsqueeze(1))
        return Batch(images, self.labels.index_select(0, indices))

    def _batch_transform(self) -> Callable[[Tensor], Any] | None:
        """The transform that takes tensors; None where it takes PIL images."""
        if self.transform is None:
            return ToTensor()
        return self.transform if getattr(self.transform, "on_batches", False) else None


# What an item is made by, and what it is made of.
_ITEM = ("__getitem__", "__len__", "__getattribute__", "_batch_transform")
_PARTS = ("images", "labels", "transform")


def has_own_items(dataset: ImageDataset) -> bool:
    """Whether a derived class makes items, or what they are made of, in a way of its own.

    If so, `images`, `labels` and `transform` do not tell what the items are.
    """
    return _differs(dataset, (*_ITEM, "__getitems__"))


def _differs(dataset: ImageDataset, methods: Sequence[str]) -> bool:
    own = type(dataset)
    if own is ImageDataset:
        return False
    return any(getattr(own, name) is not getattr(ImageDataset, name) for name in methods) or any(
        hasattr(type(getattr(own, name, None)), "__set__")  # a property, for one
        for name in _PARTS
    )


class Batch(Sequence[tuple[Any, int]]):
    """Pairs of image and label that lie together as `images` [n, ...] and `labels` int64 [n]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[Any, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> tuple[Any, int] | Batch:
        if isinstance(index, slice):
            return Batch(self.images[index], self.labels[index])
        return self.images[index], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return zip(self.images.unbind(0), self.labels.tolist(), strict=True)


def collate(samples: Sequence[Any]) -> Any:
    """torch's default_collate, which takes a Batch whole instead of stacking its images anew.

    Give it to a DataLoader as `collate_fn`: it halves the loader's time.
    """
    if isinstance(samples, Batch):
        return [samples.images, samples.labels]
    return default_collate(samples)  # type: ignore[arg-type]


def check_labels(labels: Tensor, classes: int, source: object) -> None:
    """Raises a LabelError that names the source if a label is not in 0 … classes - 1."""
    labels = labels.to(torch.int64)  # 256 is no uint8, and compares as 0
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise LabelError(
            f"{source}: label {int(labels[row])} of image {row} is out of range 0…{classes - 1}"
        )
