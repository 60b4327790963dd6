"""`fastmlp train` from end to end: what it learns and prints, and that a kill costs nothing."""

from __future__ import annotations

import copy
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import mnist_folder, needs_mnist, random_images, write_idx
from states import assert_same
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmlp import FusedMLP, _epochs, checkpoint
from fastmlp.app import train
from fastmlp.app._loops import EpochSampler, LoopTrainee, StepTrainee
from fastmlp.app._options import LOOPS, Options
from fastmlp.app.cli import main
from fastmlp.data import Compose, DigitsDataset, ImageDataset, Normalize, ToTensor, collate

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


def numbers(line: str) -> dict[str, list[float]]:
    """The numbers of such a line by what they are, one a network."""
    found = re.findall(r"(train loss|train error|test error) ([\d./ ]+)", line)
    return {what: [float(value) for value in row.split("/")] for what, row in found}


def make_training(
    train_set: ImageDataset, test_set: ImageDataset, device: str = "cpu", **options: Any
) -> train.Training:
    sizes = (train_set.images[0].numel(), 300, 10)
    return train.Training(Options(sizes=sizes, **options), torch.device(device),
                          train_set, test_set)  # fmt: skip


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


def test_loss_curves_of_the_loops_coincide() -> None:
    """They part by no more than float32 parts from float64.

    Every rounding of the plain float32 run, at its place, is of the same size in the other two (the
    inputs of TrainStep among them: the bytes times a rounded scale, plus a rounded shift), and is
    carried on by the same steps. So the distances of all from the run in float64 are sums of
    equally large, independent terms; the others' may be four times the plain one.
    """
    pytest.importorskip("sklearn")
    mean, std = 0.3057, 0.3595
    transform = Compose([ToTensor(), Normalize((mean,), (std,))])
    train_set = DigitsDataset(True, transform)
    training = make_training(train_set, train_set, loop="step", compare=True)
    plain, fused, step = training.trainees
    kinds = [type(trainee.model) for trainee in training.trainees]
    assert kinds == [nn.Sequential, FusedMLP, FusedMLP]
    assert isinstance(fused, LoopTrainee)
    assert isinstance(step, StepTrainee)
    model = copy.deepcopy(plain.model).double()
    images = (train_set.images.double().flatten(1) / 255 - mean) / std
    losses: dict[str, list[float]] = {name: [] for name in (*LOOPS, "exact")}
    for epoch in range(3):
        training.sampler.seek(epoch)
        for rows in training.sampler:
            loss = nn.functional.cross_entropy(model(images[rows]), train_set.labels[rows])
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= training.options.lr * parameter.grad
                    parameter.grad = None
            losses["exact"].append(loss.item())
        for trainee in training.trainees:
            trainee.start()
            for batches in (1, training.batches - 1):
                losses[trainee.name] += trainee.learn(batches)
    assert fused.model.why_plain(images[:50].float()) is None  # type: ignore[operator]
    theirs, *ours, exact = torch.tensor(list(losses.values()), dtype=torch.float64)
    assert exact[-1] < exact[0] / 2
    for curve in ours:
        assert (curve - exact).abs().max() <= 4 * (theirs - exact).abs().max()


