"""`fastmlp data`: what it writes is what it read, and what is wrong is found and told."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import (
    PARTS,
    idx_bytes,
    mnist_folder,
    needs_mnist,
    random_images,
    write_idx,
    write_png_tree,
)

from fastmlp import _files
from fastmlp.app.cli import main
from fastmlp.data import DataError, MNISTDataset, convert, idx, verify
from fastmlp.data.sheet import sheet

pil = pytest.importorskip("PIL.Image")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """70 training and 30 test images of 4×6, as IDX files, with labels in no order."""
    folder = tmp_path / "data"
    for count, train in ((70, True), (30, False)):
        images, labels = random_images(count)
        write_idx(folder, images, labels.flip(0), train)
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `fastmlp data`, which must fail with this status in one line; returns the line."""

    def check(*arguments: object, status: int = 1) -> str:
        capsys.readouterr()
        try:
            got: object = main(["data", *map(str, arguments)])
        except SystemExit as end:
            got = end.code
        told = capsys.readouterr()
        assert got == status, told
        assert not told.out
        assert re.fullmatch(r"fastmlp( data( \w+)?)?: [^\n]+\n", told.err), told.err
        return told.err

    return check


def run(*arguments: object) -> None:
    assert main(["data", *map(str, arguments)]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their paths in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the parser ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: convert | show | verify"),
        (["turn"], "invalid choice"),
        (["convert", "a"], "required: DST, --to"),
        (["convert", "a", "b", "--to", "jpg"], "invalid choice: 'jpg'"),
        (["convert", "", "b", "--to", "idx"], "SRC: the name is empty"),
        (["show", "a"], "required: --out"),
        (["show", "a", "--out", "b.png", "--count", "0"], "'0' is not a whole number from 1"),
        (["show", "a", "--out", "b.png", "--train", "--test"], "not allowed with"),
        (["verify"], "required: DIR"),
    ],
)
def test_wrong_arguments_are_one_line(fails: Any, arguments: list[str], says: str) -> None:
    assert says in fails(*arguments, status=2)


@pytest.mark.parametrize(
    ("command", "says"),
    [("convert", ["--overwrite"]), ("show", ["(default: 100)", "(default: 20)", "(default: 0)"])],
)
def test_help_tells_defaults(
    capsys: pytest.CaptureFixture[str], command: str, says: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", command, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert all(text in told for text in says)


# ---- IDX files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_write_idx_is_read_again(tmp_path: Path, name: str) -> None:
    images, labels = random_images(9)
    for array in (images, labels.to(torch.uint8), images.transpose(1, 2)[::2]):
        idx.write_idx(tmp_path / name, array)
        content = (tmp_path / name).read_bytes()
        assert (content[:2] == b"\x1f\x8b") == name.endswith(".gz")
        assert (gzip.decompress(content) if name == "a.gz" else content) == idx_bytes(array)
        assert torch.equal(idx.read_idx(tmp_path / name, array.ndim), array)


def test_a_gzipped_idx_file_tells_neither_time_nor_name(tmp_path: Path) -> None:
    images, _ = random_images(9)
    for name in ("a.gz", "b.gz"):
        idx.write_idx(tmp_path / name, images)
    content = (tmp_path / "a.gz").read_bytes()
    assert content == (tmp_path / "b.gz").read_bytes()
    assert content[3:8] == bytes(5)  # flags: no name; then the time (RFC 1952)


def test_write_idx_refuses_what_is_not_bytes(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="uint8, not of torch"):
        idx.write_idx(tmp_path / "a", torch.arange(3))
    assert not list(tmp_path.iterdir())


# ---- convert ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
def test_idx_to_png_to_idx_gives_the_same_bytes(tmp_path: Path, data: Path, gz: bool) -> None:
    run("convert", data, tmp_path / "tree", "--to", "png")
    run("convert", tmp_path / "tree", tmp_path / "idx", "--to", "idx", *["--gzip"] * gz)
    got = contents(tmp_path / "idx")
    if gz:
        got = {name.removesuffix(".gz"): gzip.decompress(file) for name, file in got.items()}
    assert got == contents(data)
    assert len(got) == 4


def test_a_written_tree_is_what_the_dataset_reads(tmp_path: Path, data: Path) -> None:
    run("convert", data, tmp_path / "made" / "tree", "--to", "png")
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"tree"}  # no draft
    for train in (True, False):
        tree, files = (MNISTDataset(f, train) for f in (tmp_path / "made" / "tree", data))
        order = files.labels.argsort(stable=True)
        assert torch.equal(tree.images, files.images[order])
        assert torch.equal(tree.labels, files.labels[order])


