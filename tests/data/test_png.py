"""PNG trees: what Pillow reads one by one, read all at once; and what is kept of it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import random_images, write_png_tree
from torch import Tensor

from fastmlp._faults import Fault
from fastmlp.data import DataError, MNISTDataset, png, tree, tree_cache
from fastmlp.data.png import encode_png, read_pngs
from fastmlp.data.tree import PngTree

pil = pytest.importorskip("PIL.Image")


def one_by_one(paths: list[str]) -> Tensor:
    images = []
    for path in paths:
        with pil.open(path) as image:
            images.append(torch.from_numpy(np.array(image.convert("L"))))
    return torch.stack(images)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(
    lines: bytes, width: int, height: int, *, colour: int = 0, depth: int = 8, interlaced: int = 0,
    before: bytes = b"", parts: int = 1, after: bytes = b"",
) -> bytes:  # fmt: skip
    """A PNG file of scan lines, which begin with their filters."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = zlib.compress(lines)
    step = -(-len(data) // parts)
    chunks = [chunk(b"IDAT", data[start : start + step]) for start in range(0, len(data), step)]
    end = (before, *chunks, after, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(end)


def filtered(rng: np.random.Generator, width: int, height: int, channels: int = 1) -> bytes:
    """Scan lines of random bytes, each with one of the five filters, all of which are valid."""
    lines = rng.integers(0, 256, (height, 1 + width * channels), dtype=np.uint8)
    lines[:, 0] = rng.integers(0, 5, height)
    return lines.tobytes()


def opaque_lines(rng: np.random.Generator, width: int, height: int, channels: int) -> bytes:
    """Scan lines of random pixels whose last channel is 255, by the five filters in turns."""
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[..., -1] = 255
    raw = np.zeros((height + 1, channels + width * channels), dtype=np.int64)  # black around
    raw[1:, channels:] = pixels.reshape(height, -1)
    lines = b""
    for row in range(1, height + 1):
        x, left = raw[row, channels:], raw[row, :-channels]
        up, corner = raw[row - 1, channels:], raw[row - 1, :-channels]
        guess = left + up - corner
        distances = np.stack([abs(guess - each) for each in (left, up, corner)])
        paeth = np.choose(distances.argmin(0), (left, up, corner))  # the first of the nearest
        method = row % 5
        predicted = (0 * x, left, up, (left + up) // 2, paeth)[method]
        lines += bytes([method]) + ((x - predicted) % 256).astype(np.uint8).tobytes()
    return lines


def write(folder: Path, contents: list[bytes]) -> list[str]:
    paths = [str(folder / f"{number:03d}.png") for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    return paths


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("stack", [1, 500, 1 << 22])
def test_every_filter_of_every_plain_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: int, channels: int, stack: int
) -> None:
    monkeypatch.setattr(png, "_STACK", stack)
    rng = np.random.default_rng(colour)
    lines = filtered if colour in (0, 2) else opaque_lines
    contents = [png_file(lines(rng, 5, 7, channels), 5, 7, colour=colour) for _ in range(150)]
    paths = write(tmp_path, contents)
    monkeypatch.setattr(png._Reader, "_read_alone", lambda *_: pytest.fail("one by one"))
    assert torch.equal(read_pngs(paths), one_by_one(paths))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (256, 300)])  # the last by threads
def test_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    paths = write(tmp_path, [png_file(filtered(rng, *size), *size) for _ in range(5)])
    images = read_pngs(paths)
    assert images.shape == (5, size[1], size[0])
    assert torch.equal(images, one_by_one(paths))


def test_files_of_all_kinds_beside_one_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = filtered(rng, 8, 8)
    text, colours = chunk(b"tEXt", b"a\0b"), chunk(b"PLTE", rng.bytes(3 * 256))
    contents = [
        png_file(lines, 8, 8),
        png_file(lines, 8, 8, parts=3),
        png_file(lines, 8, 8, before=text + chunk(b"gAMA", b"\0\0\1\0"), after=text),
        png_file(bytes(72), 8, 8, before=chunk(b"tRNS", b"\0\5")),  # no pixel is transparent
        png_file(lines, 8, 8, colour=3, before=colours),
        png_file(filtered(rng, 8, 8, 3), 8, 8, colour=2),
        png_file(filtered(rng, 1, 8), 8, 8, depth=1),
        png_file(b"".join(bytes(5) for _ in range(20)), 8, 8, interlaced=1),
        png_file(lines[:-9], 8, 8),  # too few lines: the others are black, says Pillow
        encode_png(rng.integers(0, 256, (8, 8), dtype=np.uint8)),
    ]
    for rotation in range(len(contents)):  # each of them is once the first
        paths = write(tmp_path, contents[rotation:] + contents[:rotation])
        assert torch.equal(read_pngs(paths), one_by_one(paths))


def filled(depth: int, samples: int) -> bytes:
    """Scan lines of eight rows of eight pixels that are 0, each of so many samples."""
    return (b"\0" + bytes(depth * samples)) * 8


def key(*samples: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(samples)}H", *samples))


COLOURS = chunk(b"PLTE", bytes(range(48)))
# In each file, pixels are 0 but for some, if any: whether the pixels are opaque, and the file.
TRANSPARENCY: dict[str, tuple[bool, bytes]] = {
    "grey": (False, png_file(filled(8, 1), 8, 8, before=key(0))),
    "grey, no pixel of the key": (True, png_file(filled(8, 1), 8, 8, before=key(1))),
    "grey of 1 bit, white": (False, png_file(b"\0\1" * 8, 8, 8, depth=1, before=key(1))),
    "grey of 1 bit": (True, png_file(filled(1, 1), 8, 8, depth=1, before=key(1))),
    "grey of 2 bits": (False, png_file(b"\0\0\2" * 8, 8, 8, depth=2, before=key(2))),
    "grey of 2 bits, not scaled": (True, png_file(b"\0\0\2" * 8, 8, 8, depth=2, before=key(3))),
    "grey of 4 bits": (False, png_file(b"\0\0\0\0\7" * 8, 8, 8, depth=4, before=key(7))),
    "RGB": (False, png_file(filled(8, 3), 8, 8, colour=2, before=key(0, 0, 0))),
    "RGB, one channel": (True, png_file(filled(8, 3), 8, 8, colour=2, before=key(0, 1, 0))),
    "RGB of 16 bits": (
        False,
        png_file(filled(16, 3), 8, 8, colour=2, depth=16, before=key(0, 0, 0)),
    ),
    "RGB of 16 bits, another": (
        True,
        png_file(filled(16, 3), 8, 8, colour=2, depth=16, before=key(0, 256, 0)),
    ),
    "palette": (
        False,
        png_file(filled(8, 1), 8, 8, colour=3, before=COLOURS + chunk(b"tRNS", b"\0")),
    ),
    "palette, half": (
        False,
        png_file(filled(4, 1), 8, 8, colour=3, depth=4, before=COLOURS + chunk(b"tRNS", b"\x80")),
    ),
    "palette, unused": (
        True,
        png_file(filled(8, 1), 8, 8, colour=3, before=COLOURS + chunk(b"tRNS", b"\xff\0\x80")),
    ),
    "palette, one unused": (
        True,
        png_file(filled(8, 1), 8, 8, colour=3, before=COLOURS + chunk(b"tRNS", b"\xff\0")),
    ),
    "grey and alpha": (False, png_file(filled(8, 2), 8, 8, colour=4)),
    "opaque grey and alpha": (True, png_file((b"\0" + b"\7\xff" * 8) * 8, 8, 8, colour=4)),
    "one pixel of grey and alpha": (
        False,
        png_file((b"\0" + b"\7\xff" * 8) * 7 + b"\0" + b"\7\xff" * 7 + b"\7\xfe", 8, 8, colour=4),
    ),
    "RGB and alpha": (False, png_file(filled(8, 4), 8, 8, colour=6)),
    "opaque RGB and alpha": (True, png_file((b"\0" + b"\7\6\5\xff" * 8) * 8, 8, 8, colour=6)),
    "grey and alpha of 16 bits": (False, png_file(filled(16, 2), 8, 8, colour=4, depth=16)),
    "interlaced": (False, png_file(bytes(200), 8, 8, colour=4, interlaced=1)),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow, one by one
@pytest.mark.parametrize("large", [1, 1 << 16])  # the first: by threads
@pytest.mark.parametrize("first", [False, True])  # which decides how the others are read
@pytest.mark.parametrize("kind", TRANSPARENCY)
def test_pixels_that_are_not_opaque_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, first: bool, large: int
) -> None:
    monkeypatch.setattr(png, "_LARGE", large)
    opaque, content = TRANSPARENCY[kind]
    others = [encode_png(np.zeros((8, 8), dtype=np.uint8))] * 3
    alike = TRANSPARENCY["opaque " + kind][1:] * 3 if "opaque " + kind in TRANSPARENCY else ()
    contents = [content, *alike, *others] if first else [*alike, *others, content]
    paths = write(tmp_path, contents)
    if opaque:
        assert torch.equal(read_pngs(paths), one_by_one(paths))
        return
    faulty = contents.index(content)
    with pytest.raises(DataError, match=f"^{paths[faulty]}: has transparent pixels"):
        read_pngs(paths)
    faults: list[DataError] = []
    images = read_pngs(paths, faults=faults)
    assert [str(fault).split(":")[0] for fault in faults] == [paths[faulty]]
    assert not images[faulty].any()


def test_a_first_image_of_another_size_asks_for_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(shape: tuple[int, ...], dtype: object) -> None:
        raise MemoryError

    small, large = (encode_png(np.zeros((side, side), dtype=np.uint8)) for side in (28, 90))
    paths = write(tmp_path, [large, small, small])
    monkeypatch.setattr(png.np, "zeros", no_memory)
    with pytest.raises(DataError, match=r"000.png: 3 images of its size, 90×90 pixels, need 0 GiB"):
        read_pngs(paths)
    monkeypatch.setattr(png, "_ON_TRUST", 3 * 90 * 90 - 1)
    with pytest.raises(DataError, match=r"001.png: 28×28 pixels instead of 90×90 as in .*000.png"):
        read_pngs(paths)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_named(tmp_path: Path, kind: str) -> None:
    write_png_tree(tmp_path / "training", *random_images(10))
    path = tmp_path / "training" / "3" / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DataError, match=f"^{path}: cannot be read: not a regular file$"):
        MNISTDataset(tmp_path)


