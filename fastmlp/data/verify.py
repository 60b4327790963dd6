"""`fastmlp data verify`: whether a folder's files are whole, and MNIST's where they should be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .idx import idx_content, read_idx
from .images import DataError, LabelError, check_labels
from .mnist import DIMENSIONS, TREES, MissingPart, find_idx, find_part, idx_folders, is_folder
from .tree import PngTree

CLASSES = {True: 10, False: 256}  # of MNIST, and of any set: labels are bytes in IDX files
COUNTS = {True: 60_000, False: 10_000}  # MNIST's images
# SHA-256 of the content of MNIST's IDX files: of what CHECKSUMS in download.py are of, unzipped
CONTENTS = {
    (True, "images"): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    (True, "labels"): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    (False, "images"): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    (False, "labels"): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# unordered_checksum() of MNIST's parts
PARTS = {
    True: "da6370735bf1d490f086dde49c15f2ed0480ad05dc7c70abf5d36bf471d5e312",
    False: "0c7bc63f656fb2440dc2b5bea4ff3ac8632e305b73ec1dc88141a32d36204fac",
}
_TOLD = 10  # of a tree's faults


def verify(root: Path, *, mnist: bool = True) -> Iterator[tuple[bool, str]]:
    """Looks at all that MNISTDataset could read of a folder.

    Args:
        root: the folder.
        mnist: whether labels have to be MNIST's, and a part of as many images as MNIST's its.

    Yields:
        Of each file or tree whether it is as it should be, and a line about it; a line about each
        of the first wrong files of a tree, and about a part that is not there.

    Raises:
        DataError: there is no such folder.
    """
    for train in (True, False):
        try:
            find_part(root, train)
        except MissingPart as error:
            yield False, str(error)
            continue
        except DataError as error:
            if not is_folder(root):
                raise
            yield False, str(error)
        for folder in idx_folders(root):
            yield from _verify_idx(folder, train, mnist)
        for name in TREES[train]:
            if is_folder(root / name):
                yield from _verify_tree(root / name, train, mnist)


def unordered_checksum(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of labelled images that is the same in whatever order they are.

    Of the bytes of all of them, each the label's and then the pixels', in the order of the bytes.

    Args:
        images: uint8 `[n, H, W]`.
        labels: int64 `[n]` in 0 … 255.
    """
    rows = torch.cat((labels.to(torch.uint8).unsqueeze(1), images.flatten(1)), 1).numpy()
    rows = rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)
    return hashlib.sha256(np.sort(rows).tobytes()).hexdigest()


def _verify_idx(folder: Path, train: bool, mnist: bool) -> Iterator[tuple[bool, str]]:
    counts: dict[str, tuple[Path, int]] = {}
    for kind, dimensions in DIMENSIONS.items():
        for path in find_idx(folder, train, kind):
            try:
                array = read_idx(path, dimensions)
                if kind == "labels":
                    check_labels(array, CLASSES[mnist], path)
            except DataError as error:
                yield False, _told(error, mnist)
                continue
            if kind == "images":
                what = f"{path}: {_size(array)}"
            else:
                what = f"{path}: {len(array)} labels, {_counts(array)}"
            same = hashlib.sha256(idx_content(array)).hexdigest() == CONTENTS[train, kind]
            yield _verdict(what, same, len(array), train, mnist)
            counts.setdefault(kind, (path, len(array)))
    if len(counts) == 2:
        (images, of_images), (labels, of_labels) = counts["images"], counts["labels"]
        if of_images != of_labels:
            yield False, f"{labels}: {of_labels} labels for the {of_images} images of {images}"


def _verify_tree(root: Path, train: bool, mnist: bool) -> Iterator[tuple[bool, str]]:
    faults: list[DataError] = []
    try:
        tree = PngTree(root, CLASSES[mnist])
        images = tree.read(cache=False, faults=faults)
    except DataError as error:
        yield False, _told(error, mnist)
        return
    for fault in faults[:_TOLD]:
        yield False, str(fault)
    if faults:
        yield False, f"{root}: {len(faults)} of {len(images)} files are wrong"
        return
    what = f"{root}: {_size(images)}, {_counts(tree.labels)}"
    same = unordered_checksum(images, tree.labels) == PARTS[train]
    yield _verdict(what, same, len(images), train, mnist)


def _verdict(what: str, same: bool, count: int, train: bool, mnist: bool) -> tuple[bool, str]:
    if same:
        return True, f"{what}: MNIST's"
    if mnist and count == COUNTS[train]:
        return False, f"{what}: as many as MNIST's, but not MNIST's (SHA-256 differs)"
    return True, what


def _size(images: Tensor) -> str:
    count, height, width = images.shape
    return f"{count} images of {height}×{width}"


def _counts(labels: Tensor) -> str:
    """How often each label occurs."""
    counts = torch.bincount(labels.to(torch.int64), minlength=CLASSES[True]).tolist()
    return f"of 0…{len(counts) - 1}: {' '.join(map(str, counts))}"


def _told(error: DataError, mnist: bool) -> str:
    option = mnist and isinstance(error, LabelError)
    return f"{error} (--not-mnist is for other sets)" if option else str(error)
