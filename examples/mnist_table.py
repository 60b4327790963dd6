"""MNIST's classic table, trained again: linear classifiers and multilayer perceptrons, error in %.

The rows are those of Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied
to document recognition (1998), figure 9; then the network of P. Simard, D. Steinkraus, J. Platt
(2003) and one of D. Cireşan, U. Meier, L. Gambardella, J. Schmidhuber (2010). Each figure is that
of single networks, and the test images are looked at once, after training. What is in a row was
chosen with --validate, which tests on the last sixth of the training images and trains on the rest.

    python examples/mnist_table.py --data-dir mnist --state runs --csv table.csv --plot table.png
    python examples/mnist_table.py --data-dir mnist --rows 4,7-9 --validate
    python examples/mnist_table.py --data-dir mnist --rows deep --minutes 60 --state runs

With --state, the same command goes on after the last epoch that a stopped one has finished.
Without --data-dir the images are scikit-learn's digits, and the figures are not comparable.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import torch
from _common import BLUE, RED, figure, parse, parser
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import FusedMLP, TrainStep, checkpoint
from fastmlp._faults import Fault
from fastmlp._files import check_writable, remove_drafts, write_whole
from fastmlp.data import DigitsDataset, MNISTDataset, TensorLoader, deskew, distort

MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels, as parts of 255


@dataclass(frozen=True)
class Row:
    """A line of the table: what was published, and how the network is trained here, by AdamW."""

    name: str
    model: str
    preprocessing: str
    year: int
    published: float  # error, %
    sizes: tuple[int, ...]
    epochs: int
    batch_size: int = 128
    lr: float = 1e-3  # at first; it falls to 0 along half a cosine
    weight_decay: float = 0.0
    loss: str = "cross-entropy"
    label_smoothing: float = 0.0
    distortion: dict[str, Any] = field(default_factory=dict)  # anew for each epoch
    minutes: float = 0.0  # train for so long, not for so many epochs
    seeds: int = 3


ELASTIC = {"rotation": 10, "scale": 0.1, "shear": 10, "alpha": 36, "sigma": 5}
STRONGER = {"rotation": 12, "scale": 0.15, "shear": 12, "alpha": 36, "sigma": 5.5}
# fmt: off
ROWS = (
    Row("linear", "linear", "none", 1998, 12.0, (784, 10), 10, 64),
    Row("linear-deskew", "linear", "deskewing", 1998, 8.4, (784, 10), 10, 64),
    Row("pairwise", "pairwise linear", "deskewing", 1998, 7.6, (784, 45), 20, 64, loss="pairwise"),
    Row("mse300", "300 hidden, mean square error", "none", 1998, 4.7, (784, 300, 10), 30, 64,
        weight_decay=0.5, loss="mean square error"),
    Row("mse300-distort", "300 hidden, mean square error", "distortions", 1998, 3.6, (784, 300, 10),
        40, lr=2e-3, loss="mean square error", distortion=ELASTIC),
    Row("mlp300-deskew", "300 hidden", "deskewing", 1998, 1.6, (784, 300, 10), 30, 64,
        weight_decay=0.2, label_smoothing=0.1),
    Row("mlp1000", "1000 hidden", "none", 1998, 4.5, (784, 1000, 10), 20,
        weight_decay=0.5, label_smoothing=0.1),
    Row("mlp1000-distort", "1000 hidden", "distortions", 1998, 3.8, (784, 1000, 10), 40,
        lr=2e-3, distortion=ELASTIC),
    Row("mlp300-100", "300+100 hidden", "none", 1998, 3.05, (784, 300, 100, 10), 30, 64,
        weight_decay=0.5, label_smoothing=0.1),
    Row("mlp300-100-distort", "300+100 hidden", "distortions", 1998, 2.5, (784, 300, 100, 10), 40,
        lr=2e-3, distortion=ELASTIC),
    Row("mlp500-150", "500+150 hidden", "none", 1998, 2.95, (784, 500, 150, 10), 20,
        weight_decay=0.5, label_smoothing=0.1),
    Row("mlp500-150-distort", "500+150 hidden", "distortions", 1998, 2.45, (784, 500, 150, 10), 40,
        lr=2e-3, distortion=ELASTIC),
    Row("mlp800-elastic", "800 hidden", "distortions", 2003, 0.7, (784, 800, 10), 200,
        lr=2e-3, distortion=ELASTIC),
    Row("deep", "2500+2000+1500+1000+500 hidden", "distortions", 2010, 0.35,
        (784, 2500, 2000, 1500, 1000, 500, 10), 200, 256, 5e-4, distortion=STRONGER, minutes=60,
        seeds=1),
)
# fmt: on

NUMBERS = {row.name: number for number, row in enumerate(ROWS, start=1)}

# The pairwise classifier has a unit for each two classes, which is to be 1 for the first of them
# and -1 for the other.
PAIRS = torch.tensor(list(combinations(range(10), 2)))
SIGNS = (F.one_hot(PAIRS[:, 0], 10) - F.one_hot(PAIRS[:, 1], 10)).float()  # [45, 10]


class Data:
    """Images uint8 [n, 28, 28] and labels [n], to train on and to test on.

    With validate the latter are the last sixth of the training set; quick leaves 2000 of each.
    """

    def __init__(self, directory: str | None, validate: bool = False, quick: bool = False) -> None:
        def load(train: bool) -> tuple[Tensor, Tensor]:
            part = MNISTDataset(directory, train) if directory else DigitsDataset(train)
            number = 2000 if quick else len(part)
            return part.images[:number], part.labels[:number]

        images, labels = load(train=True)
        cut = len(labels) * 5 // 6 if validate else len(labels)
        self.train = images[:cut], labels[:cut]
        self.test = (images[cut:], labels[cut:]) if validate else load(train=False)
        self.tested_on = "held-out" if validate else "test"
        content = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            content.update(tensor.numpy().tobytes())
        self.digest = content.hexdigest()

    def deskewed(self) -> Data:
        other = copy(self)
        other.train, other.test = [(deskew(x), y) for x, y in (self.train, self.test)]
        return other


class Run:
    """A row with one seed: the network, its optimizer, and how far they have come.

    All that is random is drawn from torch's default generator. The file, if any, holds the state
    after the last epoch, and is read if it exists.
    """

    def __init__(self, row: Row, seed: int, data: Data, file: Path | None = None) -> None:
        self.row, self.seed, self.data, self.file = row, seed, data, file
        torch.manual_seed(seed)
        squared = row.loss == "mean square error"
        self.model = FusedMLP(row.sizes, output_activation="sigmoid" if squared else None)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), row.lr, weight_decay=row.weight_decay
        )
        self.history: list[tuple[float, float]] = []  # each epoch's seconds and mean loss
        self.errors: list[float] = []  # after each epoch, where images are held out
        self.result = math.nan  # the error after the last epoch
        settings = asdict(replace(row, minutes=0, seeds=0))
        self.key = f"data {data.digest}, seed {seed}, {settings}"
        if file and file.exists():
            self.restore(file)

    def progress(self, epochs: int) -> float:
        """The part of the training that so many epochs are."""
        if not self.row.minutes:
            return epochs / self.row.epochs
        done = len(self.history)
        return epochs / done * self.seconds() / (60 * self.row.minutes) if done else 0.0

    def seconds(self, epochs: int | None = None) -> float:
        """Of so many epochs, or of all."""
        return sum(seconds for seconds, _ in self.history[:epochs])

    def finished(self) -> bool:
        """Whether another epoch would be one too many."""
        return len(self.history) > 0 and self.progress(len(self.history) + 1) > 1

    def train(self) -> None:
        """Trains for one epoch."""
        row, (images, labels) = self.row, self.data.train
        began = perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = row.lr * (1 + math.cos(math.pi * self.progress(len(self.history)))) / 2
        if row.distortion:
            images = distort(images, **row.distortion)
        if row.loss == "pairwise":
            loss = self.train_pairs(images, labels)
        else:
            criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=row.label_smoothing)
            if row.loss == "mean square error":
                # Targets that a sigmoid reaches.
                criterion, labels = nn.MSELoss(), 0.1 + 0.8 * F.one_hot(labels, 10)
            step = TrainStep(self.model, criterion, self.optimizer)
            [report] = step.fit(
                (images, labels), row.batch_size, normalize=(MEAN, STD), progress=False
            )
            loss = report.loss
        if not math.isfinite(loss):
            raise Fault(f"row {row.name}: the training loss is {loss}: lr={row.lr} is too great")
        self.history.append((perf_counter() - began, loss))
        if self.data.tested_on == "held-out":
            self.errors.append(self.error())
        if self.file:
            self.save(self.file)

    def train_pairs(self, images: Tensor, labels: Tensor) -> float:
        """An epoch in which each unit learns from the images of its two classes alone."""
        total = 0.0
        for x, y in TensorLoader(images, labels, batch_size=self.row.batch_size, shuffle=True):
            signs = SIGNS.T[y]
            loss = F.softplus(-signs * self.model(scaled(x))).mul(signs.abs()).sum() / len(y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(y)
        return total / len(labels)

    @torch.no_grad()
    def error(self) -> float:
        """Of the images to test on, in percent."""
        images, labels = self.data.test
        scores = self.model(scaled(images))
        if self.row.loss == "pairwise":  # the units for a class, less those against it
            scores = (scores / 2).tanh() @ SIGNS
        return 100 * float((scores.argmax(1) != labels).double().mean())

    def save(self, file: Path) -> None:
        state = {
            "key": self.key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.history,
            "errors": self.errors,
        }
        checkpoint.save(file, state)

    def restore(self, file: Path) -> None:
        state = checkpoint.load(file)
        if state.get("key") != self.key:
            raise Fault(f"{file}: is of another row, seed, setting or data: move it away")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.history, self.errors = state["history"], state["errors"]
        remove_drafts(file)


def scaled(images: Tensor) -> Tensor:
    """uint8 [n, H, W] to float32 [n, H·W], as TrainStep.fit reads them."""
    return (images.flatten(1).float() / 255 - MEAN) / STD


def train_row(row: Row, data: Data, given: argparse.Namespace) -> list[Run]:
    """The row's networks, trained; prints how far they are, and what has come of them."""
    runs = []
    for seed in range(given.seed, given.seed + row.seeds):
        name = f"{row.name}-{seed}-{data.tested_on}.pt"
        run = Run(row, seed, data, given.state / name if given.state else None)
        while not run.finished():
            run.train()
            tested = f"  held-out error {run.errors[-1]:.2f} %" if run.errors else ""
            line = (f"{row.name}, seed {seed}: epoch {len(run.history)}  "
                    f"loss {run.history[-1][1]:.4f}{tested}  {run.seconds():.1f} s")  # fmt: skip
            if given.validate or row.minutes:
                print(line, flush=True)
            elif sys.stdout.isatty():
                print(f"{line:<78}", end="\r", flush=True)
        run.result = run.error()
        runs.append(run)
    errors = [run.result for run in runs]
    spread = f"± {stdev(errors):.2f}" if len(errors) > 1 else ""
    print(f"{NUMBERS[row.name]:2} {row.model:<30} {row.preprocessing:<11} {row.year} "
          f"{row.published:5.2f} {mean(errors):5.2f} {spread:<6} "
          f"{mean(run.seconds() for run in runs):6.1f} s", flush=True)  # fmt: skip
    return runs


