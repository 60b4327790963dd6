"""Files written whole or not at all, and checkpoints that are not what they should be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from fastmlp import checkpoint
from fastmlp._faults import Fault
from fastmlp._files import check_writable, remove_drafts, write_whole
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
