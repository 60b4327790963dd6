"""Keeps the decoded images of a PNG tree, so that they are decoded once.

They lie in a hidden file beside the tree, or, where none can be written there, in the user's folder
for caches. It holds a digest of the names, sizes, times and inodes of the tree's files, by which a
reader sees that it is of another state or of a copy, and a checksum, by which it sees that it is
damaged. Nothing here fails: without a cache there is only more to do.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._faults import Fault
from .._files import remove_drafts, write_whole

SUFFIX = ".fastmlp"
_FORMAT = b"fastmlp images 2"
_HEADER = struct.Struct("<16s32s3Q")  # format, key, images' shape
_CRC = struct.Struct("<I")  # of header and images, between the two
# Fewer bytes are decoded in the blink of an eye, and leave nothing behind.
_LEAST = 1 << 20
# Nanoseconds within which two changes of a file may bear the same time, on the coarsest of file
# systems (FAT). What is that new might change again unseen.
_SAME_TIME = 2 * 10**9


def load(tree: Path, key: bytes, count: int) -> Tensor | None:
    """The images of a tree, uint8 `[count, H, W]`; None if they are not kept.

    Args:
        tree: its folder.
        key: 32 bytes, a digest of its state.
        count: of its files.
    """
    for place in _places(tree):
        with suppress(OSError, struct.error), place.open("rb") as file:
            header = file.read(_HEADER.size)
            form, of, *shape = _HEADER.unpack(header)
            [checksum] = _CRC.unpack(file.read(_CRC.size))
            size = os.fstat(file.fileno()).st_size - file.tell()
            if (form, of, shape[0]) != (_FORMAT, key, count):
                continue
            if size != shape[0] * shape[1] * shape[2]:
                continue
            images = np.empty(shape, dtype=np.uint8)
            if file.readinto(images.data) == size and _checksum(header, images) == checksum:
                return torch.from_numpy(images)
    return None


def store(tree: Path, key: bytes, age: int, images: Tensor) -> None:
    """Keeps the images of a tree for load(), if it is worthwhile and can be done.

    Args:
        age: nanoseconds from the last change of one of its files to when they were looked at.
    """
    if images.numel() < _LEAST or age < _SAME_TIME:
        return
    header = _HEADER.pack(_FORMAT, key, *images.shape)
    parts = header, _CRC.pack(_checksum(header, images.numpy())), images.numpy().data
    beside, own = _places(tree)
    for place in (beside, own):
        with suppress(OSError, Fault):
            if place is own:
                own.parent.mkdir(parents=True, exist_ok=True)
            remove_drafts(place)
            write_whole(place, lambda file: file.writelines(parts))
            return


def _checksum(header: bytes, images: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(images.data, zlib.crc32(header))


def _places(tree: Path) -> tuple[Path, Path]:
    """Where a tree's images may be kept, the better place first."""
    real = Path(os.path.realpath(tree))
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    return real.with_name(f".{real.name}{SUFFIX}"), _user_folder() / f"{name}{SUFFIX}"


def _user_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastmlp"
