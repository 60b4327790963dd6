"""`fastmlp data convert`: the same images as IDX files or as a PNG tree."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from .._faults import Fault
from .._files import remove_drafts, write_folder
from .digits import DigitsDataset
from .idx import write_idx
from .images import ImageDataset
from .mnist import TREES, IdxPair, MissingPart, MNISTDataset, find_part, idx_name
from .tree import PngTree, write_png_tree
from .tree_cache import SUFFIX

DIGITS = "digits"  # the source that stands for the embedded digits
PARTS = {True: "training", False: "test"}
_CLASSES = 256  # labels are bytes in IDX files
_DATA = re.compile(  # what a folder may hold that is replaced
    r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?"
    rf"|training|testing|train|test|\.(training|testing|train|test){re.escape(SUFFIX)}"
)


def convert(source: str, target: str, to: str, *, gzip: bool, overwrite: bool) -> None:
    """Writes a data set's parts, those that are there, in another format, and tells of each.

    Args:
        source: a folder as MNISTDataset reads it, or "digits".
        target: the folder to make.
        to: "idx", for IDX files, in which images lie as in the source, those of a PNG tree by their
            names if these are 0 … n - 1; or "png", for a tree with such names. So IDX files come
            back from a tree byte by byte.
        gzip: whether IDX files are gzipped.
        overwrite: whether a folder that holds a data set, and nothing else, is replaced.

    Raises:
        Fault: the source has a fault, or the target is in use.
    """
    place = Path(os.path.realpath(target))
    _check_target(target, place, source, overwrite)
    parts = read_parts(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_drafts(place)

    def fill(folder: Path) -> None:
        for train, (images, labels) in parts.items():
            if to == "png":
                tree = folder / TREES[train][0]
                tree.mkdir()
                write_png_tree(tree, images, labels)
            else:
                arrays = {"images": images, "labels": labels.to(torch.uint8)}
                for kind, array in arrays.items():
                    name = idx_name(train, kind) + (".gz" if gzip else "")
                    write_idx(folder / name, array)

    write_folder(target, fill, replace=overwrite)
    for train in (True, False):
        if train in parts:
            count, height, width = parts[train][0].shape
            print(f"{PARTS[train]:8} {count} images of {height}×{width}: {target}")
        else:
            print(f"{PARTS[train]:8} none in {source}")


def read_parts(source: str) -> dict[bool, tuple[Tensor, Tensor]]:
    """Images uint8 `[n, H, W]` and labels int64 `[n]` of the training part (True) and the test."""
    if source == DIGITS:
        return {train: _tensors(DigitsDataset(train)) for train in (True, False)}
    parts: dict[bool, tuple[Tensor, Tensor]] = {}
    missing: list[MissingPart] = []
    for train in (True, False):
        try:
            part = find_part(Path(source), train)
        except MissingPart as error:
            missing.append(error)
            continue
        parts[train] = part.read(_CLASSES) if isinstance(part, IdxPair) else _read_tree(part)
    if not parts:
        raise missing[0]
    return parts


def dataset(source: str, train: bool) -> ImageDataset:
    """A part of a folder's data set, or of the embedded digits."""
    if source == DIGITS:
        return DigitsDataset(train)
    return MNISTDataset(source, train, classes=_CLASSES)


def _tensors(data: ImageDataset) -> tuple[Tensor, Tensor]:
    return data.images, data.labels


def _read_tree(root: Path) -> tuple[Tensor, Tensor]:
    tree = PngTree(root, _CLASSES)
    images, numbers = tree.read(cache=False), tree.numbers()
    if numbers is None:
        return images, tree.labels
    order = numbers.argsort()
    return images[order], tree.labels[order]


def _check_target(target: str, place: Path, source: str, overwrite: bool) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise Fault(f"{target}: not a folder")
    if place == Path.cwd() or place in Path.cwd().parents:
        raise Fault(f"{target}: is the working folder or around it: give a folder of its own")
    names = sorted(os.listdir(place))
    if not names:
        return
    if not overwrite:
        raise Fault(f"{target}: is not empty: give another folder, or --overwrite to replace it")
    for name in names:
        if not _DATA.fullmatch(name):
            raise Fault(f"{target}: is not replaced, as {name} in it is no part of a data set")
    real = Path(os.path.realpath(source))
    if source != DIGITS and (real == place or place in real.parents):
        raise Fault(f"{target}: cannot be replaced by what is read from it: give another folder")
