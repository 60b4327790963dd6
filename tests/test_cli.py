"""The command line: what it accepts, what it refuses, and that each refusal is one line."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import random_images, write_idx

import fastmlp
from fastmlp import train
from fastmlp._options import LOOPS, Options
from fastmlp.cli import main
from fastmlp.data import download

TINY = ["--sizes", "24,5,10", "--epochs", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """120 training and 30 test images of 4×6, as IDX files."""
    folder = tmp_path / "data"
    write_idx(folder, *random_images(120), train=True)
    write_idx(folder, *random_images(30), train=False)
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which must fail with this status in one line; returns the line."""

    def check(*arguments: object, status: int = 1) -> str:
        try:
            got: object = main([str(argument) for argument in arguments])
        except SystemExit as end:
            got = end.code
        told = capsys.readouterr().err
        assert got == status, told
        assert re.fullmatch(r"fastmlp( train)?: [^\n]+\n", told), told
        return told

    return check


# ---- the parser ------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"fastmlp {fastmlp.__version__}\n"


def test_help_tells_every_option_and_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    for name in (*Options.__dataclass_fields__, "data"):
        assert f"--{name.replace('_', '-')}" in told
    for default in ("784,300,10", "(default: 30)", "(default: 50)", "(default: 0.01)"):
        assert default in told


def test_python_m_fastmlp_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastmlp", "--version"],
        cwd=tmp_path,  # whose modules do not hide installed ones
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"fastmlp {fastmlp.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required"),
        (["trane"], "invalid choice"),
        (["train", "--epoch", "3"], "unrecognized arguments"),
        (["train", "--epochs", "0"], "--epochs: '0' is not a whole number from 1 to 2147483647"),
        (["train", "--epochs", "1.5"], "--epochs"),
        (["train", "--batch-size", "-3"], "--batch-size"),
        (["train", "--threads", "none"], "--threads"),
        (["train", "--threads", "1025"], "from 1 to 1024"),
        (["train", "--plot", ""], "--plot: the name is empty"),
        (["train", "--checkpoint="], "--checkpoint: the name is empty"),
        (["train", "--data-dir", ""], "--data-dir: the name is empty"),
        (["train", "--checkpoint-every", "0"], "--checkpoint-every"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--seed", str(2**63)], "--seed"),
        (["train", "--lr", "0"], "--lr: '0' is not a number above 0"),
        (["train", "--lr", "nan"], "--lr"),
        (["train", "--lr", "inf"], "--lr"),
        (["train", "--lr", "fast"], "--lr"),
        (["train", "--sizes", "784"], "is not a list of sizes such as 784,300,10"),
        (["train", "--sizes", "784,a,10"], "is not a list of sizes"),
        (["train", "--sizes", "784,0,10"], "--sizes: '0' is not a whole number from 1"),
        (["train", "--sizes", "784,9999999999,10"], "is not a whole number from 1 to"),
        (["train", "--sizes", "784,,10"], "is not a list of sizes"),
        (["train", "--data", "letters"], "--data"),
        (["train", "--data", "digits", "--data-dir", "x"], "not allowed with"),
        (["train", "--resume", "--overwrite"], "not allowed with"),
        (["train", "--loop", "fast"], "--loop: invalid choice: 'fast'"),
        (["train", "--loop", "plain", "--compare"], "--compare: not allowed with argument --loop"),
    ],
)
def test_wrong_arguments_are_one_line(fails: Any, arguments: list[str], says: str) -> None:
    assert says in fails(*arguments, status=2)


# ---- faults before the training --------------------------------------------------------------


def test_options_that_need_another(fails: Any) -> None:
    assert "--checkpoint FILE" in fails("train", "--resume")
    assert "--checkpoint FILE" in fails("train", "--overwrite")
    assert "--data-dir DIR" in fails("train", "--download")


def test_missing_and_faulty_data_are_named(fails: Any, tmp_path: Path, data: Path) -> None:
    assert "nowhere: no such folder" in fails("train", "--data-dir", tmp_path / "nowhere")
    images = data / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    assert f"{images}: truncated" in fails("train", "--data-dir", data)
    write_idx(data, *random_images(30, 6, 4), train=False)
    assert "training images of 4×6, test of 6×4" in fails("train", "--data-dir", data)