def test_files_that_pillow_wrote(tmp_path: Path) -> None:
    images, _ = random_images(90, 20, 30)
    images[::2] = images[::2].sort(2).values  # smooth ones are filtered
    for number, image in enumerate(images):
        pil.fromarray(image.numpy()).save(tmp_path / f"{number:03d}.png", optimize=number % 3 == 0)
    assert torch.equal(read_pngs(sorted(map(str, tmp_path.iterdir()))), images)


def test_what_encode_png_writes_pillow_reads(tmp_path: Path) -> None:
    images, _ = random_images(10)
    paths = write(tmp_path, [encode_png(image.numpy()) for image in images.transpose(1, 2)])
    assert torch.equal(one_by_one(paths), images.transpose(1, 2))


def test_without_advice_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    images, _ = random_images(70)
    paths = write(tmp_path, [encode_png(image.numpy()) for image in images])
    assert torch.equal(read_pngs(paths), images)


def with_filter_5() -> bytes:
    return png_file(bytes([5, *bytes(6)]) * 4, 6, 4)


def with_a_wrong_crc() -> bytes:
    content = bytearray(png_file(bytes(28), 6, 4))
    content[-13] ^= 1  # the last byte before IEND
    return bytes(content)


def misplaced(kind: bytes) -> bytes:
    """The chunk of this kind last but for the end."""
    content = png_file(bytes(28), 6, 4)
    at = content.index(kind) - 4
    end = at + 12 + struct.unpack_from(">I", content, at)[0]
    return content[:at] + content[end:-12] + content[at:end] + content[-12:]


