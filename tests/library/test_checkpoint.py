"""Files written whole or not at all, and checkpoints that are not what they should be."""

from __future__ import annotations

import copy
import operator
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from image_files import random_images, write_idx
from states import assert_same
from torch import Tensor

from fastmlp import checkpoint
from fastmlp._faults import Fault
from fastmlp._files import check_writable, remove_drafts, write_whole
from fastmlp.app.cli import main
from fastmlp.checkpoint import CheckpointError


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "model": {"0.weight": torch.rand(3, 2), "0.bias": torch.tensor([float("nan")])},
        "curve": [(0.5, 1.25, 10.0)],
        "sizes": (784, 10),
        "none": None,
        "third": 1 / 3,
    }
    checkpoint.save(tmp_path / "c.pt", content)
    again = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(again["model"]["0.weight"], content["model"]["0.weight"])
    assert again["model"]["0.bias"].isnan().all()
    for name in ("curve", "sizes", "none", "third"):
        assert again[name] == content[name]
        assert type(again[name]) is type(content[name])
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_file_is_new_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")
    synced: list[bytes] = []

    def fsync(handle: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{handle}"):
            synced.extend(draft.read_bytes() for draft in tmp_path.glob(".*"))
            assert path.read_bytes() == b"old"

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, lambda file: file.write(b"new"))
    assert synced == [b"new"]
    assert path.read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "c.pt")
    write_whole(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "c.pt").read_bytes() == b"new"


