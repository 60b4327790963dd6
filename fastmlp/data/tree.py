"""A tree of PNG files, `<label>/<name>.png`."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from .._progress import Bar
from . import tree_cache
from .images import DataError, LabelError
from .png import encode_png, read_pngs

_ENCODERS = 4  # threads; more would only wait for one another
_FILES_A_TASK = 250


class PngTree:
    """The files of a tree, in the order of their labels and then of their names.

    Args:
        root: holds one folder a label, named by its number, of PNG files. Other files are passed
            over, and so is what has a name that begins with . or, of folders, with __.
        classes: labels must be in 0 … classes - 1.

    Attributes:
        paths: the files, at least one.
        labels: int64 `[n]`.

    Raises:
        DataError: a folder that is no label, a file that cannot be looked at, no file.
    """

    def __init__(self, root: Path, classes: int) -> None:
        self.root = root
        self.paths: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256()
        now = time.time_ns()
        self._age = now  # of the file that changed last, in nanoseconds before it was looked at
        for label, folder in sorted(_label_folders(root, classes)):
            files = sorted(_png_files(folder))
            labels += [label] * len(files)
            self.paths += [f"{folder}{os.sep}{name}" for name, *_ in files]
            for _, _, *times, _ in files:
                self._age = min(self._age, *(abs(now - each) for each in times))
            digest.update(repr((os.path.basename(folder), files)).encode())
        if not self.paths:
            raise DataError(f"{root}: no images <label>/*.png")
        self.labels = torch.tensor(labels)
        self._key = digest.digest()

    def read(
        self,
        *,
        cache: bool = True,
        progress: bool | None = None,
        faults: list[DataError] | None = None,
    ) -> Tensor:
        """All images, uint8 `[n, H, W]`; colours turn to grey.

        Args:
            cache: whether they may come from an earlier reading, as tree_cache has them, and stay
                for the next one.
            progress, faults: as read_pngs() has them.

        Raises:
            DataError: an image is broken or of another size than the first.
        """
        images = tree_cache.load(self.root, self._key, len(self.paths)) if cache else None
        if images is None:
            images = read_pngs(self.paths, progress=progress, faults=faults)
            if cache and not faults:
                tree_cache.store(self.root, self._key, self._age, images)
        return images

    def numbers(self) -> Tensor | None:
        """The files' names as numbers, int64 `[n]`, if these are 0 … n - 1, as write_png_tree()
        has it and many others, who began with IDX files; otherwise None."""
        stems = [os.path.basename(path)[: -len(".png")] for path in self.paths]
        if not all(stem.isascii() and stem.isdecimal() for stem in stems):
            return None
        numbers = [int(stem) for stem in stems]
        return torch.tensor(numbers) if sorted(numbers) == list(range(len(stems))) else None


def write_png_tree(
    root: Path, images: Tensor, labels: Tensor, *, progress: bool | None = None
) -> None:
    """Writes each image to `<label>/<row>.png`.

    Args:
        root: a folder that is there and is empty.
        images: uint8 `[n, H, W]`.
        labels: int64 `[n]`, none negative.
    """
    digits = max(5, len(str(len(labels) - 1)))  # so that names are in the order of the rows
    folders = [os.path.join(root, str(label)) for label in labels.tolist()]
    for folder in set(folders):
        os.mkdir(folder)
    pixels = images.numpy()

    def write(start: int) -> int:
        rows = range(start, min(start + _FILES_A_TASK, len(folders)))
        for row in rows:
            with open(f"{folders[row]}{os.sep}{row:0{digits}d}.png", "xb") as file:
                file.write(encode_png(pixels[row]))
        return len(rows)

    with (
        Bar(len(folders), progress, leave=False, unit="file", delay=1) as bar,
        ThreadPoolExecutor(min(_ENCODERS, os.cpu_count() or 1)) as pool,
    ):
        for written in pool.map(write, range(0, len(folders), _FILES_A_TASK)):
            bar.advance(written)


def _label_folders(root: Path, classes: int) -> Iterator[tuple[int, str]]:
    for folder in _entries(root):
        if folder.name.startswith((".", "__")) or not stat.S_ISDIR(_status(folder).st_mode):
            continue
        if not (folder.name.isascii() and folder.name.isdecimal()):
            raise DataError(f"{folder.path}: not a label's folder: its name is not a number")
        label = int(folder.name)
        if label >= classes:
            raise LabelError(f"{folder.path}: label {label} is out of range 0…{classes - 1}")
        yield label, folder.path


def _png_files(folder: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Each file's name, and what tells that it is another or has changed: its size in bytes, the
    times in nanoseconds of the content's and of any change, its inode.

    cp -p, rsync, unzip and others set the first time to what they please, not the second.
    """
    for file in _entries(folder):
        if file.name[-4:].lower() == ".png" and not file.name.startswith("."):
            status = _status(file)
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                raise DataError(f"{file.path}: cannot be read: not a regular file")
            times = status.st_mtime_ns, status.st_ctime_ns
            yield file.name, status.st_size, *times, status.st_ino


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """That of what a link leads to."""
    try:
        return entry.stat()
    except OSError as error:
        raise DataError(f"{entry.path}: cannot be read: {error.strerror}") from error


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
