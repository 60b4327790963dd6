"""`fastmlp train` from end to end: what it learns and prints, and that a kill costs nothing."""

from __future__ import annotations

import copy
import fcntl
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import mnist_folder, needs_mnist, random_images, write_idx
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmlp import FusedMLP, checkpoint
from fastmlp.cli import main
from fastmlp.data import Compose, DigitsDataset, Normalize, ToTensor, collate
from fastmlp.train import EpochSampler

ROWS, BATCH = 1030, 50
BATCHES = -(-ROWS // BATCH)


@pytest.fixture(autouse=True)
def one_thread(threads: int) -> None:
    """Two would wait for each other, at length where other programs keep the processors busy."""
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """1030 training and 100 test images of 4×6, as IDX files: 21 batches, the last one smaller."""
    folder = tmp_path / "data"
    write_idx(folder, *random_images(ROWS), train=True)
    write_idx(folder, *random_images(100), train=False)
    return folder


def run(*arguments: object) -> None:
    assert main(["train", *map(str, arguments)]) == 0


def lines(text: str) -> list[str]:
    """Those that tell of batches and epochs, without the times."""
    return [re.sub(r"  \d+\.\d+ s$", "", line) for line in text.splitlines() if line[:5] == "epoch"]


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Bit for bit, whatever is in it; only the seconds may differ."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), at
    else:
        assert a == b, at


# ---- learning --------------------------------------------------------------------------------


def test_it_learns_the_embedded_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "c.pt"
    run("--epochs", 12, "--checkpoint", file)
    told = capsys.readouterr().out
    assert "digits: 1442 training and 355 test images of 28×28" in told
    assert "784-300-10, seed 0, fused" in told
    state = checkpoint.load(file)
    # Guessing errs by 90 %, the nearest mean of a class by 9.0 %.
    assert state["test_errors"][-1] < 8
    assert state["test_errors"][-1] < state["test_errors"][0]
    assert state["curve"][-1][1] < state["curve"][0][1] / 2
    wanted = 12 * 29 // 100
    assert len([line for line in lines(told) if "batch" in line]) == wanted == len(state["curve"])
    assert len([line for line in lines(told) if "test error" in line]) == 12

    ((mean, std),) = re.findall(r"Normalize\(mean=\((0.\d+),\), std=\((0.\d+),\)\)", told)
    transform = Compose([ToTensor(), Normalize((float(mean),), (float(std),))])
    test_set = DigitsDataset(False, transform)
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
    model.load_state_dict(state["model"])
    images, labels = next(iter(DataLoader(test_set, len(test_set), collate_fn=collate)))
    wrong = int((model(images.flatten(1)).argmax(1) != labels).sum())
    assert f"test error {100 * wrong / len(labels):5.2f} %" in lines(told)[-1]


def test_loss_curves_of_fused_and_plain_coincide() -> None:
    """They part by no more than float32 parts from float64.

    Every rounding of the plain float32 run, at its place, is of the same size in the fused one, and
    is carried on by the same steps. So the distances of both from the run in float64 are sums of
    equally large, independent terms; the fused one may be four times the plain one.
    """
    pytest.importorskip("sklearn")
    train_set = DigitsDataset(True, Compose([ToTensor(), Normalize((0.3057,), (0.3595,))]))
    fused = FusedMLP([784, 300, 10])
    plain = copy.deepcopy(fused.as_sequential())
    models = [fused, plain, copy.deepcopy(plain).double()]
    losses: list[list[float]] = [[], [], []]
    for epoch in range(3):
        sampler = EpochSampler(len(train_set), BATCH, seed=epoch)
        loader = DataLoader(train_set, batch_sampler=sampler, collate_fn=collate)
        for images, labels in loader:
            for model, curve in zip(models, losses, strict=True):
                dtype = next(model.parameters()).dtype
                loss = nn.functional.cross_entropy(model(images.flatten(1).to(dtype)), labels)
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        parameter -= 0.01 * parameter.grad
                        parameter.grad = None
                curve.append(loss.item())
    assert fused.why_plain(images.flatten(1)) is None
    ours, theirs, exact = torch.tensor(losses, dtype=torch.float64)
    assert exact[-1] < exact[0] / 2
    assert (ours - exact).abs().max() <= 4 * (theirs - exact).abs().max()


def test_the_example_learns_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    example = Path(__file__).resolve().parents[1] / "examples" / "mnist.py"
    monkeypatch.setattr(sys, "argv", [str(example), "--epochs", "8"])
    runpy.run_path(str(example))
    errors = [float(e) for e in re.findall(r"test error ([\d.]+) %", capsys.readouterr().out)]
    assert len(errors) == 8
    assert errors[-1] < 9.0  # the nearest mean of a class


@needs_mnist
def test_mnist_after_an_epoch_is_as_the_lecture_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data-dir", mnist_folder(), "--epochs", 1)
    told = capsys.readouterr().out
    assert "Normalize(mean=(0.1307,), std=(0.3081,))" in told
    assert "training  1 epochs of 1200 batches of 50, SGD with lr 0.01" in told
    (error,) = re.findall(r"test error +([\d.]+) %", told)
    assert float(error) < 9  # the plain loop: 8.10


def test_compare_prints_both_curves_and_their_difference(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data-dir", data, "--epochs", 6, "--compare", "--checkpoint", tmp_path / "c.pt")
    told = capsys.readouterr().out
    assert all(len(re.findall("train error", line)) == 2 for line in lines(told))
    assert len(lines(told)) == 6 + 6 * BATCHES // 100
    for what in ("a batch's loss", "a parameter", "the test error", "training step", "with data"):
        assert what in told
    state = checkpoint.load(tmp_path / "c.pt")
    twins = zip(state["model"].items(), state["plain"]["model"].items(), strict=True)
    difference = max(float((a - b).abs().max()) for (_, a), (_, b) in twins)
    assert f"{difference:.2e}" in told
    run("--data-dir", data, "--epochs", 6, "--checkpoint", tmp_path / "alone.pt")
    alone = checkpoint.load(tmp_path / "alone.pt")
    assert_same(alone["model"], state["model"])  # a twin beside it changes nothing
    assert alone["curve"] == state["curve"]


def test_the_seed_decides_and_the_threads_do_not(data: Path, tmp_path: Path, threads: int) -> None:
    states = []
    for number, (seed, count) in enumerate([(0, 1), (0, 2), (1, 2)]):
        file = tmp_path / f"{number}.pt"
        run("--data-dir", data, "--epochs", 2, "--seed", seed, "--threads", count,
            "--checkpoint", file)  # fmt: skip
        states.append(checkpoint.load(file))
    assert_same(states[0]["model"], states[1]["model"])
    assert not torch.equal(states[1]["model"]["0.weight"], states[2]["model"]["0.weight"])


def test_training_leaves_the_global_generator_to_the_network(data: Path) -> None:
    run("--data-dir", data, "--epochs", 1, "--seed", 5)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    FusedMLP([24, 300, 10])
    assert torch.equal(after, torch.get_rng_state())


def test_lines_go_over_a_progress_bar_on_a_terminal(data: Path) -> None:
    pytest.importorskip("tqdm")
    command = ["train", "--data-dir", str(data), "--epochs", "5", "--threads", "1"]
    near, far = os.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.run(
        [sys.executable, "-m", "fastmlp", *command],
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=far,
        text=True,
        check=True,
    )
    os.set_blocking(near, False)
    bar = os.read(near, 1 << 16).decode()
    os.close(near)
    os.close(far)
    assert "/105 [" in bar
    assert "epoch" not in bar
    assert len(lines(process.stdout)) == 6


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("epochs", [1, 5])  # of 21 batches: without a line and with one
def test_plot(data: Path, tmp_path: Path, ending: str, epochs: int) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plot.{ending}"
    run("--data-dir", data, "--epochs", epochs, "--compare", "--plot", file)
    start = file.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if ending == "png" else start.startswith(b"<?xml")


# ---- the sampler -----------------------------------------------------------------------------


def test_each_epoch_has_every_row_in_an_order_of_its_own() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(100, 15, seed)
        sampler.seek(epoch)
        batches = [batch.tolist() for batch in sampler]
        assert [len(batch) for batch in batches] == [15] * 6 + [10]
        assert len(sampler) == 7
        orders.append([row for batch in batches for row in batch])
        assert sorted(orders[-1]) == list(range(100))
        assert [batch.tolist() for batch in sampler] == batches
        sampler.seek(epoch, first=3)
        assert [batch.tolist() for batch in sampler] == batches[3:]
        assert len(sampler) == 4
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    assert orders[0] != orders[2]


# ---- checkpoints -----------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_resumed_after_each_batch_it_comes_to_the_same(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    go = ("--data-dir", data, "--epochs", 5, "--compare")
    run(*go, "--checkpoint", whole)
    wanted = lines(capsys.readouterr().out)

    save, saves = checkpoint.save, 0

    def save_and_die(*arguments: Any) -> None:
        nonlocal saves
        save(*arguments)
        saves += 1
        if saves % 7 == 0:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    deaths = 0
    while True:
        try:
            run(*go, "--checkpoint", pieces, "--checkpoint-every", 1, "--resume")
        except Killed:
            deaths += 1
            continue
        break
    assert deaths > 10
    assert lines(capsys.readouterr().out) == wanted
    assert_same(checkpoint.load(pieces), checkpoint.load(whole))


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, in a folder whose modules do not hide installed ones."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastmlp", "train", "--threads", "1", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_any_moment_it_goes_on_to_the_same_numbers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    go = ("--data-dir", data, "--epochs", 100, "--checkpoint", file, "--checkpoint-every", 10)
    for seen in (0, 30):  # lines before the kill
        with start(tmp_path, *go, "--resume") as process:
            assert process.stdout is not None
            while process.stdout.readline()[:5] != "epoch":
                pass
            for _ in range(seen):
                process.stdout.readline()
            process.kill()
        assert process.returncode == -signal.SIGKILL
    reached = checkpoint.load(file)["epoch"]
    assert 0 < reached < 100
    run("--checkpoint", file, "--resume")  # the rest is known
    told = capsys.readouterr().out
    assert f"resumed   {file}: {reached} epochs" in told
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".draft")]

    run(*go[:4], "--checkpoint", tmp_path / "whole.pt")
    wanted = lines(capsys.readouterr().out)
    got = lines(told)
    assert got == wanted[-len(got) :]
    assert_same(checkpoint.load(file), checkpoint.load(tmp_path / "whole.pt"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_cleanly(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "c.pt"
    go = ("--data-dir", data, "--epochs", 400, "--checkpoint", file)
    with start(tmp_path, *go, "--plot", tmp_path / "p.png") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not re.match("epoch .* batch", process.stdout.readline()):
            pass
        process.send_signal(signum)
        process.stdout.read()
        told = process.stderr.read()
    assert process.returncode == 128 + signum
    state = checkpoint.load(file)
    epoch, batch = state["epoch"] + 1, state["batch"]
    where = f"interrupted in epoch {epoch} after {batch} of {BATCHES} batches"
    assert told == f"fastmlp: {where}; saved to {file}, --resume goes on\n"
    assert (tmp_path / "p.png").exists()

    run("--checkpoint", file, "--resume", "--epochs", epoch + 1)
    run(*go[:2], "--epochs", epoch + 1, "--checkpoint", tmp_path / "whole.pt")
    assert_same(checkpoint.load(file), checkpoint.load(tmp_path / "whole.pt"))


def test_a_resumed_training_may_be_longer(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 2, "--checkpoint", file)
    run("--checkpoint", file, "--resume", "--epochs", 4)
    run("--data-dir", data, "--epochs", 4, "--checkpoint", tmp_path / "whole.pt")
    assert_same(checkpoint.load(file), checkpoint.load(tmp_path / "whole.pt"))


def test_a_finished_training_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 2, "--checkpoint", file)
    before = file.read_bytes()
    run("--checkpoint", file, "--resume")
    assert "already trained for 2 epochs: nothing left to do" in capsys.readouterr().out
    assert file.read_bytes() == before


def test_nothing_to_resume_starts_from_the_beginning(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file, "--resume")
    assert f"{file}: nothing to resume yet" in capsys.readouterr().err
    assert checkpoint.load(file)["epoch"] == 1


def test_an_existing_checkpoint_is_replaced_only_on_demand(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    go = ["train", "--data-dir", str(data), "--epochs", "1", "--checkpoint", str(file)]
    assert main(go) == 0
    before = file.read_bytes()
    assert main([*go, "--seed", "3"]) == 1
    assert "exists already: give --resume to go on, --overwrite to" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*go, "--seed", "3", "--overwrite"]) == 0
    assert checkpoint.load(file)["options"]["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lr", "0.1"], "was trained with --lr 0.01, not 0.1"),
        (["--batch-size", "49"], "was trained with --batch-size 50, not 49"),
        (["--seed", "1"], "was trained with --seed 0, not 1"),
        (["--sizes", "24,5,10"], "was trained with --sizes 24,300,10, not 24,5,10"),
        (["--compare"], "was trained without --compare"),
    ],
)
def test_a_resumed_training_must_agree_with_its_checkpoint(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file)
    go = ["train", "--checkpoint", str(file), "--resume", "--epochs", "2"]
    assert main([*go, *arguments]) == 1
    assert capsys.readouterr().err == f"fastmlp: {file}: {says}\n"
    # The same values, given again, are no contradiction.
    assert main([*go, "--lr", "0.01", "--sizes", "24-300-10", "--data-dir", str(data)]) == 0


def test_a_resumed_training_must_have_the_same_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file)
    moved = data.rename(tmp_path / "moved")
    go = ["train", "--checkpoint", str(file), "--resume", "--epochs", "2"]
    assert main(go) == 1
    assert f"{data}: no such folder" in capsys.readouterr().err
    assert main([*go, "--data-dir", str(moved)]) == 0
    images, labels = random_images(ROWS)
    images[3, 2, 1] ^= 1
    write_idx(moved, images, labels, train=True)
    assert main([*go, "--data-dir", str(moved)]) == 1
    assert f"{file}: was trained on other data than these" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["optimizer", "options", "data", "epoch", "window"])
def test_a_checkpoint_that_lacks_something_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file)
    state = checkpoint.load(file)
    del state[missing]
    checkpoint.save(file, state)
    assert main(["train", "--data-dir", str(data), "--checkpoint", str(file), "--resume"]) == 1
    told = capsys.readouterr().err
    assert told == f"fastmlp: {file}: does not hold what --resume needs\n"
