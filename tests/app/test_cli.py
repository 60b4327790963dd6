"""The command line: what it accepts, what it refuses, and that each refusal is one line."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import TREES, random_images, write_idx, write_png_tree

import fastmlp
from fastmlp.app import train
from fastmlp.app._loops import StepTrainee
from fastmlp.app._options import LOOPS, Options
from fastmlp.app.cli import main
from fastmlp.data import download, sheet

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


def letters(folder: Path, greatest: int = 26) -> None:
    for part, count in ((True, 120), (False, 30)):
        images, _ = random_images(count)
        labels = 1 + torch.arange(count) % 26
        labels[-1] = greatest
        write_idx(folder, images, labels, part)


def test_as_many_classes_as_the_labels_need(
    fails: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters(tmp_path)
    go = ["train", "--data-dir", str(tmp_path), "--epochs", "1"]
    assert main(go) == 0
    assert "network   24-300-27" in capsys.readouterr().out
    file = str(tmp_path / "c.pt")
    assert main([*go, "--sizes", "24,8,30", "--checkpoint", file]) == 0
    assert main([*go, "--epochs", "2", "--checkpoint", file, "--resume"]) == 0
    assert "network   24-8-30" in capsys.readouterr().out
    assert "--sizes 24,8,26: must end with at least 27" in fails(*go, "--sizes", "24,8,26")
    letters(tmp_path, 29)
    assert "was trained on other data" in fails(*go, "--checkpoint", file, "--resume")
    letters(tmp_path, 255)
    assert "must end with at least 256" in fails(*go, "--checkpoint", file, "--resume")
    assert main(go) == 0
    assert "network   24-300-256" in capsys.readouterr().out


def test_labels_of_a_tree(fails: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tree in TREES.values():
        images, labels = random_images(20)
        write_png_tree(tmp_path / tree, images, labels + 41)
    go = ["train", "--data-dir", str(tmp_path), "--epochs", "1"]
    assert main(go) == 0
    assert "network   24-300-51" in capsys.readouterr().out
    (tmp_path / "training" / "50").rename(tmp_path / "training" / "2024")
    told = fails(*go)
    assert "labels up to 2024" in told
    assert "--sizes 24,300,2025" in told
    assert main([*go, "--sizes", "24,5,2025"]) == 0
    (tmp_path / "training" / "2024").rename(tmp_path / "training" / "99999999999999999999")
    assert "out of range" in fails(*go)


def test_labels_beyond_mnist_s_are_verified_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters(tmp_path)
    assert main(["data", "verify", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "label 10 of image 9 is out of range 0…9 (--not-mnist is for other sets)" in told
    assert main(["data", "verify", str(tmp_path), "--not-mnist"]) == 0
    assert "120 labels, of 0…26: 0 5 5 5" in capsys.readouterr().out


def test_the_largest_batch(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for loop in LOOPS:
        go = ["train", "--data-dir", str(data), *TINY, "--batch-size", "2147483647"]
        assert main([*go, "--loop", loop]) == 0
        assert "1 batches of 2147483647" in capsys.readouterr().out


def test_a_tilde_in_every_place(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train = ["train", "--data-dir=~/data", *TINY, "--checkpoint=~/c.pt", "--plot=~/p.png"]
    assert main(train) == 0
    assert main([*train, "--resume"]) == 0
    assert main(["data", "convert", "~/data", "~/tree", "--to", "png"]) == 0
    assert main(["data", "show", "~/tree", "--out=~/sheet.png"]) == 0
    assert main(["data", "verify", "~/tree"]) == 0
    assert os.listdir() == []
    assert {"c.pt", "p.png", "tree", "sheet.png"} <= set(os.listdir(tmp_path))


def test_a_network_larger_than_the_memory(fails: Any, data: Path) -> None:
    sizes = "24,2000000000,2000000000,10"  # 16 million TB
    assert f"--sizes {sizes}: " in fails("train", "--data-dir", data, "--sizes", sizes)


@pytest.mark.parametrize("error", [MemoryError(), "torch's"])
def test_memory_that_is_missing_in_the_training(
    fails: Any, data: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def learn(*_: object) -> None:
        if isinstance(error, MemoryError):
            raise error
        torch.empty(2**60)

    monkeypatch.setattr(StepTrainee, "learn", learn)
    assert "memory" in fails("train", "--data-dir", data, *TINY)


def test_an_error_of_the_program_is_not_hidden(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(StepTrainee, "learn", learn)
    with pytest.raises(RuntimeError, match="of our own"):
        main(["train", "--data-dir", str(data), *TINY])


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
    monkeypatch.setitem(sys.modules, "fastmlp.app.train", None)
    monkeypatch.delattr(fastmlp, "train", raising=False)
    assert "fastmlp.app.train" in fails("train")


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


LARGE = ["--sizes", "24,300,10", "--epochs", "1"]  # torch's writer has an error of its own then


@pytest.mark.parametrize(
    "what",
    [
        ["train", "--data-dir", "data", *LARGE, "--checkpoint", "new.png"],
        ["train", "--data-dir", "data", *TINY, "--plot", "new.png"],
        ["data", "show", "data", "--out", "new.png"],
        ["data", "convert", "data", "new.png", "--to", "idx"],
        ["data", "convert", "data", "new.png", "--to", "idx", "--gzip"],
        ["data", "convert", "data", "new.png", "--to", "png"],
    ],
)
def test_a_full_disk_is_one_line(
    fails: Any, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, what: list[str]
) -> None:
    """A limit on files' sizes fails where a full disk does: in the midst of any write."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        told = fails(*what)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert told == "fastmlp: new.png: File too large\n"
    assert os.listdir(tmp_path) == ["data"]


