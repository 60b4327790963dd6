"""Reads and writes many small PNG files.

Of a file of 28×28 pixels Pillow opens one in the time in which it could decode ten. So Pillow sees
none of the usual files: their scan lines are inflated here, laid below one another, and given to it
as one tall image. Any other file, and any that is large or broken, it gets as it is: what is read,
and what is said of a file that cannot be, is always Pillow's. But it leaves out transparency when
it turns an image to grey: digits drawn in black on a transparent ground would be black all over. So
images are refused that are not opaque everywhere.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._faults import require
from .._progress import Bar
from .images import DataError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")  # length and kind, before its data; behind it a CRC of kind and data
_CRC = struct.Struct(">I")
_HEADER = struct.Struct(">IIBBBBB")  # IHDR: width, height, depth, colour type, three methods
_MOST_TEXT = 1 << 16  # bytes
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: grey, RGB, grey and alpha, RGB and alpha
_SCALES = {1: 255, 2: 85, 4: 17, 8: 1}  # of grey, by depth, to bytes as Pillow has them
# Chunks that change no pixel as Pillow has it, and their lengths; of another it may refuse them.
_WITHOUT_EFFECT: dict[bytes, Container[int]] = {
    b"bKGD": (1, 2, 6),
    b"cHRM": (32,),
    b"gAMA": (4,),
    b"pHYs": (9,),
    b"sRGB": (1,),
    b"tEXt": range(_MOST_TEXT),
    b"tIME": (7,),
}
_EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA"}  # modes that turn to grey without loss of range

_AHEAD = 64  # files that are open at a time, far fewer than a process may have
_STACK = 1 << 22  # bytes of scan lines that make a tall image
# Bytes of scan lines from which an image is large: decoding, for which Pillow needs no interpreter,
# takes so long that threads gain more than they lose by waiting for one another.
_LARGE = 1 << 16
_BYTES_AT_ONCE = 1 << 16  # of a file; most have less
_MOST_BYTES = 1 << 20  # of a file that is not large; of one with more, Pillow reads what it needs
# Bytes of pixels that are asked for on the word of the first image alone.
_ON_TRUST = 1 << 30
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)


def read_pngs(
    paths: Sequence[str], *, progress: bool | None = None, faults: list[DataError] | None = None
) -> Tensor:
    """The images of PNG files of one size, turned to grey.

    Args:
        paths: the files, at least one.
        progress: whether a bar is shown, see Bar.
        faults: a list to add what is wrong to, and to go on: such an image is black. Otherwise the
            first fault is raised.

    Returns:
        uint8 `[n, H, W]`; H and W are those of the first image that can be read.

    Raises:
        DataError: an image is broken, of another size or not opaque; or they are more than can be
            held.
    """
    reader = _Reader(paths, faults)
    with Bar(len(paths), progress, leave=False, unit="file", delay=1) as bar:
        reader.read(bar)
    return torch.from_numpy(reader.images)


def encode_png(image: Pixels) -> bytes:
    """A grey image, uint8 `[H, W]`, as the content of a PNG file."""
    height, width = image.shape
    lines = np.zeros((height, 1 + width), dtype=np.uint8)  # a line begins with its filter: none
    lines[:, 1:] = image
    return _file(_HEADER.pack(width, height, 8, 0, 0, 0, 0), zlib.compress(lines.data))


def _file(header: bytes, data: bytes) -> bytes:
    return b"".join(
        (_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    crc = zlib.crc32(data, zlib.crc32(kind))
    return _CHUNK.pack(len(data), kind), data, _CRC.pack(crc)


@dataclass(frozen=True)
class _Layout:
    """A plain image: eight bits a channel, no palette, lines in their order."""

    header: bytes  # IHDR
    width: int
    height: int
    channels: int

    @property
    def line(self) -> int:
        """Bytes of a scan line, which begins with its filter."""
        return 1 + self.width * self.channels

    @property
    def size(self) -> int:
        """Bytes of all scan lines."""
        return self.height * self.line

    @classmethod
    def of(cls, content: bytes) -> _Layout | None:
        """That of a file; None if it is not plain."""
        begin = len(_SIGNATURE) + _CHUNK.size
        header = content[begin : begin + _HEADER.size]
        if len(header) < _HEADER.size:
            return None
        width, height, depth, colour, *methods = _HEADER.unpack(header)
        if depth != 8 or colour not in _CHANNELS or any(methods) or not width * height:
            return None
        return cls(header, width, height, _CHANNELS[colour])

    def scan_lines(self, content: bytes) -> bytes | None:
        """A file's scan lines; None if it is not of this layout, or is not as it should be."""
        if not content.startswith(_SIGNATURE):
            return None
        kinds: list[bytes] = []  # of chunks; parts of the data that follow one another are one
        header, parts, at = b"", [], len(_SIGNATURE)
        try:
            while not kinds or kinds[-1] != b"IEND":
                length, kind = _CHUNK.unpack_from(content, at)
                begin, end = at + 8, at + 8 + length
                if _CRC.unpack_from(content, end)[0] != zlib.crc32(content[at + 4 : end]):
                    return None
                if kind == b"IDAT":
                    parts.append(content[begin:end])
                elif kind == b"IHDR":
                    header = content[begin:end]
                elif kind != b"IEND" and length not in _WITHOUT_EFFECT.get(kind, ()):
                    return None
                if not (kind == b"IDAT" and kinds[-1:] == [kind]):
                    kinds.append(kind)
                at = end + 4
            if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or kinds.count(b"IDAT") != 1:
                return None
            inflater = zlib.decompressobj()
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            lines = inflater.decompress(
                data, self.size + 1
            )  # one more would show that it is longer
        except (struct.error, zlib.error):
            return None
        whole = header == self.header and len(lines) == self.size and inflater.eof
        return lines if whole else None

    def stack(self, images: Sequence[bytes]) -> bytes:
        """A PNG file of images below one another, each with a black line below it.

        Filters look up at most one line, and the first of an image has to find black there.
        """
        count = len(images)
        below = bytes(self.line)
        data = zlib.compress(below.join((*images, b"")), 0)
        height = count * (self.height + 1)
        return _file(_HEADER.pack(self.width, height, *self.header[8:]), data)


