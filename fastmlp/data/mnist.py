"""MNIST, or any set in one of its formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .idx import read_idx
from .images import DataError, ImageDataset, check_labels
from .png import read_png_tree


class MNISTDataset(ImageDataset):
    """The training or the test part of MNIST, or of any set in its format, from files.

    Reads, in this order of preference,
      - IDX files, gzipped or not, in `dir` or in `dir/MNIST/raw` (where torchvision puts them):
        `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`; in the files' order;
      - PNG files `training/<label>/*.png` and `testing/<label>/*.png` (or `train`, `test`); by
        label, then by file name. Needs Pillow.

    Args:
        dir: the folder.
        train: the training part; otherwise the test part.
        transform: what to make of an image, see ImageDataset. None gives float32 `[1, H, W]`
            in [0, 1]; any callable that takes a PIL image will do.
        classes: labels must be in 0 … classes - 1.

    Raises:
        DataError: the folder or a file in it is missing or broken; names it and the fault.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        classes: int = 10,
    ) -> None:
        root = Path(dir)
        if not root.is_dir():
            fault = "not a folder" if root.exists() else "no such folder"
            raise DataError(f"{root}: {fault}")
        images, labels = _read(root, train, classes)
        super().__init__(images, labels, transform)


def _read(root: Path, train: bool, classes: int) -> tuple[Tensor, Tensor]:
    prefix = "train" if train else "t10k"
    for folder in (root, root / "MNIST" / "raw"):
        images = _find(folder, prefix, "images", 3)
        labels = _find(folder, prefix, "labels", 1)
        if images and labels:
            return _read_pair(images, labels, classes)
        if images or labels:
            missing = f"{prefix}-labels-idx1-ubyte" if images else f"{prefix}-images-idx3-ubyte"
            raise DataError(f"{folder / missing}[.gz]: no such file, beside {images or labels}")
    names = ("training", "train") if train else ("testing", "test")
    for name in names:
        if (root / name).is_dir():
            return read_png_tree(root / name, classes)
    raise DataError(
        f"{root}: neither {prefix}-images-idx3-ubyte[.gz] in it nor a folder {' or '.join(names)}"
    )


def _find(folder: Path, prefix: str, kind: str, dimensions: int) -> Path | None:
    for joint in "-.":  # both spellings are in circulation
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{kind}{joint}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _read_pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    pixels = read_idx(images, 3)
    digits = read_idx(labels, 1).to(torch.int64)
    if len(pixels) != len(digits):
        raise DataError(f"{labels}: {len(digits)} labels for the {len(pixels)} images of {images}")
    check_labels(digits, classes, labels)
    return pixels, digits
