"""Damaged files: IDX, gzip, PNG, what is kept of a PNG tree, and checkpoints.

    python tests/support/fuzz_files.py --seed 1 --count 100000

Each file follows from the seed and its number alone, so that one of them can be made again
(`--first N --count 1`). What is read has to be what another reader finds in the same bytes, or has
to be refused by the error that is documented. Anything else ends the program with the file's
number.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import math
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from image_files import idx_bytes, random_images, write_idx, write_png_tree
from states import assert_same

from fastmlp import checkpoint
from fastmlp.app.cli import main as command
from fastmlp.checkpoint import CheckpointError
from fastmlp.data import DataError, MNISTDataset, png, tree_cache
from fastmlp.data.idx import read_idx

EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 127, 128, 255)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type of PNG


def damage(draw: random.Random, content: bytes) -> bytes:
    """The bytes with one to three changes."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(changed) + 1)
        if draw.random() < 0.4:
            at = min(at, draw.randrange(80))  # headers are short
        end = min(len(changed), at + draw.choice((1, 1, 2, 4, 8, 40)))
        kind = draw.randrange(9)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at:end]
        elif kind == 2:
            changed[at:at] = draw.randbytes(end - at)
        elif kind == 3:
            changed[at:end] = bytes([draw.choice((0, 255))]) * (end - at)
        elif kind == 4:
            changed[at:at] = changed[at:end]
        elif kind == 5:
            changed += draw.choice((b"\0", b"\0" * 9, bytes(changed), draw.randbytes(5)))
        elif at < len(changed):
            changed[at] = draw.choice((draw.choice(EDGES), changed[at] ^ 1 << draw.randrange(8)))
    return bytes(changed)


# ---- IDX -------------------------------------------------------------------------------------


def idx_as_it_is(content: bytes, dimensions: int) -> np.ndarray | None:
    """The array of an IDX file of so many dimensions; None if it is none."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return None
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        return None
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if not math.prod(shape) or len(content) != start + math.prod(shape):
        return None
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def idx(draw: random.Random, folder: Path) -> None:
    dimensions = draw.choice((1, 3))
    shape = [draw.randint(1, 9) for _ in range(dimensions)]
    content = idx_bytes(torch.randint(256, shape, dtype=torch.uint8))
    if draw.random() < 0.3:
        content = damage(draw, content)
    if draw.random() < 0.05:  # much more than is promised, of which gzip makes little
        content += bytes(1 << 22)
    if draw.random() < 0.5:
        content = gzip.compress(content, draw.randint(0, 9), mtime=0)
    if draw.random() < 0.7:
        content = damage(draw, content)
    path = folder / "idx"
    path.write_bytes(content)
    wanted = idx_as_it_is(content, dimensions)
    if wanted is None:
        with pytest.raises(DataError, match=r"\A[^\n]+\Z"):
            read_idx(path, dimensions)
    else:
        assert np.array_equal(read_idx(path, dimensions).numpy(), wanted)


# ---- PNG -------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_file(draw: random.Random, width: int, height: int, colour: int) -> bytes:
    """A PNG file of random scan lines; opaque, more often than not, where it has an alpha channel.

    With some chance its parts are damaged, and the checksums are right nevertheless.
    """
    depth = draw.choice((8, 8, 8, 8, 16) + ((1, 2, 4) if colour in (0, 3) else ()))
    depth = 8 if colour == 3 and depth == 16 else depth
    channels = _CHANNELS[colour]
    size = -(-width * channels * depth // 8)
    filters = (0, 0, 0, 0, 0) if colour in (4, 6) else (0, 1, 2, 3, 4)
    lines = []
    for _ in range(height):
        line = bytearray(draw.randbytes(size))
        if colour in (4, 6) and draw.random() < 0.97:
            for sample in range(channels - 1, width * channels, channels):
                line[sample * depth // 8 : (sample + 1) * depth // 8] = b"\xff" * (depth // 8)
        lines.append(bytes([draw.choice(filters)]) + line)
    data = zlib.compress(b"".join(lines), draw.randint(0, 9))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw.random() < 0.05)
    before, after = [], []
    if colour == 3:
        before.append([b"PLTE", draw.randbytes(3 * draw.choice((256, 2**depth, 3)))])
    if draw.random() < 0.2:
        length = {0: 2, 2: 6}.get(colour, draw.randint(1, 256))
        before.append([b"tRNS", bytes(draw.choice(EDGES) for _ in range(length))])
    for place in (before, after):
        if draw.random() < 0.2:
            kind = draw.choice((b"tEXt", b"gAMA", b"pHYs", b"bKGD", b"zTXt", b"iCCP", b"IDAT"))
            place.append([kind, draw.randbytes(draw.choice((0, 1, 4, 9)))])
    parts = [[b"IHDR", header], *before, [b"IDAT", data], *after, [b"IEND", b""]]
    if draw.random() < 0.3:
        part = draw.choice(parts)
        part[1] = damage(draw, part[1])
    if draw.random() < 0.05:
        draw.shuffle(parts)
    if draw.random() < 0.1:
        parts.insert(draw.randrange(len(parts)), draw.choice(parts))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, bytes(data)) for kind, data in parts)
    return damage(draw, content) if draw.random() < 0.4 else content


def images(draw: random.Random, folder: Path) -> None:
    """Files of one size, by stacks and one by one: the same images, or the same errors."""
    width, height, colour = draw.randint(1, 9), draw.randint(1, 9), draw.choice((0, 0, 2, 3, 4, 6))
    paths = []
    for number in range(draw.randint(1, 6)):
        path = folder / f"{number}.png"
        path.write_bytes(image_file(draw, width, height, colour))
        paths.append(str(path))

    def read(large: int) -> tuple[torch.Tensor, list[str]]:
        faults: list[DataError] = []
        with mock.patch.object(png, "_LARGE", large):
            got = png.read_pngs(paths, faults=faults)
        return got, [str(fault) for fault in faults]

    at_once, faults = read(1 << 16)
    alone, faults_alone = read(0)
    assert all("\n" not in fault for fault in faults)
    assert sorted(faults) == sorted(faults_alone)
    assert torch.equal(at_once, alone)
    wanted, refused = pillow(paths)
    assert [fault.split(":")[0] for fault in sorted(faults)] == refused
    assert torch.equal(at_once, wanted)


def pillow(paths: list[str]) -> tuple[torch.Tensor, list[str]]:
    """What Pillow has, and the files that cannot be read or are not like the first that can."""
    from PIL import Image

    found: list[np.ndarray | None] = []
    for path in paths:
        pixels = None
        with contextlib.suppress(Exception):
            with Image.open(path) as image:
                image.verify()
            with Image.open(path) as image:
                if image.mode in png._EIGHT_BITS and png._opaque(image, path):
                    image.info.pop("transparency", None)
                    pixels = np.array(image.convert("L"))
        found.append(pixels)
    shape = next((each.shape for each in found if each is not None), (0, 0))
    wrong = [each is None or each.shape != shape for each in found]
    rows = [np.zeros(shape, np.uint8) if bad else each for each, bad in zip(found, wrong)]  # noqa: B905
    refused = [path for path, bad in zip(paths, wrong, strict=True) if bad]
    return torch.from_numpy(np.stack(rows)), refused


# ---- what is kept of a tree ------------------------------------------------------------------


def kept(draw: random.Random, folder: Path) -> None:
    """A damaged file beside a PNG tree never tells of other images than the tree's."""
    root = folder / "data"
    if not root.exists():
        write_png_tree(root / "training", *random_images(20))
    file = root / ".training.fastmlp"
    with (
        mock.patch.object(tree_cache, "_LEAST", 1),
        mock.patch.object(tree_cache, "_SAME_TIME", 0),
    ):
        wanted = MNISTDataset(root, cache=False).images
        assert torch.equal(MNISTDataset(root).images, wanted)
        whole = file.read_bytes()
        file.write_bytes(damage(draw, whole))
        assert torch.equal(MNISTDataset(root).images, wanted)
        assert file.read_bytes() == whole  # as it was, or made anew