class _Reader:
    """Fills `images` from files."""

    def __init__(self, paths: Sequence[str], faults: list[DataError] | None) -> None:
        self.pil = require("PIL.Image", "Pillow", "reading PNG files")
        self.paths = paths
        self.faults = faults
        self.first, shape = self._find_first()
        self.images = self._allocate(shape)
        layout = _Layout.of(next(_read_ahead([self.first]))[0])
        self.large = layout is not None and layout.size >= _LARGE
        self.layout = None if self.large else layout

    def _allocate(self, shape: tuple[int, ...]) -> Pixels:
        size = len(self.paths) * math.prod(shape)
        if size > _ON_TRUST:  # what a single file of a wrong size may ask for
            for path in self.paths:
                found = _header_size(path)
                if found is not None and found != shape:
                    raise self._other_size(path, found, shape)
        try:
            return np.zeros((len(self.paths), *shape), dtype=np.uint8)
        except (MemoryError, ValueError) as error:
            raise DataError(
                f"{self.first}: {len(self.paths)} images of its size, {_by(shape)} pixels, need "
                f"{size / 2**30:.0f} GiB of memory"
            ) from error

    def _other_size(
        self, path: str, found: tuple[int, ...], expected: tuple[int, ...]
    ) -> DataError:
        return DataError(
            f"{path}: {_by(found)} pixels instead of {_by(expected)} as in {self.first}"
        )

    def read(self, bar: Bar) -> None:
        if self.large:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for fault in pool.map(self._read_alone, range(len(self.paths))):
                    self._note(fault)
                    bar.advance(1)
            return
        rows: list[int] = []  # whose scan lines wait for their stack
        stack: list[bytes] = []
        row = size = 0
        for contents in _read_ahead(self.paths):
            for content in contents:
                lines = self.layout.scan_lines(content) if self.layout else None
                if lines is None:
                    self._note(self._read_alone(row))
                else:
                    rows.append(row)
                    stack.append(lines)
                    size += len(lines)
                row += 1
            if size >= _STACK:
                self._read_stack(rows, stack)
                rows, stack, size = [], [], 0
            bar.advance(len(contents))
        self._read_stack(rows, stack)

    def _note(self, fault: DataError | None) -> None:
        if fault is None:
            return
        if self.faults is None:
            raise fault
        self.faults.append(fault)

    def _find_first(self) -> tuple[str, tuple[int, ...]]:
        """The first file that can be read, whose size all must have, and that size."""
        for path in self.paths:
            try:
                return path, self._decode(path).shape
            except DataError:
                if self.faults is None:
                    raise
        return self.paths[0], (0, 0)

    def _read_stack(self, rows: list[int], stack: list[bytes]) -> None:
        if not stack:
            return
        assert self.layout is not None
        try:
            with self.pil.open(io.BytesIO(self.layout.stack(stack))) as image:
                pixels = self._apart(np.asarray(image.convert("L")), len(rows))
                opaque = np.ones(len(rows), dtype=bool)
                if "A" in image.getbands():
                    alpha = self._apart(np.asarray(image.getchannel("A")), len(rows))
                    opaque = alpha.min(axis=(1, 2)) == 255
        except Exception:  # one of them has a line of no known filter: Pillow will say which
            for row in rows:
                self._note(self._read_alone(row))
        else:
            self.images[rows] = pixels
            for place in np.flatnonzero(~opaque):
                self.images[rows[place]] = 0
                self._note(self._read_alone(rows[place]))

    def _apart(self, pixels: Pixels, count: int) -> Pixels:
        """The images of a stack, without the lines between them."""
        height, width = self.images.shape[1:]
        return pixels.reshape(count, height + 1, width)[:, :height]

    def _read_alone(self, row: int) -> DataError | None:
        """Fills a row by Pillow, or says why it cannot be."""
        path = self.paths[row]
        try:
            image = self._decode(path)
        except DataError as error:
            return error
        if image.shape == self.images.shape[1:]:
            self.images[row] = image
            return None
        return self._other_size(path, image.shape, self.images.shape[1:])

    def _decode(self, path: str) -> Pixels:
        """An image, uint8 `[H, W]`, as Pillow has it."""
        try:
            with self.pil.open(path) as image:
                image.verify()  # the checksums, which decoding passes over; it ends the image
            with self.pil.open(path) as image:
                if image.mode not in _EIGHT_BITS:
                    raise DataError(f"{path}: pixels of mode {image.mode}, not of 8 bits")
                if not _opaque(image, path):
                    raise DataError(
                        f"{path}: has transparent pixels, whose grey depends on what lies behind "
                        "them: save it with an opaque ground, black or white"
                    )
                image.info.pop("transparency", None)  # of which convert() would warn
                return np.asarray(image.convert("L"))
        except DataError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
        except Exception as error:  # Pillow lets through whatever its decoder met
            reason = str(error) or type(error).__name__
        raise DataError(f"{path}: broken image: {reason}")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _start(path: str) -> bytes:
    """A file's bytes up to the first that can differ in size: of a PNG file, all of IHDR."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_SIGNATURE) + _CHUNK.size + _HEADER.size)
    except OSError:
        return b""


def _header_size(path: str) -> tuple[int, int] | None:
    """Height and width as a PNG file has them at its beginning; None if it is none."""
    start = _start(path)
    if not start.startswith(_SIGNATURE) or start[12:16] != b"IHDR" or len(start) < 29:
        return None
    width, height, *_ = _HEADER.unpack(start[16:])
    return height, width


def _opaque(image: Any, path: str) -> bool:
    """Whether no pixel of an image of _EIGHT_BITS is transparent, even in part."""
    if "A" in image.getbands():
        return bool(image.getchannel("A").getextrema()[0] == 255)
    key = image.info.get("transparency")
    if key is None:
        return True
    pixels = np.asarray(image)
    if image.mode == "P":  # alpha by index, or the one index that is transparent
        used = np.unique(pixels)
        if isinstance(key, int):
            return key not in used
        alpha = np.frombuffer(key, dtype=np.uint8)
        return bool((alpha[used[used < len(alpha)]] == 255).all())
    depth = _start(path)[24] if image.format == "PNG" else 8
    samples = np.atleast_1d(key)
    if depth == 16:  # of which Pillow keeps the upper half: what may be the key's colour is
        samples = samples >> 8
    elif image.mode in ("1", "L"):
        samples = (samples & (2**depth - 1)) * _SCALES[depth]
    pixels = pixels.astype(np.uint8) * (255 if image.mode == "1" else 1)
    same = pixels.reshape(*pixels.shape[:2], -1) == (samples & 255)
    return not bool(same.all(axis=2).any())


def _read_ahead(paths: Sequence[str]) -> Iterator[list[bytes]]:
    """The contents of files, some of them at a time; of one that cannot be read, nothing.

    All of those are asked for before the first is read. A disk that has to fetch them works on them
    side by side, at a tenth of the time, and one that need not costs no more than the asking.
    """
    advise = getattr(os, "posix_fadvise", None)
    for start in range(0, len(paths), _AHEAD):
        files: list[int | None] = []
        try:
            for path in paths[start : start + _AHEAD]:
                try:
                    file = os.open(path, _FLAGS)
                except OSError:
                    files.append(None)
                    continue
                files.append(file)
                if advise is not None:
                    advise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            yield [b"" if file is None else _read_file(file) for file in files]
        finally:
            for each in files:
                if each is not None:
                    os.close(each)


def _read_file(file: int) -> bytes:
    try:
        content = os.read(file, _BYTES_AT_ONCE)
        if len(content) < _BYTES_AT_ONCE:
            return content
        parts = [content]
        while parts[-1] and len(parts) * _BYTES_AT_ONCE < _MOST_BYTES:
            parts.append(os.read(file, _BYTES_AT_ONCE))
        return b"".join(parts)
    except OSError:
        return b""