def test_written_png_files_are_pillow_s(tmp_path: Path, data: Path) -> None:
    run("convert", data, tmp_path / "tree", "--to", "png")
    images = MNISTDataset(data).images
    for path in (tmp_path / "tree" / "training").glob("*/*.png"):
        with pil.open(path) as image:
            image.verify()
        with pil.open(path) as image:
            assert image.mode == "L"
            assert image.tobytes() == images[int(path.stem)].numpy().tobytes()


def test_png_files_of_other_names_come_by_label_and_name(tmp_path: Path) -> None:
    images, labels = random_images(30)
    write_png_tree(tmp_path / "tree" / "train", images, labels)
    (tmp_path / "tree/train/4/00004.png").rename(tmp_path / "tree/train/4/x.png")
    run("convert", tmp_path / "tree", tmp_path / "idx", "--to", "idx")
    assert torch.equal(MNISTDataset(tmp_path / "idx").labels, labels.sort().values)
    fours = MNISTDataset(tmp_path / "idx").images[12:15]
    assert torch.equal(fours, images[[14, 24, 4]])


def test_one_part_alone_and_labels_of_other_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = random_images(5)
    write_idx(tmp_path / "letters", images, torch.tensor([0, 61, 255, 3, 3]), train=False)
    run("convert", tmp_path / "letters", tmp_path / "tree", "--to", "png")
    assert "training none in" in capsys.readouterr().out
    run("convert", tmp_path / "tree", tmp_path / "idx", "--to", "idx")
    assert contents(tmp_path / "idx") == contents(tmp_path / "letters")


@pytest.mark.parametrize("to", ["idx", "png"])
def test_the_embedded_digits(tmp_path: Path, to: str) -> None:
    pytest.importorskip("sklearn")
    run("convert", "digits", tmp_path / "new", "--to", to)
    assert len(MNISTDataset(tmp_path / "new", train=True)) == 1442
    assert len(MNISTDataset(tmp_path / "new", train=False)) == 355