def write_csv(file: Path, runs: Sequence[Run]) -> None:
    """A line for each network: its last epoch, or every epoch where images are held out."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("row", "name", "model", "preprocessing", "year", "published", "seed",
                    "tested_on", "epoch", "seconds", "loss", "error"))  # fmt: skip
    for run in runs:
        row, last = run.row, len(run.history)
        errors = dict(enumerate(run.errors, start=1)) | {last: run.result}
        for epoch, error in errors.items():
            lines.writerow((NUMBERS[row.name], row.name, row.model, row.preprocessing, row.year,
                            row.published, run.seed, run.data.tested_on, epoch,
                            f"{run.seconds(epoch):.2f}", f"{run.history[epoch - 1][1]:.6f}",
                            f"{error:.4f}"))  # fmt: skip
    write_whole(file, lambda stream: stream.write(text.getvalue().encode()))


def draw(file: str, runs: Sequence[Run]) -> None:
    """What was published beside what each network has come to, row by row."""
    with figure(file, 1, 1, size=(9, 5)) as [[axes]]:
        names = [f"{run.row.model}; {run.row.preprocessing}; {run.row.year}" for run in runs]
        published, here = zip(*((run.row.published, run.result) for run in runs), strict=True)
        axes.semilogx(published, names, "o", color=RED, label="published")
        axes.semilogx(here, names, "d", color=BLUE, label=f"here, {runs[0].data.tested_on} images")
        axes.invert_yaxis()
        axes.set_xlabel("error, %")
        axes.legend()


def chosen(text: str) -> list[Row]:
    """The rows that numbers from 1, ranges of them, and names tell, in the table's order."""
    numbers = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if part in NUMBERS:
            numbers.add(NUMBERS[part])
            continue
        found = range(0)
        if re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", part):
            found = range(int(first), int(last or first) + 1)
        if not found or not 1 <= found[0] <= found[-1] <= len(ROWS):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no number or range in 1-{len(ROWS)}, nor any of {', '.join(NUMBERS)}"
            )
        numbers.update(found)
    return [ROWS[number - 1] for number in sorted(numbers)]