def test_download_without_a_network_is_one_line(
    fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MIRRORS", ("http://127.0.0.1:9/",))
    told = fails("train", "--download", "--data-dir", tmp_path / "mnist")
    assert "cannot be downloaded: http://127.0.0.1:9/" in told


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ("784,300,10", "must begin with the 24 pixels"),
        ("24,5,9", "must end with at least 10"),
    ],
)
def test_sizes_that_do_not_fit_the_data(fails: Any, data: Path, sizes: str, says: str) -> None:
    assert says in fails("train", "--data-dir", data, "--sizes", sizes)


def test_a_network_larger_than_the_memory(fails: Any, data: Path) -> None:
    sizes = "24,2000000000,2000000000,10"  # 16 million TB
    assert f"--sizes {sizes}: " in fails("train", "--data-dir", data, "--sizes", sizes)


def test_a_terminal_that_knows_ascii_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    sys.stdout.flush()
    assert b"--sizes N,N,?" in written.getvalue()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x", ""])
def test_a_device_that_cannot_be_used(fails: Any, device: str) -> None:
    assert f"--device {device}: cannot be used: " in fails("train", "--device", device)


def test_the_step_loop_off_the_cpu(fails: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_device", lambda name: torch.device("meta"))
    told = fails("train", "--data-dir", data, "--loop", "step")
    assert told == "fastmlp: --loop step runs on the CPU, not on meta: give --loop fused\n"


def test_faulty_places_are_found_before_the_training(
    fails: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(train.Training, "run", lambda self: pytest.fail("it trained"))
    go = ("train", "--data-dir", data, *TINY)
    assert "cannot be written" in fails(*go, "--plot", tmp_path / "missing" / "a.png")
    assert "its ending is none of" in fails(*go, "--plot", tmp_path / "a.docx")
    assert "its ending is none of" in fails(*go, "--plot", tmp_path / "plot")
    assert "cannot be written" in fails(*go, "--checkpoint", tmp_path / "missing" / "c.pt")
    assert "cannot be written" in fails(*go, "--checkpoint", tmp_path)
    assert "cannot be written" in fails(*go, "--checkpoint", os.devnull)
    both = tmp_path / "a.png"
    assert "both --plot and --checkpoint" in fails(*go, "--plot", both, "--checkpoint", both)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("sklearn.datasets", ()), ("matplotlib.figure", ("--plot", "plot.png"))],
)
def test_a_missing_extra_is_named_with_the_command(
    fails: Any, monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert 'pip install "fastmlp[train]"' in fails("train", *arguments)


def test_an_extension_that_cannot_be_loaded_is_one_line(
    fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastmlp.train", None)
    monkeypatch.delattr(fastmlp, "train", raising=False)
    assert "fastmlp.train" in fails("train")


# ---- faults in the training ------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loss_that_is_not_a_number_ends_the_training(
    fails: Any, data: Path, tmp_path: Path, loop: str
) -> None:
    file = tmp_path / "c.pt"
    go = ("train", "--data-dir", data, "--checkpoint", file, "--checkpoint-every", 1,
          "--loop", loop)  # fmt: skip
    told = fails(*go, "--lr", "1e30", "--sizes", "24,16,16,10", "--epochs", 9)
    assert "try a smaller --lr" in told
    assert re.search("loss is (nan|inf) in epoch 1, batch|no longer finite", told)
    assert torch.load(file)["model"]["0.weight"].isfinite().all()


def test_a_full_disk_is_one_line(
    fails: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "c.pt")

    monkeypatch.setattr(os, "fsync", full)
    told = fails("train", "--data-dir", data, *TINY, "--checkpoint", tmp_path / "c.pt")
    assert told == "fastmlp: c.pt: No space left on device\n"
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_a_reader_who_leaves_early_is_no_fault(data: Path) -> None:
    command = [sys.executable, "-m", "fastmlp", "train", "--data-dir", str(data)]
    with subprocess.Popen(
        [*command, "--epochs", "3000", "--sizes", "24,10", "--threads", "1"],
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
