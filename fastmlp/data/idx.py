"""Reads and writes IDX files: the format of the MNIST files, gzipped or not.

A header of the bytes 0, 0, 8 (the code of unsigned bytes), d (the number of dimensions) and the
d dimensions, each of four bytes, big-endian; then the data, the last dimension running fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .._files import open_regular, write_whole
from .images import DataError

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = 8
_AT_ONCE = 1 << 20  # bytes


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, as a uint8 tensor.

    Args:
        path: the file; its content, not its name, says whether it is gzipped.
        dimensions: how many the data must have: 3 for images `[n, H, W]`, 1 for labels `[n]`.

    Raises:
        DataError: no such file, or it is not what it should be.
    """
    try:
        with open_regular(path) as file:
            zipped = file.read(2) == _GZIP
            file.seek(0)
            if not zipped:
                return _read(file, path, dimensions)
            with gzip.open(file) as unzipped:
                return _read(unzipped, path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def write_idx(path: Path, array: Tensor) -> None:
    """Writes an IDX file, whole or not at all; gzipped if its name ends in .gz.

    The same array gives the same bytes: what gzip would say of time and name is left out.

    Args:
        path: the file, which is replaced.
        array: uint8, of any shape.
    """
    content = idx_content(array)
    if path.suffix != ".gz":
        write_whole(path, lambda file: file.write(content))
        return

    def write(file: BinaryIO) -> None:
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:  # 6: 9 takes 14 times as long
            zipped.write(content)

    write_whole(path, write)


def idx_content(array: Tensor) -> bytes:
    """What an IDX file of an array, uint8 of any shape, holds."""
    if array.dtype != torch.uint8:
        raise TypeError(f"IDX files are written of uint8, not of {array.dtype}")
    header = struct.pack(f">4B{array.ndim}I", 0, 0, _UNSIGNED_BYTES, array.ndim, *array.shape)
    return header + array.numpy().tobytes()


def _read(file: BufferedIOBase, path: Path, dimensions: int) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file: it begins with {start.hex(' ') or 'nothing'}")
    code, found = start[2:]
    if code != _UNSIGNED_BYTES:
        raise DataError(f"{path}: its elements are of type 0x{code:02x}, not unsigned bytes (0x08)")
    if found != dimensions:
        swapped = {1: "these are labels, not images", 3: "these are images, not labels"}
        hint = swapped.get(found, "it is mislabelled")
        raise DataError(f"{path}: it has {found} dimensions instead of {dimensions}: {hint}")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"{path}: truncated inside its header, after {4 + len(header)} bytes")
    shape = struct.unpack(f">{dimensions}I", header)
    promised, text = math.prod(shape), "×".join(map(str, shape))
    # In pieces: neither what the header promises, which may be a lie, nor what gzip can make of a
    # small file is memory that is asked for before it is known to be needed.
    content = bytearray()
    while piece := file.read(min(_AT_ONCE, promised + 1 - len(content))):
        content += piece
    if len(content) > promised:
        raise DataError(f"{path}: too long: more than the {text} bytes of data that are promised")
    if len(content) < promised:
        raise DataError(
            f"{path}: truncated: {len(content)} bytes of data where {text} are promised"
        )
    if not promised:
        raise DataError(f"{path}: empty: its dimensions are {text}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)