def test_drafts_of_the_dead_are_removed_and_of_the_living_spared(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner in (gone.pid, os.getpid()):
        (tmp_path / f".c.pt.{owner}.draft").touch()
    (tmp_path / ".c.pt.mine.draft").touch()
    remove_drafts(tmp_path / "c.pt")
    left = {f".c.pt.{os.getpid()}.draft", ".c.pt.mine.draft"}
    assert set(os.listdir(tmp_path)) == left


@pytest.mark.parametrize("place", ["missing/c.pt", ".", "pipe"])
def test_an_impossible_place_is_found_before_it_is_needed(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # a rename would put a file in its place
    with pytest.raises(Fault, match="cannot be written") as caught:
        check_writable(tmp_path / place)
    assert "\n" not in str(caught.value)
    check_writable(tmp_path / "c.pt")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Fault, match="not a regular file"):
        write_whole(tmp_path / "pipe", lambda file: file.write(b"x"))
    assert (tmp_path / "pipe").is_fifo()


class Mischief:
    def __reduce__(self) -> Any:
        return os.mkdir, ("mischief",)


def spoil(path: Path, fault: str) -> None:
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "text":
        path.write_text("epoch 1")
    elif fault == "folder":
        path.unlink()
        path.mkdir()
    elif fault == "code":
        path.write_bytes(pickle.dumps(Mischief()))
    elif fault == "code in torch's format":
        torch.save(Mischief(), path)
    elif fault == "something else":
        torch.save({"model": {}}, path)
    elif fault == "a tensor":
        torch.save(torch.zeros(2), path)
    elif fault == "a flipped bit":
        at = content.index(torch.arange(50.0).numpy().tobytes()) + 20
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


FAULTS = {
    "missing": "cannot be read",
    "folder": "cannot be read",
    "empty": "not a checkpoint, or a damaged one",
    "truncated": "not a checkpoint, or a damaged one",
    "text": "not a checkpoint, or a damaged one",
    "code": "not a checkpoint, or a damaged one",
    "code in torch's format": "not a checkpoint, or a damaged one",
    "a flipped bit": "not a checkpoint, or a damaged one",
    "something else": "not a checkpoint of `fastmlp train`",
    "a tensor": "not a checkpoint of `fastmlp train`",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_checkpoint_is_named(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"model": {"0.weight": torch.arange(50.0)}})
    spoil(path, fault)
    with pytest.raises(CheckpointError, match=FAULTS[fault]) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mischief").exists()


# ---- content that no training saves ----------------------------------------------------------

WRONG_VALUES: list[Any] = [
    None, True, -1, 0, 7, 2**31, 10**400, -1.5, 0.0, 1e300, float("nan"), float("inf"), "", "step",
    (), [], {}, [None], [[1.0, 2.0]], (0.0, 0, 10**400), {"0.weight": 1}, torch.zeros(()),
    torch.zeros(2, 3), torch.zeros(1).expand(10**6, 10**6), torch.tensor([float("nan")]),
    torch.zeros(5, 24, dtype=torch.float64), torch.eye(3).to_sparse(),
    torch.zeros(2, device="meta"),
]  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys and indices that lead to each value inside, whole containers among them."""
    found = [place]
    if isinstance(value, dict):
        steps: Any = list(value.items())
    elif isinstance(value, (list, tuple)):
        steps = list(enumerate(value))[:2]  # others are like these
    else:
        return found
    for key, inner in steps:
        found += places(inner, (*place, key))
    return found


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def with_other(value: Any, place: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy in which change(container, key) was called for the container at a place."""
    if len(place) == 1:
        copied = list(value) if isinstance(value, tuple) else copy.copy(value)
        change(copied, place[0])
    else:
        copied = list(value) if isinstance(value, tuple) else copy.copy(value)
        copied[place[0]] = with_other(copied[place[0]], place[1:], change)
    return tuple(copied) if isinstance(value, tuple) else copied


def remove(container: Any, key: Any) -> None:
    del container[key]


def put(value: Any) -> Callable[[Any, Any], None]:
    return lambda container, key: operator.setitem(container, key, value)


def damaged(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of a checkpoint, taken out or exchanged for each of the wrong ones."""
    for place in places(state)[1:]:
        yield f"{place} missing", with_other(state, place, remove)
        value = at(state, place)
        for wrong in WRONG_VALUES:
            yield f"{place}: {wrong}", with_other(state, place, put(wrong))
        if isinstance(value, Tensor):
            for name, other in (
                ("turned", value.t()),
                ("longer", torch.cat((value, value))),
                ("whole numbers", value.long()),
                ("complex", value.to(torch.complex64)),
                ("one value", value.flatten()[:1].expand(value.shape)),
                ("NaN", torch.full_like(value, float("nan"))),
                ("huge", torch.full_like(value, 3e38)),
            ):
                yield f"{place}: {name}", with_other(state, place, put(other))


@pytest.fixture(params=["--loop=step", "--compare"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The checkpoint of a training that ended within its second epoch."""
    write_idx(tmp_path, *random_images(60), train=True)
    write_idx(tmp_path, *random_images(20), train=False)
    file = tmp_path / "c.pt"
    go = ["train", "--data-dir", tmp_path, "--sizes", "24,5,10", "--batch-size", 7, request.param,
          "--epochs", 3, "--checkpoint-every", 5, "--checkpoint", file]  # fmt: skip
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda _, content: states.append(copy.deepcopy(content)))
        assert main([str(argument) for argument in go]) == 0
    states = [state for state in states if (state["epoch"], state["batch"]) == (1, 6)]
    checkpoint.save(file, states[0])
    return file


def resume(file: Path, capsys: pytest.CaptureFixture[str], told: str) -> int:
    """Goes on from a checkpoint: that is done, or refused in one line."""
    capsys.readouterr()
    status = main(["train", "--checkpoint", str(file), "--resume"])
    errors = capsys.readouterr().err
    assert status in (0, 1), told
    if status:
        assert re.fullmatch(r"fastmlp: [^\n]+\n", errors), f"{told}: {errors}"
    return status


def check_damages(trained: Path, capsys: pytest.CaptureFixture[str], every: int) -> None:
    state = checkpoint.load(trained)
    assert resume(trained, capsys, "as it was") == 0
    done = checkpoint.load(trained)
    refused = 0
    for number, (told, content) in enumerate(damaged(state)):
        if number % every == 0:
            torch.save(content, trained)
            refused += resume(trained, capsys, told)
    assert refused > number // every * 0.9
    checkpoint.save(trained, state)
    assert resume(trained, capsys, "as it was") == 0
    assert_same(checkpoint.load(trained), done)


def test_content_that_no_training_saves_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_damages(trained, capsys, every=29)


@pytest.mark.sweep
def test_any_content_that_no_training_saves_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_damages(trained, capsys, every=1)


def test_a_compressed_archive_is_no_checkpoint(tmp_path: Path) -> None:
    """It could ask for a thousand times its size in memory."""
    checkpoint.save(tmp_path / "c.pt", {"model": torch.zeros(10**6)})
    with (
        zipfile.ZipFile(tmp_path / "c.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match="not a checkpoint, or a damaged one"):
        checkpoint.load(tmp_path / "small.pt")


def test_what_is_checked_is_what_is_read(tmp_path: Path) -> None:
    """Of an archive with another before it, torch reads the other; of one marked as a folder
    nothing, and gives what was in the memory."""
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"model": torch.arange(50.0)})
    whole = path.read_bytes()
    spoil(path, "a flipped bit")
    path.write_bytes(path.read_bytes() + whole)
    assert torch.equal(checkpoint.load(path)["model"], torch.arange(50.0))
    # Marked as a folder, in the attributes that MS-DOS had.
    at = whole.rindex(b"PK\1\2", 0, whole.rindex(b"archive/data/0"))
    path.write_bytes(whole[: at + 38] + b"\x10" + whole[at + 39 :])
    assert torch.equal(checkpoint.load(path)["model"], torch.arange(50.0))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_checkpoint_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "c.pt")
    else:
        (tmp_path / "c.pt").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"c\.pt: cannot be read: not a regular file"):
        checkpoint.load(tmp_path / "c.pt")
