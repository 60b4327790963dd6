"""The program that trains MNIST's classic table: rows, figures, and going on after a stop."""

from __future__ import annotations

import csv
import importlib
import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from image_files import random_images, write_idx
from processes import run_file

from fastmlp import checkpoint
from fastmlp._faults import Fault

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "mnist_table.py"
if not PROGRAM.exists():
    pytest.skip("examples/ is in the source tree, not beside these tests", allow_module_level=True)
pytest.importorskip("sklearn")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    return importlib.import_module("mnist_table")


@pytest.fixture
def data(table: ModuleType) -> Any:
    return table.Data(None, validate=True, quick=True)


def row(table: ModuleType, name: str) -> Any:
    return table.shortened(table.ROWS[table.NUMBERS[name] - 1])


def figures(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_the_rows_are_well_formed(table: ModuleType) -> None:
    assert len(table.NUMBERS) == len(table.ROWS) == 14
    for each in table.ROWS:
        assert each.name not in map(str, range(100))
        assert "," not in each.name
        assert bool(each.distortion) == (each.preprocessing == "distortions")
        assert each.preprocessing in ("none", "deskewing", "distortions")
        hidden = "+".join(map(str, each.sizes[1:-1]))
        assert (each.model.split(" hidden")[0] == hidden) or "linear" in each.model
        assert each.sizes[-1] == (45 if each.loss == "pairwise" else 10)


def test_rows_are_chosen_by_numbers_ranges_and_names(table: ModuleType) -> None:
    def names(text: str) -> list[str]:
        return [each.name for each in table.chosen(text)]

    assert names("1") == ["linear"]
    assert names("deep,1,2-4,3") == ["linear", "linear-deskew", "pairwise", "mse300", "deep"]
    assert names("mlp300-100") == ["mlp300-100"]  # the whole name
    assert table.chosen("1-14") == list(table.ROWS)


@pytest.mark.parametrize(
    "text", ["", "0", "15", "3-2", "1-15", "-1", "1,", "mlp", "1-2-3", "٣", "1 "]
)
def test_a_wrong_row_is_named(table: ModuleType, text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="no number or range in 1-14, nor any of linear, "):
        table.chosen(text)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "arguments",
    [["--rows", "1,lenet"], ["--seeds", "0"], ["--minutes", "0"], ["--minutes", "nan"]],
)
def test_wrong_arguments_end_the_program(arguments: list[str]) -> None:
    done = run_file(PROGRAM, "--quick", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"argument {arguments[0]}" in done.stderr.splitlines()[-1]
    assert repr(arguments[1].split(",")[-1]) in done.stderr.splitlines()[-1]


def test_a_fault_is_told_in_one_line(tmp_path: Path) -> None:
    done = run_file(PROGRAM, "--data-dir", tmp_path / "missing")
    assert done.returncode == 1
    assert done.stderr == f"mnist_table.py: {tmp_path / 'missing'}: no such folder\n"


@pytest.mark.sweep
def test_quick_gives_a_figure_for_every_row(table: ModuleType, tmp_path: Path) -> None:
    done = run_file(PROGRAM, "--quick", "--csv", tmp_path / "t.csv", "--state", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    lines = figures(tmp_path / "t.csv")
    assert list(lines[0]) == [
        "row", "name", "model", "preprocessing", "year", "published", "seed", "tested_on", "epoch",
        "seconds", "loss", "error",
    ]  # fmt: skip
    assert [(line["row"], line["name"]) for line in lines] == [
        (str(number), name) for name, number in table.NUMBERS.items()
    ]
    for line in lines:
        assert (line["seed"], line["tested_on"], line["epoch"]) == ("0", "test", "2")
        assert 0 <= float(line["error"]) <= 90 or line["name"] == "deep"
        assert f"{float(line['error']):5.2f}" in done.stdout
    # The same command again: nothing is left to train.
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert len(before) == 14
    again = run_file(PROGRAM, "--quick", "--csv", tmp_path / "u.csv", "--state", tmp_path / "runs")
    assert again.returncode == 0, again.stderr
    assert figures(tmp_path / "u.csv") == lines
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "runs").iterdir()} == before