BROKEN: dict[str, Callable[[], bytes]] = {
    "unknown filter": with_filter_5,
    "checksum": with_a_wrong_crc,
    "no signature": lambda: b"\0" + png_file(bytes(28), 6, 4)[1:],
    "no end": lambda: png_file(bytes(28), 6, 4)[:-12],
    "no data": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    "header behind the data": lambda: misplaced(b"IHDR"),
    "short chunk": lambda: png_file(bytes(28), 6, 4, before=chunk(b"gAMA", b"")),
    "unknown chunk": lambda: png_file(bytes(28), 6, 4, before=chunk(b"IDAT", b"?")),
}


@pytest.mark.parametrize("large", [1, 1 << 16])  # the first: by threads
@pytest.mark.parametrize("place", [0, 1, 70])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, place: int, large: int
) -> None:
    monkeypatch.setattr(png, "_LARGE", large)
    images, _ = random_images(72)
    contents = [encode_png(image.numpy()) for image in images]
    contents[place] = BROKEN[fault]()
    paths = write(tmp_path, contents)
    with pytest.raises(DataError, match=f"^{paths[place]}: broken image: "):
        read_pngs(paths)
    faults: list[DataError] = []
    rest = read_pngs(paths, faults=faults)
    assert [str(error).split(":")[0] for error in faults] == [paths[place]]
    images[place] = 0
    assert torch.equal(rest, images)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
