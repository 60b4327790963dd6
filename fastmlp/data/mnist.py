"""MNIST, or any set in one of its formats."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._files import expand
from .idx import read_idx
from .images import DataError, ImageDataset, check_labels
from .tree import PngTree

# The names of the training part (True) and the test part: of IDX files, and of trees.
PREFIXES = {True: "train", False: "t10k"}
TREES = {True: ("training", "train"), False: ("testing", "test")}
DIMENSIONS = {"images": 3, "labels": 1}  # of the IDX files of either kind


class MNISTDataset(ImageDataset):
    """The training or the test part of MNIST, or of any set in its format, from files.

    Reads, in this order of preference,
      - IDX files, gzipped or not, in `dir` or in `dir/MNIST/raw` (where torchvision puts them):
        `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`; in the files' order;
      - PNG files `training/<label>/*.png` and `testing/<label>/*.png` (or `train`, `test`); by
        label, then by file name. Needs Pillow. What is decoded is kept for the next time, in a
        hidden file beside the tree or, where none can be written there, in the user's folder for
        caches; it is used as long as the PNG files' names, sizes, times and inodes stay the same.

    Args:
        dir: the folder; a ~ at its beginning is the home folder.
        train: the training part; otherwise the test part.
        transform: what to make of an image, see ImageDataset. None gives float32 `[1, H, W]`
            in [0, 1]; any callable that takes a PIL image will do.
        classes: labels must be in 0 … classes - 1.
        cache: whether decoded PNG files are kept, and taken from where they were kept.

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
        cache: bool = True,
    ) -> None:
        part = find_part(Path(expand(dir)), train)
        if isinstance(part, IdxPair):
            images, labels = part.read(classes)
        else:
            tree = PngTree(part, classes)
            images, labels = tree.read(cache=cache), tree.labels
        super().__init__(images, labels, transform)


class MissingPart(DataError):
    """A folder has nothing of the training, or of the test part."""


class IdxPair(NamedTuple):
    """A part as IDX files."""

    images: Path
    labels: Path

    def read(self, classes: int) -> tuple[Tensor, Tensor]:
        """Images uint8 `[n, H, W]` and labels int64 `[n]` in 0 … classes - 1, or a DataError."""
        images = read_idx(self.images, 3)
        labels = read_idx(self.labels, 1).to(torch.int64)
        if len(images) != len(labels):
            raise DataError(
                f"{self.labels}: {len(labels)} labels for the {len(images)} images of {self.images}"
            )
        check_labels(labels, classes, self.labels)
        return images, labels


def find_part(root: Path, train: bool) -> IdxPair | Path:
    """What MNISTDataset reads of a folder: two IDX files, or the folder of a PNG tree.

    Raises:
        MissingPart: there is neither.
        DataError: there is no such folder, or one IDX file without the other.
    """
    if not is_folder(root):
        raise DataError(f"{root}: {'not a folder' if _kind(root) else 'no such folder'}")
    for folder in idx_folders(root):
        images = next(find_idx(folder, train, "images"), None)
        labels = next(find_idx(folder, train, "labels"), None)
        if images and labels:
            return IdxPair(images, labels)
        if images or labels:
            missing = idx_name(train, "labels" if images else "images")
            raise DataError(f"{folder / missing}[.gz]: no such file, beside {images or labels}")
    for name in TREES[train]:
        if is_folder(root / name):
            return root / name
    raise MissingPart(
        f"{root}: neither {idx_name(train, 'images')}[.gz] in it nor a folder "
        f"{' or '.join(TREES[train])}"
    )


def idx_folders(root: Path) -> tuple[Path, Path]:
    """Where IDX files may lie, in the order of preference."""
    return root, root / "MNIST" / "raw"


def idx_name(train: bool, kind: str, joint: str = "-") -> str:
    """A file's name in MNIST, unzipped: train-images-idx3-ubyte."""
    return f"{PREFIXES[train]}-{kind}{joint}idx{DIMENSIONS[kind]}-ubyte"


def find_idx(folder: Path, train: bool, kind: str) -> Iterator[Path]:
    """The IDX files that hold a part's images or labels, in the order of preference."""
    for joint in "-.":  # both spellings are in circulation
        for suffix in ("", ".gz"):
            name = f"{idx_name(train, kind, joint)}{suffix}"
            if _kind(folder / name) not in (0, stat.S_IFDIR):  # read_idx() says what it is else
                yield folder / name


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a DataError if that cannot be known."""
    return _kind(path) == stat.S_IFDIR


def _kind(path: Path) -> int:
    """stat.S_IFREG and so on, of what a link leads to; 0 where nothing is."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name of a file
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