def test_the_loops_print_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to rounding each by itself, and exactly what each prints beside the others."""
    pytest.importorskip("sklearn")
    told: dict[str, list[dict[str, list[float]]]] = {}
    for name in LOOPS:
        run("--epochs", 4, "--loop", name, "--checkpoint", tmp_path / f"{name}.pt")
        text = capsys.readouterr().out
        assert f"loop      {name}: " in text
        assert ("seed 0, not fused: --loop plain\n" if name == "plain" else "fused (") in text
        told[name] = [numbers(line) for line in lines(text)]
        assert len(told[name]) == 4 + 1
    # A curve's distance is some 1e-6, see above: the fourth decimal may fall to the other side. So
    # may a prediction whose two greatest outputs are as near; more than one a line are not.
    bounds = {
        "train loss": 1.1e-4,
        "train error": 100 / 1442 + 0.011,
        "test error": 100 / 355 + 0.011,
    }
    for name in ("fused", "step"):
        for ours, theirs in zip(told[name], told["plain"], strict=True):
            assert ours.keys() == theirs.keys()
            for what, values in theirs.items():
                assert ours[what] == pytest.approx(values, rel=0, abs=bounds[what])

    run("--epochs", 4, "--compare", "--checkpoint", tmp_path / "compare.pt")
    text = capsys.readouterr().out
    assert "loop      plain / fused / step, in turns on the same batches\n" in text
    compared = [numbers(line) for line in lines(text)]
    assert compared == [
        {what: [told[name][i][what][0] for name in LOOPS] for what in line}
        for i, line in enumerate(told["plain"])
    ]
    state = checkpoint.load(tmp_path / "compare.pt")
    for name, twin in (("plain", state["plain"]), ("fused", state["fused"]), ("step", state)):
        alone = checkpoint.load(tmp_path / f"{name}.pt")
        assert alone["options"]["loop"] == name
        assert_same(alone["model"], twin["model"])  # others beside it change nothing
        assert alone["curve"] == twin["curve"]


@pytest.mark.sweep
@needs_mnist
@pytest.mark.parametrize("loop", LOOPS)
def test_mnist_after_an_epoch_is_as_the_lecture_has_it(
    capsys: pytest.CaptureFixture[str], loop: str
) -> None:
    run("--data-dir", mnist_folder(), "--epochs", 1, "--loop", loop)
    told = capsys.readouterr().out
    assert "Normalize(mean=(0.1307,), std=(0.3081,))" in told
    assert "training  1 epochs of 1200 batches of 50, SGD with lr 0.01" in told
    (error,) = re.findall(r"test error +([\d.]+) %", told)
    assert float(error) < 9  # the plain loop: 8.10


def test_compare_prints_all_curves_and_their_difference(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data-dir", data, "--epochs", 6, "--compare", "--checkpoint", tmp_path / "c.pt")
    told = capsys.readouterr().out
    for line in lines(told):
        wanted = {"train loss", "train error"} | (set() if "batch" in line else {"test error"})
        assert numbers(line).keys() == wanted
        assert all(len(values) == 3 for values in numbers(line).values())
    assert len(lines(told)) == 6 + 6 * BATCHES // 100
    state = checkpoint.load(tmp_path / "c.pt")

    def greatest(twin: dict[str, Any]) -> str:
        pairs = zip(state["plain"]["model"].items(), twin["model"].items(), strict=True)
        return f"{max(float((a - b).abs().max()) for (_, a), (_, b) in pairs):.2e}"

    twins = state["fused"], state
    both = " / ".join(f"{twin['loss_difference']:.2e}" for twin in twins)
    assert f"  of a batch's loss   {both}\n" in told
    both = " / ".join(greatest(twin) for twin in twins)
    assert f"  of a parameter      {both}, in the end\n" in told
    assert re.search(r"  of the test error   \d\.\d\d / \d\.\d\d %\n", told)
    for what in ("training step    ", "with data loading"):
        ((times, ratios),) = re.findall(rf"  {what}   (\d+ / \d+ / \d+) \(([\d. /]+)\)\n", told)
        plain, *others = (float(time) for time in times.split(" / "))
        for time, ratio in zip(others, ratios.split(" / "), strict=True):
            # All are rounded: the times to a microsecond, the ratio to a hundredth.
            least, most = (plain - 0.5) / (time + 0.5), (plain + 0.5) / (time - 0.5)
            assert least - 0.006 <= float(ratio) <= most + 0.006


def test_compare_takes_turns(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network comes first, second and third equally often."""
    came: list[str] = []

    def noted(learn: Any) -> Any:
        return lambda self, batches: came.append(self.name) or learn(self, batches)

    for kind in (LoopTrainee, StepTrainee):
        monkeypatch.setattr(kind, "learn", noted(kind.learn))
    run("--data-dir", data, "--epochs", 1, "--compare", "--checkpoint-every", 1)
    assert len(came) == 3 * BATCHES
    for place in range(3):
        assert sorted(came[place::3]) == sorted(LOOPS * (BATCHES // 3))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_checkpoint_is_plain_pytorch(data: Path, tmp_path: Path, loop: str) -> None:
    run("--data-dir", data, "--epochs", 1, "--loop", loop, "--checkpoint", tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    model = nn.Sequential(nn.Linear(24, 300), nn.ReLU(), nn.Linear(300, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.01
    model(torch.rand(3, 24)).sum().backward()
    optimizer.step()


def test_the_plain_loop_fetches_items_one_by_one_in_the_same_batches() -> None:
    images, labels = random_images(70)
    seen: list[Tensor] = []

    def spy(image: Tensor) -> Tensor:
        seen.append(image)
        return ToTensor()(image)

    spy.on_batches = True  # type: ignore[attr-defined]
    data = ImageDataset(images, labels, spy)
    training = make_training(data, data, loop="fused", compare=True)
    training.sampler.seek(3, first=1)
    batches: list[list[Any]] = []
    for trainee in training.trainees:
        assert isinstance(trainee, LoopTrainee)
        trainee.start()
        batches.append(list(trainee.batches))
    assert [list(image.shape) for image in seen] == [[1, 4, 6]] * 20 + [[20, 1, 4, 6]]
    for (a, b), (c, d) in zip(*batches, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_another_device_has_the_two_loops_that_run_there() -> None:
    data = ImageDataset(*random_images(70), ToTensor())
    device = torch.device("meta")
    assert train._loop(Options(), device, None) == "fused"
    assert train._loop(Options(), torch.device("cpu"), None) == "step"
    training = make_training(data, data, "meta", loop="fused", compare=True)
    assert [trainee.name for trainee in training.trainees] == ["plain", "fused"]
    assert {str(p.device) for t in training.trainees for p in t.model.parameters()} == {"meta"}
    told = training.header()
    assert "not fused: " in told
    assert "loop      plain / fused, in turns" in told
    assert "loop      fused: " in make_training(data, data, "meta", loop="fused").header()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loss_that_is_not_a_number_is_told_with_its_batch(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """The same in the middle of a run of batches as where each run is a single batch."""
    told, ends = [], []
    calls = _epochs.calls

    def single(*limits: int) -> Iterator[tuple[int, int]]:
        for first, end in calls(*limits):
            ends.append(end)
            yield first, end

    for runs in (lambda first, end, *every: [(first, end)], single):
        monkeypatch.setattr(_epochs, "calls", runs)
        go = ("--data-dir", data, "--sizes", "24,16,16,10", "--lr", "1e10", "--loop", loop)
        assert main(["train", *map(str, go), "--checkpoint-every", "1"]) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert told[0].startswith(f"fastmlp: the {loop} loop's training loss is ")
    (batch,) = re.findall(r"loss is (?:nan|inf) in epoch 1, batch (\d+): try a smaller", told[0])
    assert 1 < int(batch) == ends[-1] == len(ends) < BATCHES


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
    run("--data-dir", data, "--epochs", 1, "--seed", 5, "--compare")
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
    matplotlib = pytest.importorskip("matplotlib")
    file = tmp_path / f"plot.{ending}"
    matplotlib.rcParams["svg.fonttype"] = "none"  # leaves words as words
    run("--data-dir", data, "--epochs", epochs, "--compare", "--plot", file)
    content = file.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert content.startswith(b"<?xml")
        for name in LOOPS:
            assert content.count(f">training ({name})<".encode()) == 2
            assert content.count(f">test ({name})<".encode()) == 1


# ---- the sampler -----------------------------------------------------------------------------


def test_each_epoch_has_every_row_in_an_order_of_its_own() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(100, 15, seed)
        sampler.seek(epoch)
        batches = [batch.tolist() for batch in sampler]
        assert [len(batch) for batch in batches] == [15] * 6 + [10]
        assert len(sampler) == 7
        assert sampler.order().tolist() == [row for batch in batches for row in batch]
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


@pytest.mark.parametrize("loop", ["--compare", *(f"--loop={name}" for name in LOOPS)])
def test_resumed_after_each_batch_it_comes_to_the_same(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    loop: str,
) -> None:
    whole, pieces = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    go = ("--data-dir", data, "--epochs", 5, loop)
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


@pytest.mark.parametrize(
    ("signum", "loop"),
    [(signal.SIGINT, "step"), *((signal.SIGTERM, name) for name in LOOPS)],
)
def test_a_signal_saves_and_ends_cleanly(
    data: Path, tmp_path: Path, signum: signal.Signals, loop: str
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "c.pt"
    go = ("--data-dir", data, "--epochs", 4000, "--checkpoint", file, "--loop", loop)
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
    run(*go[:2], "--epochs", epoch + 1, "--loop", loop, "--checkpoint", tmp_path / "whole.pt")
    assert_same(checkpoint.load(file), checkpoint.load(tmp_path / "whole.pt"))


def test_what_a_killed_first_save_left_is_removed(data: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    draft = tmp_path / f".c.pt.{dead.pid}.draft"
    draft.touch()
    run("--data-dir", data, "--epochs", 1, "--checkpoint", tmp_path / "c.pt", "--resume")
    assert not draft.exists()


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
        (["--loop", "fused"], "was trained with --loop step, not fused"),
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


def test_a_resumed_comparison_stays_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--compare", "--checkpoint", file)
    go = ["train", "--checkpoint", str(file), "--resume", "--epochs", "2"]
    assert main([*go, "--loop", "step"]) == 1
    told = capsys.readouterr().err
    assert told == f"fastmlp: {file}: was trained with --compare: leave out --loop\n"
    assert main(go) == 0
    assert "loop      plain / fused / step, in turns" in capsys.readouterr().out


def test_what_only_the_cpu_can_go_on_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file)
    before = file.read_bytes()
    monkeypatch.setattr(train, "_device", lambda name: torch.device("meta"))
    assert main(["train", "--checkpoint", str(file), "--resume", "--epochs", "2"]) == 1
    told = capsys.readouterr().err
    where = "was trained by TrainStep, which runs on the CPU, not on meta: give --device cpu"
    assert told == f"fastmlp: {file}: {where}\n"
    assert file.read_bytes() == before


def as_before_there_were_loops(state: dict[str, Any], compare: bool) -> dict[str, Any]:
    """A fused training's state in the form that fastmlp saved when it knew no other."""
    options = {name: value for name, value in state["options"].items() if name != "loop"}
    twin = dict(state["plain"]) if compare else None
    if twin:
        del twin["loss_difference"]
    old = {name: value for name, value in state.items() if name not in ("format", "plain")}
    return {**old, "plain": twin, "options": {**options, "compare": compare}}


@pytest.mark.parametrize("compare", [False, True])
def test_a_checkpoint_from_before_there_were_loops_goes_on_as_fused(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    compare: bool,
) -> None:
    go = {"data_dir": str(data), "epochs": 3, "loop": "fused", "compare": compare}
    whole, file = tmp_path / "whole.pt", tmp_path / "c.pt"
    train.train({**go, "checkpoint": str(whole)})
    wanted = lines(capsys.readouterr().out)

    save = checkpoint.save

    def save_old_and_die(path: str, content: dict[str, Any]) -> None:
        save(path, as_before_there_were_loops(content, compare))
        if content["batch"] == 8:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_old_and_die)
    with pytest.raises(Killed):
        train.train({**go, "checkpoint": str(file), "checkpoint_every": 29})
    monkeypatch.undo()
    capsys.readouterr()
    before = file.read_bytes()
    assert main(["train", "--checkpoint", str(file), "--resume", "--loop", "step"]) == 1
    says = "with --compare: leave out --loop" if compare else "with --loop fused, not step"
    assert capsys.readouterr().err == f"fastmlp: {file}: was trained {says}\n"
    assert file.read_bytes() == before
    run("--checkpoint", file, "--resume")
    told = capsys.readouterr().out
    assert f"loop      {'plain / fused, in turns' if compare else 'fused: '}" in told
    assert f"resumed   {file}: 1 epochs and 8 batches\n" in told
    assert lines(told) == wanted[1:]
    assert_same(checkpoint.load(file), checkpoint.load(whole))


def test_a_loop_of_a_later_version_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.pt"
    run("--data-dir", data, "--epochs", 1, "--checkpoint", file)
    state = checkpoint.load(file)
    state["options"]["loop"] = "faster"
    checkpoint.save(file, state)
    assert main(["train", "--checkpoint", str(file), "--resume"]) == 1
    told = capsys.readouterr().err
    assert told == f"fastmlp: {file}: does not hold what --resume needs\n"


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