def shortened(row: Row) -> Row:
    """A small stand-in: two epochs, narrow layers, one network."""
    sizes = (row.sizes[0], *(min(size, 100) for size in row.sizes[1:-1]), row.sizes[-1])
    return replace(row, sizes=sizes, epochs=2, batch_size=32, minutes=0, seeds=1)


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
        return value

    return number


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    add = options.add_argument
    add("--data-dir", metavar="DIR", help="MNIST, as PNG tree or IDX files")
    add("--rows", type=chosen, default=ROWS, metavar="ROWS",
        help="numbers, ranges and names, such as 1,4,7-9,deep (default: all)")  # fmt: skip
    add("--seeds", type=above_zero(int), metavar="N", help="networks a row, from seed on "
        "(default: 3, of the last row 1)")  # fmt: skip
    add("--minutes", type=above_zero(float), metavar="M", help="train each network for so long, "
        "not for its number of epochs (default: deep 60)")  # fmt: skip
    add("--validate", action="store_true", help="test after each epoch, on the last sixth of the "
        "training images")  # fmt: skip
    add("--state", type=Path, metavar="DIR", help="keep the networks there, and go on from there")
    add("--csv", type=Path, metavar="FILE", help="write the figures to FILE")
    return parse(options)


def main() -> None:
    given = arguments()
    if given.csv:
        check_writable(given.csv)  # better before the work than after
    if given.state:
        given.state.mkdir(parents=True, exist_ok=True)
    data = Data(given.data_dir, given.validate, given.quick)
    upright = data.deskewed()
    print(f"{len(data.train[1])} images to train on, {len(data.test[1])} {data.tested_on} images, "
          f"{torch.get_num_threads()} threads\n   hidden units {'':17} preprocessing    published "
          f"here, %   time")  # fmt: skip
    changes = {name: value for name in ("seeds", "minutes") if (value := getattr(given, name))}
    runs: list[Run] = []
    for row in given.rows:
        row = replace(shortened(row) if given.quick else row, **changes)
        runs += train_row(row, upright if row.preprocessing == "deskewing" else data, given)
        if given.csv:
            write_csv(given.csv, runs)
    if given.plot:
        draw(given.plot, runs)


if __name__ == "__main__":
    try:
        main()
    except (Fault, ImportError, OSError) as fault:
        sys.exit(f"mnist_table.py: {fault}")
    except KeyboardInterrupt:
        sys.exit("mnist_table.py: interrupted; with --state, the same command goes on")
