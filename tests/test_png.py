"""PNG trees: what Pillow reads one by one, read all at once; and what is kept of it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
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
    contents = [png_file(filtered(rng, 5, 7, channels), 5, 7, colour=colour) for _ in range(150)]
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
        png_file(lines, 8, 8, before=chunk(b"tRNS", b"\0\5")),
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


BROKEN: dict[str, Callable[[], bytes]] = {
    "unknown filter": with_filter_5,
    "checksum": with_a_wrong_crc,
    "no signature": lambda: b"\0" + png_file(bytes(28), 6, 4)[1:],
    "no end": lambda: png_file(bytes(28), 6, 4)[:-12],
    "no data": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
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


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches; small trees are kept too."""
    monkeypatch.setattr(tree_cache, "_LEAST", 1)
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


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": rewrite,
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
def test_any_change_is_seen(
    root: Path, reads: list[int], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_cache, "_SAME_TIME", 0)
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


def test_new_files_are_not_kept(root: Path, reads: list[int]) -> None:
    path = root / "training" / "7" / "00007.png"
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    check(root)
    assert os.listdir(root) == ["training"]


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