# ---- checkpoints -----------------------------------------------------------------------------


def states(draw: random.Random, folder: Path) -> None:
    """A damaged checkpoint is refused, or what is loaded is what was saved."""
    whole = saved(folder)
    file = folder / "damaged.pt"
    file.write_bytes(damage(draw, whole.read_bytes()))
    with contextlib.suppress(CheckpointError):
        assert_same(checkpoint.load(file), checkpoint.load(whole))


def repacked_states(draw: random.Random, folder: Path) -> None:
    """Likewise where checksums are right: it is refused, or goes on."""
    whole = saved(folder)
    file = folder / "damaged.pt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        spoilt = draw.choice([name for name in names if name.endswith("data.pkl")] * 9 + names)
        for name in names:
            content = old.read(name)
            new.writestr(name, damage(draw, content) if name == spoilt else content)
    told, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(said):
        status = command(["train", "--checkpoint", str(file), "--resume"])
    assert status in (0, 1)
    if status:
        assert told.getvalue().startswith("fastmlp: "), told.getvalue()
        assert told.getvalue().count("\n") == 1, told.getvalue()


def saved(folder: Path) -> Path:
    """The checkpoint of a training that has an epoch left."""
    file = folder / "whole.pt"
    if not file.exists():
        for train in (True, False):
            write_idx(folder / "idx_files", *random_images(40), train)
        go = ["train", "--data-dir", str(folder / "idx_files"), "--sizes", "24,3,10"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert command([*go, "--epochs", "1", "--checkpoint", str(file)]) == 0
        state = checkpoint.load(file)
        state["options"]["epochs"] = 2
        checkpoint.save(file, state)
    return file


KINDS: dict[Callable[[random.Random, Path], None], int] = {
    idx: 40,
    images: 30,
    kept: 10,
    states: 10,
    repacked_states: 10,
}


def run(
    seed: int, first: int, count: int, tell: Callable[[str], None] | None = None
) -> Counter[str]:
    """Reads damaged files and returns how many of each kind.

    Raises:
        AssertionError: one was read otherwise than it should be.
    """
    made: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            draw = random.Random(f"{seed}/{number}")
            torch.manual_seed(draw.getrandbits(63))
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                kind(draw, Path(folder))
            except Exception as error:
                raise AssertionError(
                    f"file {number} of seed {seed} ({kind.__name__}): "
                    f"{type(error).__name__}: {error}"
                ) from error
            made[kind.__name__] += 1
            if tell is not None:
                tell(f"{number}: {dict(made)}")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(line, flush=True)

    print(dict(run(options.seed, options.first, options.count, tell)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