def test_a_disk_that_is_full_in_the_end(
    fails: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    file = tmp_path / "c.pt"
    told = fails("train", "--data-dir", data, *TINY, "--checkpoint", file)
    assert told == f"fastmlp: {file}: No space left on device\n"
    assert os.listdir(tmp_path) == ["data"]


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A folder of which only what is made readable is; for its owner, too, if that is not root."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are root's alone
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
        for path in (folder, *folder.rglob("*")):  # which lists a folder after its turn
            path.chmod(0o777)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root, who may read anything, is nobody for the while."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs file modes")
def test_what_may_not_be_read_is_one_line(fails: Any, stranger: Path) -> None:
    assert sheet  # imported while that may be read
    idx, tree, file = stranger / "idx", stranger / "tree", stranger / "c.pt"
    hidden, label = stranger / "hidden", tree / "training" / "3"
    for part in (True, False):
        write_idx(idx, *random_images(20), part)
        write_png_tree(tree / TREES[part], *random_images(20))
    hidden.mkdir()
    assert main(["train", "--data-dir", str(idx), *TINY, "--checkpoint", str(file)]) == 0
    labels, image = idx / "train-labels-idx1-ubyte", label / "00003.png"
    train, verify = ("train", *TINY, "--data-dir"), ("data", "verify")
    for closed, mode, arguments, names in (
        (idx, 0, (*train, idx), idx),
        (idx, 0, (*train, idx, "--download"), idx),
        (labels, 0, (*train, idx), labels),
        (label, 0, (*train, tree), label),
        (label, 0o444, (*train, tree), label),
        (image, 0, (*train, tree), image),
        (hidden, 0, (*verify, hidden / "x"), hidden),
        (hidden, 0, (*train, hidden / "x", "--download"), hidden),
        (hidden, 0, (*train, idx, "--checkpoint", hidden / "c.pt"), hidden),
        (hidden, 0, (*train, idx, "--checkpoint", hidden / "c.pt", "--resume"), hidden),
        (hidden, 0o555, (*train, idx, "--plot", hidden / "p.png"), hidden),
        (hidden, 0o555, ("data", "show", idx, "--out", hidden / "p.png"), hidden),
        (hidden, 0o555, ("data", "convert", idx, hidden / "x", "--to", "png"), hidden),
        (file, 0, ("train", "--checkpoint", file, "--resume"), file),
    ):
        before = closed.stat().st_mode
        closed.chmod(mode)
        with as_somebody_else():
            told = fails(*arguments)
        closed.chmod(before)
        assert str(names) in told
        assert "Permission denied" in told


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


def test_where_scripts_find_the_command() -> None:
    from fastmlp import cli
    from fastmlp import train as module

    assert cli.main is main
    assert (module.train, module.Training) == (train.train, train.Training)
    for name in ("fastmlp", "fastmlp.cli"):
        told = subprocess.run(
            [sys.executable, "-m", name, "--version"],
            cwd=Path(__file__).parent,  # not the source tree, which hides the installed package
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == f"fastmlp {fastmlp.__version__}\n"