def test_what_is_there_is_replaced_only_when_asked(fails: Any, tmp_path: Path, data: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()  # empty: nothing to lose
    run("convert", data, target, "--to", "png")
    before = contents(target)
    assert "is not empty: give another folder, or --overwrite" in fails(
        "convert", data, target, "--to", "idx"
    )
    assert contents(target) == before
    run("convert", data, target, "--to", "idx", "--overwrite")
    assert contents(target) == contents(data)
    assert sorted(os.listdir(tmp_path)) == ["data", "new"]


def test_foreign_files_are_never_removed(fails: Any, tmp_path: Path, data: Path) -> None:
    target = tmp_path / "new"
    run("convert", data, target, "--to", "idx")
    (target / "thesis.tex").write_text("years")
    go = ("convert", data, target, "--to", "png", "--overwrite")
    assert "is not replaced, as thesis.tex in it is no part of a data set" in fails(*go)
    assert (target / "thesis.tex").read_text() == "years"
    assert len(contents(target)) == 5


def test_places_that_cannot_be_written(
    fails: Any, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(data)
    file = tmp_path / "file"
    file.touch()
    assert "not a folder" in fails("convert", data, file, "--to", "png")
    assert "what is read from it" in fails("convert", data, data, "--to", "png", "--overwrite")
    monkeypatch.chdir(data)
    assert "is the working folder" in fails("convert", data, ".", "--to", "png", "--overwrite")
    assert "--gzip is for --to idx" in fails(
        "convert", data, tmp_path / "new", "--to", "png", "--gzip"
    )
    assert "no such folder" in fails("convert", tmp_path / "no", tmp_path / "new", "--to", "png")
    assert contents(data) == before
    assert sorted(os.listdir(tmp_path)) == ["data", "file"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_ends_early_leaves_nothing(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: BaseException,
    existing: bool,
) -> None:
    target = tmp_path / "new"
    if existing:
        run("convert", data, target, "--to", "png")
    before = contents(tmp_path)
    writing = convert.write_idx
    calls = []

    def third_fails(path: Path, array: torch.Tensor) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise fault
        writing(path, array)

    monkeypatch.setattr(convert, "write_idx", third_fails)
    capsys.readouterr()
    status = main(["data", "convert", str(data), str(target), "--to", "idx", "--overwrite"])
    assert status == (130 if isinstance(fault, KeyboardInterrupt) else 1)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(tmp_path) == before
    assert target.exists() == existing


def test_the_old_folder_comes_back_if_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.name.endswith(".draft"):
            raise PermissionError(1, "Operation not permitted")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        _files.write_folder(target, lambda folder: (folder / "new").touch(), replace=True)
    assert list(contents(tmp_path)) == ["folder/old"]


def test_drafts_of_killed_processes_are_removed(tmp_path: Path, data: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    for process in (done.pid, os.getppid()):
        (tmp_path / f".new.{process}.draft" / "training").mkdir(parents=True)
    run("convert", data, tmp_path / "new", "--to", "idx")
    assert sorted(os.listdir(tmp_path)) == [f".new.{os.getppid()}.draft", "data", "new"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_while_files_are_written(tmp_path: Path) -> None:
    images, labels = torch.zeros(400_000, 1, 1, dtype=torch.uint8), torch.zeros(400_000)
    write_idx(tmp_path / "data", images, labels, train=True)
    command = [sys.executable, "-m", "fastmlp", "data", "convert", "data", "new", "--to", "png"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".new.*/training/0/*00.png")):
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert told == "fastmlp: interrupted\n"
    assert process.returncode == 130
    assert os.listdir(tmp_path) == ["data"]


# ---- show ------------------------------------------------------------------------------------


def test_a_sheet_holds_the_images_enlarged(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "sheet.png"
    run("show", data, "--out", out, "--test", "--count", 500, "--columns", 7)  # has 30
    part = MNISTDataset(data, train=False)
    with pil.open(out) as image:
        page = torch.from_numpy(np.array(image))
    images = part.images.repeat_interleave(9, 1).repeat_interleave(9, 2)  # 56 // 6
    cells = page[4:, 4:].unfold(0, 36, 36 + 4 + 12).unfold(1, 54, 54 + 4)
    assert cells.shape[:2] == (5, 7)
    assert torch.equal(cells.flatten(0, 1)[:30], images)
    assert (cells.flatten(0, 1)[30:] == 255).all()


def test_a_sheet_is_the_same_for_the_same_seed(tmp_path: Path, data: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("show", data, "--out", tmp_path / f"{name}.png", "--count", 12, "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_labels_stand_below_their_images() -> None:
    images = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    one = sheet(images, torch.tensor([1, 8]), 2)
    other = sheet(images, torch.tensor([1, 3]), 2)
    rows, columns = (np.array(one) != np.array(other)).nonzero()
    assert rows.min() >= 4 + 56
    assert columns.min() >= 4 + 60
    assert sheet(images[:1], torch.tensor([1]), 20).width == 4 + 56 + 4


def test_a_sheet_that_cannot_be_written(fails: Any, tmp_path: Path, data: Path) -> None:
    assert "its ending is not .png" in fails("show", data, "--out", tmp_path / "a.jpg")
    assert "cannot be written" in fails("show", data, "--out", tmp_path / "no" / "a.png")
    assert "no such folder" in fails("show", tmp_path / "no", "--out", tmp_path / "a.png")
    assert sorted(os.listdir(tmp_path)) == ["data"]


# ---- verify ----------------------------------------------------------------------------------


def verdicts(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> list[str]:
    """The lines told, after a look at whether the exit status agrees with them."""
    status = main(["data", "verify", str(folder), *options])
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert not told.err
    assert all(re.match("OK    |WRONG ", line) for line in lines)
    assert status == any(line.startswith("WRONG") for line in lines)
    return lines


def test_whole_files_are_right(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *others = verdicts(capsys, data)
    assert first == f"OK    {data}/train-images-idx3-ubyte: 70 images of 4×6"
    assert second.endswith("70 labels, of 0…9: 7 7 7 7 7 7 7 7 7 7")
    assert len(others) == 2
    run("convert", data, tmp_path / "tree", "--to", "png")
    capsys.readouterr()
    training, testing = verdicts(capsys, tmp_path / "tree")
    assert training == f"OK    {tmp_path}/tree/training: 70 images of 4×6, of 0…9:" + " 7" * 10
    assert testing.endswith("30 images of 4×6, of 0…9:" + " 3" * 10)


def test_every_flipped_byte_of_a_png_file_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png_tree(tmp_path / "testing", *random_images(3))
    write_png_tree(tmp_path / "training", *random_images(10))
    file = tmp_path / "testing" / "1" / "00001.png"
    content = file.read_bytes()
    for place in range(len(content) - 12):  # the rest says that the file ends
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        _, *wrong = verdicts(capsys, tmp_path)
        assert wrong[0].startswith(f"WRONG {file}: broken image: "), place
        assert wrong[1:] == [f"WRONG {tmp_path}/testing: 1 of 3 files are wrong"]


@pytest.mark.parametrize("gz", [False, True])
def test_a_flipped_byte_of_mnist_s_files_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gz: bool
) -> None:
    suffix = ".gz" if gz else ""
    for count, train in ((20, True), (10, False)):
        write_idx(tmp_path, *random_images(count), train, suffix)
    stand_in(monkeypatch, tmp_path)
    lines = verdicts(capsys, tmp_path)
    assert len(lines) == 4
    assert all(line.startswith("OK") and line.endswith(": MNIST's") for line in lines)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        file = tmp_path / f"{name}{suffix}"
        content = bytearray(file.read_bytes())
        flipped = content.copy()
        flipped[-9 if gz else -1] ^= 1  # the last of what is compressed; of the data
        file.write_bytes(flipped)
        assert [line.startswith("WRONG") for line in verdicts(capsys, tmp_path)].count(True) == 1
        file.write_bytes(content)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the data of a folder pass for MNIST."""
    sets = {train: MNISTDataset(folder, train) for train in (True, False)}
    monkeypatch.setattr(verify, "COUNTS", {train: len(data) for train, data in sets.items()})
    monkeypatch.setattr(
        verify,
        "PARTS",
        {train: verify.unordered_checksum(d.images, d.labels) for train, d in sets.items()},
    )
    sums = {}
    for train, data in sets.items():
        for kind, array in (("images", data.images), ("labels", data.labels)):
            sums[train, kind] = verify.hashlib.sha256(idx_bytes(array)).hexdigest()
    monkeypatch.setattr(verify, "CONTENTS", sums)


def test_a_tree_s_content_is_compared_whatever_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = random_images(20)
    write_png_tree(tmp_path / "training", images, labels)
    write_png_tree(tmp_path / "testing", *random_images(10))
    stand_in(monkeypatch, tmp_path)
    for label in range(10):
        first = min((tmp_path / "training" / str(label)).iterdir())
        first.rename(first.with_name("z.png"))
    assert [line.split(": ")[-1] for line in verdicts(capsys, tmp_path)] == ["MNIST's"] * 2
    # Two images change their labels: sizes and counts stay, the content is another.
    one, other = tmp_path / "training" / "1" / "z.png", tmp_path / "training" / "2" / "z.png"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    training, testing = verdicts(capsys, tmp_path)
    assert training.startswith("WRONG")
    assert "as many as MNIST's, but not MNIST's" in training
    assert testing.startswith("OK")
    training, _ = verdicts(capsys, tmp_path, "--not-mnist")
    assert training.startswith("OK")


def test_the_unordered_checksum_is_of_the_labels_too() -> None:
    images, labels = random_images(12)
    sums = {verify.unordered_checksum(images[o], labels[o]) for o in map(torch.randperm, [12] * 4)}
    assert len(sums) == 1
    assert verify.unordered_checksum(images, labels.roll(1)) not in sums
    assert verify.unordered_checksum(images[:1], labels[:1]) not in sums


def labels_of(folder: Path, *labels: int) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(torch.tensor(labels)))


FAULTS: dict[str, tuple[Any, str]] = {
    "missing labels": (
        lambda f: (f / "t10k-labels-idx1-ubyte").unlink(),
        "t10k-labels-idx1-ubyte.* no such file, beside",
    ),
    "missing part": (
        lambda f: [p.unlink() for p in f.glob("t10k*")],
        "neither t10k-images-idx3-ubyte",
    ),
    "broken": (
        lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"\x1f\x8b"),
        "t10k-images-idx3-ubyte: broken gzip file",
    ),
    "label": (lambda f: labels_of(f, *[10] * 30), "label 10 of image 0 is out of range"),
    "count": (lambda f: labels_of(f, *[1] * 29), "29 labels for the 30 images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_idx_files_are_told(
    data: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    spoil, says = FAULTS[fault]
    spoil(data)
    wrong = [line for line in verdicts(capsys, data) if line.startswith("WRONG")]
    assert len(wrong) == 1
    assert re.search(says, wrong[0])


def test_faults_of_a_tree_are_told(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", data, tmp_path / "tree", "--to", "png")
    capsys.readouterr()
    testing = tmp_path / "tree" / "testing"
    files = sorted(testing.glob("*/*.png"))
    for file in files[:12]:
        file.write_bytes(b"")
    pil.new("L", (4, 6)).save(files[20])
    shutil.rmtree(tmp_path / "tree" / "training")
    lines = verdicts(capsys, tmp_path / "tree")
    assert "neither train-images-idx3-ubyte" in lines[0]
    assert [line.split(":")[0] for line in lines[1:11]] == [f"WRONG {p}" for p in files[:10]]
    assert lines[11:] == [f"WRONG {testing}: 13 of 30 files are wrong"]
    for file in files[:12]:
        file.unlink()
    lines = verdicts(capsys, tmp_path / "tree")
    assert lines[1] == f"WRONG {files[20]}: 6×4 pixels instead of 4×6 as in {files[12]}"
    shutil.copytree(testing / "9", testing / "10")
    lines = verdicts(capsys, tmp_path / "tree")
    told = f"WRONG {testing / '10'}: label 10 is out of range 0…9 (--not-mnist is for other sets)"
    assert lines[1:] == [told]


def test_a_tree_without_a_single_whole_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("training", "testing"):
        (tmp_path / part / "3").mkdir(parents=True)
        (tmp_path / part / "3" / "a.png").write_bytes(b"?")
    assert len(verdicts(capsys, tmp_path)) == 4


def test_a_folder_that_is_not_there(fails: Any, tmp_path: Path) -> None:
    assert "no such folder" in fails("verify", tmp_path / "no")


@needs_mnist
def test_mnist_is_mnist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mnist_folder()
    assert folder is not None
    lines = verdicts(capsys, folder)
    assert len(lines) == 4
    assert all(line.endswith(": MNIST's") for line in lines)
    for train in (True, False):
        part = MNISTDataset(folder, train)
        assert verify.unordered_checksum(part.images, part.labels) == verify.PARTS[train]
    name = f"{PARTS[False]}-labels-idx1-ubyte"
    content = bytearray(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    shutil.copy(folder / f"{PARTS[False]}-images-idx3-ubyte.gz", tmp_path)
    lines = verdicts(capsys, tmp_path)
    assert [line.startswith("WRONG") for line in lines] == [True, False, True]
    with pytest.raises(DataError, match="no such folder"):
        list(verify.verify(tmp_path / "no"))