@pytest.mark.sweep
def test_validation_leaves_the_test_images_alone(table: ModuleType, tmp_path: Path) -> None:
    images, labels = random_images(60, 28, 28)
    write_idx(tmp_path / "mnist", images, labels, train=True)  # there are no others
    done = run_file(
        PROGRAM, "--data-dir", tmp_path / "mnist", "--quick", "--validate", "--rows", "1,4",
        "--seeds", "2", "--csv", tmp_path / "t.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = figures(tmp_path / "t.csv")
    assert [(line["row"], line["seed"], line["epoch"]) for line in lines] == [
        (number, seed, epoch) for number in "14" for seed in "01" for epoch in "12"
    ]
    assert {line["tested_on"] for line in lines} == {"held-out"}
    data = table.Data(tmp_path / "mnist", validate=True)
    assert torch.equal(torch.cat((data.train[0], data.test[0])), images)
    assert torch.equal(torch.cat((data.train[1], data.test[1])), labels)
    assert len(data.test[1]) == 10


def test_deskewing_changes_both_sets_and_no_label(data: Any) -> None:
    upright = data.deskewed()
    for before, after in ((data.train, upright.train), (data.test, upright.test)):
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("name", ["pairwise", "mse300-distort", "mlp300-100"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    table: ModuleType, data: Any, name: str, tmp_path: Path
) -> None:
    settings = replace(row(table, name), epochs=3)
    whole = table.Run(settings, 5, data)
    while not whole.finished():
        whole.train()
    file = tmp_path / "state.pt"
    for epoch in range(3):
        part = table.Run(settings, 5, data, file)
        assert len(part.history) == epoch
        part.train()
        torch.rand(epoch)  # what else happens to the generator
    assert table.Run(settings, 5, data, file).finished()
    for mine, other in zip(part.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert part.errors == whole.errors
    assert [loss for _, loss in part.history] == [loss for _, loss in whole.history]
    other_seed = table.Run(settings, 6, data)
    other_seed.train()
    assert other_seed.history[0][1] != whole.history[0][1]


@pytest.mark.sweep
def test_a_killed_program_goes_on(tmp_path: Path) -> None:
    def command(folder: str) -> list[str]:
        return [
            sys.executable, str(PROGRAM), "--rows", "mse300", "--seeds", "1", "--validate",
            "--state", str(tmp_path / folder), "--csv", str(tmp_path / f"{folder}.csv"),
        ]  # fmt: skip

    killed = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for line in killed.stdout:  # the third epoch is done
        if "epoch 3 " in line:
            break
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    for folder in ("killed", "whole"):
        subprocess.run(command(folder), check=True, stdout=subprocess.DEVNULL)
    mine, other = figures(tmp_path / "killed.csv"), figures(tmp_path / "whole.csv")
    assert len(mine) > 10
    for line in (*mine, *other):
        del line["seconds"]
    assert mine == other


def test_an_interrupted_write_leaves_the_last_epoch(
    table: ModuleType, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.pt"
    run = table.Run(row(table, "mlp300-100"), 0, data, file)
    run.train()
    before = file.read_bytes()

    def torn(content: object, stream: Any) -> None:
        stream.write(before[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.pt"]
    assert len(table.Run(run.row, 0, data, file).history) == 1


def test_a_state_that_is_not_the_rows_is_refused(
    table: ModuleType, data: Any, tmp_path: Path
) -> None:
    file = tmp_path / "state.pt"
    settings = row(table, "mse300")
    table.Run(settings, 0, data, file).train()
    upright = table.Data(None, quick=True)
    for other, seed, images in (
        (replace(settings, lr=0.1), 0, data),
        (settings, 1, data),
        (settings, 0, upright),
    ):
        with pytest.raises(Fault, match=r"state\.pt: is of another row, seed, setting or data"):
            table.Run(other, seed, images, file)
    # How long, and how many networks, does not change what an epoch gives.
    assert len(table.Run(replace(settings, minutes=9, seeds=2), 0, data, file).history) == 1
    checkpoint.save(file, {"model": {}})
    with pytest.raises(Fault, match="is of another row"):
        table.Run(settings, 0, data, file)


@pytest.mark.sweep
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of a file"])
def test_a_broken_state_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "linear-0-test.pt"
    file.write_bytes(content)
    done = run_file(PROGRAM, "--quick", "--rows", "linear", "--state", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"mnist_table.py: {file}: not a checkpoint, or a damaged one\n"
    assert file.read_bytes() == content


def test_a_budget_of_time_ends_the_training_before_it_is_spent(
    table: ModuleType, data: Any
) -> None:
    run = table.Run(replace(row(table, "deep"), minutes=1), 0, data)
    rates = []
    for seconds in (20.0, 15.0, 10.0, 10.0):
        assert not run.finished()
        rates.append(run.progress(len(run.history)))
        run.history.append((seconds, 0.1))
    assert run.finished()  # a fifth would take the sum to 68.75
    assert rates == pytest.approx([0, 20 / 60, 35 / 60, 45 / 60])
    longer = replace(run.row, minutes=2)
    run.row = longer
    assert not run.finished()


def test_the_learning_rate_falls_along_half_a_cosine(table: ModuleType, data: Any) -> None:
    run = table.Run(replace(row(table, "linear"), epochs=4), 0, data)
    rates = []
    while not run.finished():
        run.train()
        rates.append(run.optimizer.param_groups[0]["lr"] / run.row.lr)
    assert rates == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])


def test_a_pairs_unit_learns_from_its_two_classes_alone(table: ModuleType, data: Any) -> None:
    images, labels = data.train
    some = (labels == 3) | (labels == 7)
    data.train = images[some], labels[some]
    run = table.Run(replace(row(table, "pairwise"), weight_decay=0.0), 0, data)
    before = run.model[0].weight.detach().clone()
    run.train()
    changed = (run.model[0].weight != before).any(1)
    pairs = table.PAIRS.tolist()
    assert len(pairs) == 45
    for pair, moved in zip(pairs, changed.tolist(), strict=True):
        assert moved == bool({3, 7} & set(pair))
    # The unit of both has learned to tell them; the votes go by its sign.
    unit = pairs.index([3, 7])
    outputs = run.model(table.scaled(images[some]))[:, unit]
    assert ((outputs > 0) == (labels[some] == 3)).double().mean() > 0.95


def test_a_pairs_unit_votes_for_one_class_and_against_the_other(
    table: ModuleType, data: Any
) -> None:
    run = table.Run(row(table, "pairwise"), 0, data)
    for number, chosen in ((0, 4), (1, 0), (2, 9)):
        with torch.no_grad():
            run.model[0].weight.zero_()
            run.model[0].bias.copy_(table.SIGNS[:, chosen] + 0.1 * table.SIGNS[:, number])
        labels = data.test[1]
        assert run.error() == 100 * float((labels != chosen).double().mean())