@pytest.mark.parametrize("broken", [False, True])
def test_no_file_stays_open(tmp_path: Path, broken: bool) -> None:
    images, _ = random_images(80)
    paths = write(tmp_path, [encode_png(image.numpy()) for image in images])
    if broken:
        Path(paths[70]).write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    if broken:
        with pytest.raises(DataError):
            read_pngs(paths)
    else:
        read_pngs(paths)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bar_counts_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(png.Bar, "advance", lambda self, units: counts.append(units))
    monkeypatch.setattr(tree.Bar, "advance", lambda self, units: counts.append(units))
    images, labels = random_images(300)
    tree.write_png_tree(tmp_path, images, labels)
    assert sum(counts) == 300
    assert len(counts) > 1
    counts.clear()
    PngTree(tmp_path, 10).read()
    assert sum(counts) == 300
    assert len(counts) > 1


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_png_tree(tmp_path / "train", *random_images(10))
    (tmp_path / "train" / "3" / "._00003.png").write_bytes(b"of another system")
    assert len(MNISTDataset(tmp_path)) == 10


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0/0.png", "0/2.PNG", "1/1.png"], [0, 2, 1]),
        (["0/0.png", "0/3.png", "1/1.png"], None),
        (["0/0.png", "0/1.png", "1/1.png"], None),
        (["0/0.png", "0/a.png", "1/1.png"], None),
        (["0/00000.png", "0/00002.png", "1/00001.png"], [0, 2, 1]),
    ],
)
def test_numbers_are_those_of_rows_or_none(
    tmp_path: Path, names: list[str], numbers: list[int] | None
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = PngTree(tmp_path, 10).numbers()
    assert (None if found is None else found.tolist()) == numbers


# ---- what is kept ----------------------------------------------------------------------------

IMAGES, LABELS = random_images(30)
ORDER = LABELS.argsort(stable=True)
LONG_AGO = 10**18  # nanoseconds: in 2001
SAME_TIME = tree_cache._SAME_TIME


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches; small trees, and such as have just been made, are kept too."""
    monkeypatch.setattr(tree_cache, "_LEAST", 1)
    monkeypatch.setattr(tree_cache, "_SAME_TIME", 0)
    monkeypatch.setattr(tree_cache, "_user_folder", lambda: tmp_path / "user" / "caches")
    return tmp_path / "user"


@pytest.fixture
def root(tmp_path: Path, user_folder: Path) -> Path:
    """A data set whose training part is 30 images as a PNG tree of long ago."""
    root = tmp_path / "data"
    write_png_tree(root / "training", IMAGES, LABELS)
    for path in root.glob("training/*/*.png"):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files were decoded, one number each time."""
    counts: list[int] = []

    def read(paths: list[str], **options: Any) -> Tensor:
        counts.append(len(paths))
        return read_pngs(paths, **options)

    monkeypatch.setattr(tree, "read_pngs", read)
    return counts


def kept(root: Path) -> Path:
    return root / ".training.fastmlp"


def check(root: Path) -> None:
    data = MNISTDataset(root)
    assert torch.equal(data.images, IMAGES[ORDER])
    assert torch.equal(data.labels, LABELS[ORDER])


def test_images_are_decoded_once(root: Path, reads: list[int], user_folder: Path) -> None:
    for _ in range(3):
        check(root)
    assert reads == [30]
    assert sorted(os.listdir(root)) == [".training.fastmlp", "training"]
    assert not user_folder.exists()


def test_a_link_to_a_tree_is_the_tree(root: Path, reads: list[int], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    check(root)
    check(tmp_path / "link")
    assert reads == [30]


def test_a_tree_that_is_moved_takes_its_images_along(root: Path, reads: list[int]) -> None:
    check(root)
    check(root.rename(root.with_name("moved")))
    assert reads == [30]


def test_cache_false_leaves_and_looks_at_nothing(root: Path, reads: list[int]) -> None:
    MNISTDataset(root, cache=False)
    assert os.listdir(root) == ["training"]
    check(root)
    kept(root).write_bytes(b"")
    MNISTDataset(root, cache=False)
    assert kept(root).read_bytes() == b""
    assert reads == [30, 30, 30]


def rewrite(root: Path) -> None:
    """Makes an image black, in as many bytes."""
    path = root / "training" / "7" / "00007.png"
    size = path.stat().st_size
    path.write_bytes(encode_png(np.zeros((4, 6), dtype=np.uint8)).ljust(size, b"\0"))
    assert path.stat().st_size == size


def replaced(root: Path, *, in_place: bool) -> None:
    """Puts another image in a file's place, of as many bytes and the same time, as cp -p does."""
    path = root / "training" / "7" / "00007.png"
    before = path.stat()
    content = path.read_bytes()
    other = encode_png(255 - IMAGES[7].numpy()).ljust(len(content), b"\0")
    assert len(other) == len(content)
    target = path if in_place else path.with_suffix(".new")
    target.write_bytes(other)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.replace(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def exchanged(root: Path) -> None:
    """Exchanges two files of equal size and time by renaming alone."""
    one, two = (root / "training" / name / f"0000{name}.png" for name in "67")
    for path in (one, two):
        path.write_bytes(path.read_bytes().ljust(200, b"\0"))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    MNISTDataset(root)  # which keeps this
    aside = one.with_suffix(".aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": rewrite,
    "changed, time restored": lambda f: replaced(f, in_place=True),
    "another, time restored": lambda f: replaced(f, in_place=False),
    "touched": lambda f: os.utime(f / "training/7/00007.png"),
    "added": lambda f: (f / "training/7/x.png").write_bytes(encode_png(IMAGES[0].numpy())),
    "removed": lambda f: (f / "training/7/00007.png").unlink(),
    "renamed": lambda f: (f / "training/7/00007.png").rename(f / "training/7/00027.png"),
    "moved": lambda f: (f / "training/7/00007.png").rename(f / "training/6/00007.png"),
    "label": lambda f: (f / "training/7").rename(f / "training/07"),
    "labels swapped": lambda f: (
        (f / "training/7").rename(f / "aside"),
        (f / "training/6").rename(f / "training/7"),
        (f / "aside").rename(f / "training/6"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen(root: Path, reads: list[int], change: str) -> None:
    check(root)
    CHANGES[change](root)
    first = MNISTDataset(root)
    assert len(reads) == 2
    wanted = MNISTDataset(root, cache=False)
    again = MNISTDataset(root)  # kept anew
    assert len(reads) == 3
    for data in (first, again):
        assert torch.equal(data.images, wanted.images)
        assert torch.equal(data.labels, wanted.labels)


def test_exchanged_files_are_seen(root: Path) -> None:
    check(root)
    exchanged(root)
    assert torch.equal(MNISTDataset(root).images, MNISTDataset(root, cache=False).images)


def test_a_copy_elsewhere_is_decoded_anew(root: Path, reads: list[int], tmp_path: Path) -> None:
    check(root)
    shutil.copytree(root, tmp_path / "copy")  # the cache and all, with their times
    for _ in range(2):
        check(tmp_path / "copy")
    assert reads == [30, 30]


@pytest.mark.parametrize("which", ["content", "anything"])
def test_new_files_are_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Of a file that has just changed the next change may bear the same time."""
    now = time.time_ns()
    path = root / "training" / "7" / "00007.png"
    os.utime(path, ns=(now, LONG_AGO if which == "anything" else now))
    others = root / "training" / "6" / "00006.png"
    os.utime(others, ns=(now, 2 * now))  # in the future: not the one that is looked at
    monkeypatch.setattr(tree_cache, "_SAME_TIME", SAME_TIME)
    if which == "content":  # as if the files had been there for long
        monkeypatch.setattr(tree, "_status", long_there)
    check(root)
    assert os.listdir(root) == ["training"]


def test_files_that_have_settled_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_cache, "_SAME_TIME", SAME_TIME)
    monkeypatch.setattr(tree, "_status", long_there)
    check(root)
    assert kept(root).exists()


def long_there(entry: os.DirEntry[str]) -> Any:
    status = entry.stat()
    return SimpleNamespace(
        st_mode=status.st_mode, st_size=status.st_size, st_ino=status.st_ino,
        st_mtime_ns=status.st_mtime_ns, st_ctime_ns=LONG_AGO,
    )  # fmt: skip


def test_few_bytes_are_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_cache, "_LEAST", IMAGES.numel() + 1)
    check(root)
    assert os.listdir(root) == ["training"]


def flip(place: int) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return change


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "inside its header": lambda p: p.write_bytes(p.read_bytes()[:20]),
    "too long": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "format": flip(0),
    "key": flip(20),
    "count": flip(48),
    "height": flip(56),
    "width": flip(64),
    "height and width exchanged": lambda p: p.write_bytes(
        p.read_bytes()[:56] + p.read_bytes()[64:72] + p.read_bytes()[56:64] + p.read_bytes()[72:]
    ),
    "checksum": flip(72),
    "first byte": flip(76),
    "last byte": flip(-1),
    "huge": lambda p: p.write_bytes(p.read_bytes()[:48] + b"\xff" * 24 + p.read_bytes()[72:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_and_mended(root: Path, reads: list[int], damage: str) -> None:
    check(root)
    whole = kept(root).read_bytes()
    DAMAGES[damage](kept(root))
    check(root)
    assert reads == [30, 30]
    assert kept(root).read_bytes() == whole


@pytest.mark.parametrize("error", [PermissionError(13, "?"), OSError(30, "?"), OSError(28, "?")])
def test_a_folder_that_cannot_be_written(
    root: Path,
    reads: list[int],
    user_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
) -> None:
    refuse_writing(monkeypatch, root, error)
    for _ in range(2):
        check(root)
    assert reads == [30]
    assert os.listdir(root) == ["training"]
    assert len(list(user_folder.rglob("*.fastmlp"))) == 1


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path, error: OSError) -> None:
    """As a root's tests cannot: they may write anywhere."""
    write_whole = tree_cache.write_whole

    def refuse(path: Path, write: Any) -> None:
        if folder in path.parents:
            raise error
        write_whole(path, write)

    monkeypatch.setattr(tree_cache, "write_whole", refuse)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder(root: Path, reads: list[int], user_folder: Path) -> None:
    root.chmod(0o500)
    try:
        for _ in range(2):
            check(root)
    finally:
        root.chmod(0o700)
    assert reads == [30]
    assert os.listdir(root) == ["training"]


def test_no_place_at_all(
    root: Path, reads: list[int], user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_writing(monkeypatch, root, PermissionError(13, "?"))
    user_folder.write_text("a file where the folder should be")
    for _ in range(2):
        check(root)
    assert reads == [30, 30]


def test_something_else_of_that_name(root: Path, reads: list[int]) -> None:
    kept(root).mkdir()  # write_whole() raises a Fault
    with pytest.raises(Fault):
        tree_cache.write_whole(kept(root), lambda file: None)
    for _ in range(2):
        check(root)
    assert reads == [30]


def test_broken_trees_are_not_kept(root: Path) -> None:
    (root / "training" / "7" / "00007.png").write_bytes(b"")
    os.utime(root / "training" / "7" / "00007.png", ns=(LONG_AGO, LONG_AGO))
    with pytest.raises(DataError, match=r"00007\.png: broken image"):
        MNISTDataset(root)
    PngTree(root / "training", 10).read(faults=[])
    assert os.listdir(root) == ["training"]


def test_two_processes_at_once(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fastmlp.data import MNISTDataset, tree_cache\n"
        "tree_cache._LEAST = 1\n"
        "Path(sys.argv[1]).touch()\n"
        "while len(list(Path(sys.argv[1]).parent.glob('ready*'))) < 2: time.sleep(0.001)\n"
        "for _ in range(20):\n"
        "    data = MNISTDataset(sys.argv[2])\n"
        "    print(int(data.images.sum()))\n"
        "    Path(sys.argv[2], '.training.fastmlp').unlink(missing_ok=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / f"ready{number}"), str(root)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert printed.split() == [str(int(IMAGES.sum()))] * 20
    check(root)
    assert sorted(os.listdir(root)) == [".training.fastmlp", "training"]
