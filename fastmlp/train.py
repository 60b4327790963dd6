"""`fastmlp train`: the lecture's program, and what a long training needs around it.

Dataset → DataLoader → FusedMLP → CrossEntropyLoss → SGD. With --compare a plain nn.Linear twin
learns from the same batches. All that the numbers depend on is in the options, the data and the
training's state(); nothing draws from torch's global generator once the networks are made.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import math
import os
import random
import signal
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from fastmlp import FusedMLP, get_isa

from . import checkpoint
from ._faults import Fault, require
from ._files import check_writable, remove_drafts, write_whole
from ._options import KEPT, Options
from .checkpoint import CheckpointError
from .data import (
    Compose,
    DigitsDataset,
    ImageDataset,
    MNISTDataset,
    Normalize,
    ToTensor,
    collate,
    download_mnist,
)

HIDDEN, CLASSES = 300, 10  # of the lecture's network
BATCHES_A_LINE = 100
TEST_BATCH = 1000
FUSED, PLAIN = "fused", "plain"


class Interrupted(Fault):
    """A signal asked the training to end, and it did so between two batches."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def train(given: Mapping[str, Any]) -> int:
    """Runs `fastmlp train`.

    Args:
        given: the fields of Options that the user set; "data" may stand for `data_dir=None`.

    Returns:
        The exit status, 0.

    Raises:
        Fault: the data, a file, an option or the training itself is at fault.
    """
    options, saved = _settle(given)
    device = _device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.plot:
        _check_plot(options)
    train_data, test_data = _datasets(options)
    sizes = _sizes(options, train_data, test_data)
    training = Training(dataclasses.replace(options, sizes=sizes), device, train_data, test_data)
    print(training.header(), flush=True)
    if saved:
        training.restore(saved)
    elif options.checkpoint:
        training.save()
    try:
        training.run()
    finally:
        if options.plot and (training.trainees[0].curve or training.trainees[0].test_errors):
            _draw(options.plot, training)
    if options.compare:
        print(training.comparison(), flush=True)
    return 0


class Training:
    """The networks, their data, and how far they have come."""

    def __init__(
        self,
        options: Options,
        device: torch.device,
        train_data: ImageDataset,
        test_data: ImageDataset,
    ) -> None:
        self.options = options
        self.device = device
        self.data = (train_data, test_data)
        self.sampler = EpochSampler(len(train_data), options.batch_size, options.seed)
        # Generators of their own, or each epoch would draw from the global one.
        self.loader: DataLoader[Any] = DataLoader(
            train_data,
            batch_sampler=self.sampler,
            collate_fn=collate,
            generator=torch.Generator(),
        )
        self.test_loader: DataLoader[Any] = DataLoader(
            test_data, TEST_BATCH, collate_fn=collate, generator=torch.Generator()
        )
        self.batches = len(self.loader)  # in an epoch

        assert options.sizes is not None
        torch.manual_seed(options.seed)
        try:
            model = FusedMLP(options.sizes).to(device)
        except RuntimeError as error:  # no memory for them
            text = ",".join(map(str, options.sizes))
            raise Fault(f"--sizes {text}: {str(error).splitlines()[0]}") from error
        self.trainees = [Trainee(FUSED, model, options.lr)]
        if options.compare:
            twin = copy.deepcopy(model.as_sequential())
            self.trainees.append(Trainee(PLAIN, twin, options.lr))

        self.epoch = 0  # epochs done
        self.batch = 0  # batches done of the next one
        self.seconds = 0.0  # spent on them
        self.loss_difference = 0.0  # greatest so far between the two networks, of one batch

    def run(self) -> None:
        """Trains for the epochs that are left."""
        if self.epoch >= self.options.epochs:
            print(f"already trained for {self.epoch} epochs: nothing left to do", flush=True)
            return
        total, done = self.options.epochs * self.batches, self.epoch * self.batches + self.batch
        with _Progress(total, done) as progress, _Signals() as signals:
            while self.epoch < self.options.epochs:
                self._run_epoch(progress, signals)

    def _run_epoch(self, progress: _Progress, signals: _Signals) -> None:
        self.sampler.seek(self.epoch, first=self.batch)
        clock = perf_counter()
        for images, labels in self.loader:
            images = images.to(self.device).flatten(1)
            self._train_batch(images, labels.to(self.device), perf_counter() - clock)
            self.batch += 1
            self.seconds += perf_counter() - clock
            step = self.epoch * self.batches + self.batch
            if step % BATCHES_A_LINE == 0:
                progress.line(self._batch_line())
            progress.advance()
            if signals.received:
                self._interrupt(signals.received)
            if step % self.options.checkpoint_every == 0 and self.batch < self.batches:
                self.save()
            clock = perf_counter()
        for trainee in self.trainees:
            trainee.test(self.test_loader, self.device)
        progress.line(self._epoch_line())
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        for trainee in self.trainees:
            trainee.epoch = Tally()
        self.save()
        if signals.received and self.epoch < self.options.epochs:
            self._interrupt(signals.received)

    def _train_batch(self, images: Tensor, labels: Tensor, fetching: float) -> None:
        """One step of each network; fetching: seconds that the batch took to come."""
        # Who comes second finds the batch in the cache: they take turns.
        turns = self.trainees if self.batch % 2 == 0 else self.trainees[::-1]
        for trainee in turns:
            start = perf_counter()
            logits, loss = trainee.step(images, labels)
            if len(turns) > 1 and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # before the clock is read
            stepped = perf_counter()
            trainee.count(logits, loss, labels)
            trainee.step_seconds.append(stepped - start)
            trainee.whole_seconds.append(perf_counter() - start + fetching)
            if not math.isfinite(trainee.loss):
                raise Fault(
                    f"the {trainee.name} network's training loss is {trainee.loss} in epoch "
                    f"{self.epoch + 1}, batch {self.batch + 1}: try a smaller --lr than "
                    f"{self.options.lr:g}"
                )
        losses = [trainee.loss for trainee in self.trainees]
        self.loss_difference = max(self.loss_difference, max(losses) - min(losses))

    def _interrupt(self, signum: int) -> None:
        self.save()
        file = self.options.checkpoint
        raise Interrupted(
            f"interrupted in epoch {self.epoch + 1} after {self.batch} of {self.batches} batches; "
            + (f"saved to {file}, --resume goes on" if file else "no --checkpoint, nothing saved"),
            signum,
        )

    # ---- lines -------------------------------------------------------------------------------

    def header(self) -> str:
        options, (train_data, test_data) = self.options, self.data
        height, width = train_data.images.shape[1:]
        model = self.trainees[0].model
        example = torch.zeros(options.batch_size, height * width, device=self.device)
        why_plain = model.why_plain(example)
        path = f"not fused: {why_plain}" if why_plain else "fused"
        if self.device.type == "cpu" and not why_plain:
            path += f" ({get_isa()})"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        assert options.sizes is not None
        return "\n".join(
            (
                f"data      {options.data_dir or 'digits'}: {len(train_data)} training and "
                f"{len(test_data)} test images of {height}×{width}",
                f"          {train_data.transform}",
                f"network   {'-'.join(map(str, options.sizes))}, seed {options.seed}, {path}",
                f"training  {options.epochs} epochs of {self.batches} batches of "
                f"{options.batch_size}, SGD with lr {options.lr:g}, {self.device}{threads}",
            )
        )

    def _batch_line(self) -> str:
        """The means since the last such line, which end the stretch they are of."""
        for trainee in self.trainees:
            trainee.curve.append(
                (self.epoch + self.batch / self.batches, trainee.window.loss, trainee.window.error)
            )
        networks = "  | plain ".join(
            f"train loss {t.window.loss:.4f}  train error {t.window.error:5.2f} %"
            for t in self.trainees
        )
        for trainee in self.trainees:
            trainee.window = Tally()
        return f"epoch {self.epoch + 1:3d}  batch {self.batch:4d}  {networks}"

    def _epoch_line(self) -> str:
        networks = "  | plain ".join(
            f"train loss {t.epoch.loss:.4f}  train error {t.epoch.error:5.2f} %  "
            f"test error {t.test_errors[-1]:5.2f} %"
            for t in self.trainees
        )
        return f"epoch {self.epoch + 1:3d}  {networks}  {self.seconds:.2f} s"

    def comparison(self) -> str:
        """What --compare found: differences, and times if batches were trained."""
        fused, plain = self.trainees
        parameters = max(
            float((a.detach() - b.detach()).abs().max())
            for a, b in zip(fused.model.parameters(), plain.model.parameters(), strict=True)
        )
        errors = max(
            (abs(a - b) for a, b in zip(fused.test_errors, plain.test_errors, strict=True)),
            default=0.0,
        )
        lines = [
            "fused against plain nn.Linear: greatest difference",
            f"  of a batch's loss   {self.loss_difference:.2e}",
            f"  of a parameter      {parameters:.2e}, in the end",
            f"  of the test error   {errors:.2f} %",
        ]
        if fused.step_seconds:
            lines.append("microseconds a batch, median: plain / fused = ratio")
            for what, seconds in (
                ("training step    ", [plain.step_seconds, fused.step_seconds]),
                ("with data loading", [plain.whole_seconds, fused.whole_seconds]),
            ):
                a, b = (median(each) * 1e6 for each in seconds)
                lines.append(f"  {what}   {a:.0f} / {b:.0f} = {a / b:.2f}")
        return "\n".join(lines)

    # ---- state -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, if one is asked for."""
        if not self.options.checkpoint:
            return
        for trainee in self.trainees:  # not over a good one
            if not all(bool(p.isfinite().all()) for p in trainee.model.parameters()):
                raise Fault(
                    f"the {trainee.name} network's parameters are no longer finite: try a smaller "
                    f"--lr than {self.options.lr:g}; {self.options.checkpoint} is left as it was"
                )
        checkpoint.save(self.options.checkpoint, self.state())

    def state(self) -> dict[str, Any]:
        """All that restore() needs. The batches' order follows from seed, epoch and batch."""
        return {
            **self.trainees[0].state(),
            PLAIN: self.trainees[1].state() if self.options.compare else None,
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            "loss_difference": self.loss_difference,
            "options": {name: getattr(self.options, name) for name in KEPT},
            "data": self._fingerprint(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where the training of a checkpoint was."""
        file = self.options.checkpoint
        assert file is not None
        try:
            if state["data"] != self._fingerprint():
                raise CheckpointError(f"{file}: was trained on other data than these")
            self.trainees[0].restore(state)
            if self.options.compare:
                self.trainees[1].restore(state[PLAIN])
            self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
            self.loss_difference = state["loss_difference"]
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{file}: does not hold what --resume needs") from error
        remove_drafts(file)
        print(f"resumed   {file}: {self.epoch} epochs and {self.batch} batches", flush=True)

    def _fingerprint(self) -> str:
        if not hasattr(self, "_digest"):
            digest = hashlib.sha256()
            for data in self.data:
                for tensor in (data.images, data.labels):
                    digest.update(f"{list(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
            self._digest = digest.hexdigest()
        return self._digest


class Trainee:
    """A network in training, and what it has shown so far."""

    def __init__(self, name: str, model: Any, lr: float) -> None:
        self.name = name
        self.model = model
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.loss = 0.0  # of the last batch
        self.window = Tally()  # since the last line
        self.epoch = Tally()
        self.curve: list[tuple[float, float, float]] = []  # epochs, loss, error in %: the lines
        self.test_errors: list[float] = []  # in %, one an epoch
        self.step_seconds = array("d")  # of each batch since the program's start
        self.whole_seconds = array("d")  # with fetching the batch and counting its errors

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images: float32 [n, pixels]; labels: int64 [n]. Returns logits [n, classes], the loss."""
        logits = self.model(images)
        loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logits, loss

    def count(self, logits: Tensor, loss: Tensor, labels: Tensor) -> None:
        self.loss = loss.item()
        wrong = int((logits.detach().argmax(1) != labels).sum())
        for tally in (self.window, self.epoch):
            tally.add(self.loss, wrong, len(labels))

    def test(self, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        """Adds the present test error to test_errors."""
        tally = Tally()
        self.model.eval()
        with torch.no_grad():
            for images, labels in loader:
                predicted = self.model(images.to(device).flatten(1)).argmax(1)
                tally.add(0.0, int((predicted != labels.to(device)).sum()), len(labels))
        self.model.train()
        self.test_errors.append(tally.error)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": dataclasses.astuple(self.window),
            "tally": dataclasses.astuple(self.epoch),
            "curve": self.curve,
            "test_errors": self.test_errors,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.window, self.epoch = Tally(*state["window"]), Tally(*state["tally"])
        self.curve, self.test_errors = state["curve"], state["test_errors"]


@dataclasses.dataclass
class Tally:
    """Sums over samples, and their means."""

    losses: float = 0.0
    wrong: int = 0
    samples: int = 0

    def add(self, loss: float, wrong: int, samples: int) -> None:
        """loss: the mean of these samples."""
        self.losses += loss * samples
        self.wrong += wrong
        self.samples += samples

    @property
    def loss(self) -> float:
        return self.losses / self.samples

    @property
    def error(self) -> float:
        """In percent."""
        return 100 * self.wrong / self.samples


class EpochSampler(Sampler[Any]):
    """Batches of rows, int64 [n]: every row once an epoch, in an order that seed and epoch decide.

    Nothing else does: a training goes on in the middle of an epoch without a generator's history.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.seek(0)

    def seek(self, epoch: int, first: int = 0) -> None:
        """The next iteration is of this epoch, from batch `first` on."""
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[Any]:
        # A text as seed is hashed: neighbouring seeds and epochs have nothing in common.
        seed = random.Random(f"{self.seed} {self.epoch}").getrandbits(32)
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))
        return iter(order.split(self.batch_size)[self.first :])

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size) - self.first


# ---- options ---------------------------------------------------------------------------------


def _settle(given: Mapping[str, Any]) -> tuple[Options, dict[str, Any] | None]:
    """The options in force, and the checkpoint to go on from, if any."""
    wishes = dict(given)
    if wishes.pop("data", None):
        wishes["data_dir"] = None
    if wishes.get("data_dir") is not None:  # absolute, since a checkpoint is used from anywhere
        wishes["data_dir"] = os.path.abspath(wishes["data_dir"])
    options = Options(**wishes)
    if options.download and not options.data_dir:
        raise Fault("--download needs --data-dir DIR: where to put the files")
    file = options.checkpoint
    if not file:
        if options.resume or options.overwrite:
            raise Fault("--resume and --overwrite need --checkpoint FILE")
        return options, None
    check_writable(file)
    if not os.path.exists(file):
        if options.resume:
            print(f"{file}: nothing to resume yet, starting from the beginning", file=sys.stderr)
        return options, None
    if options.overwrite:
        return options, None
    if not options.resume:
        raise Fault(f"{file}: exists already: give --resume to go on, --overwrite to replace it")
    saved = checkpoint.load(file)
    try:
        kept = {name: saved["options"][name] for name in KEPT}
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"{file}: does not hold what --resume needs") from error
    _check_agreement(file, wishes, kept)
    return dataclasses.replace(options, **{**kept, **wishes}), saved


def _check_agreement(file: str, wishes: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    for name in KEPT:
        free = name in ("epochs", "data_dir")  # may grow; has a fingerprint
        if free or name not in wishes or wishes[name] == kept[name]:
            continue
        flag = "--" + name.replace("_", "-")
        if name == "compare":
            raise CheckpointError(f"{file}: was trained without {flag}")
        was, wish = (
            ",".join(map(str, value)) if name == "sizes" else value
            for value in (kept[name], wishes[name])
        )
        raise CheckpointError(f"{file}: was trained with {flag} {was}, not {wish}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own ways to fail
        reason = str(error).strip().split("\n")[0]
        raise Fault(f"--device {name}: cannot be used: {reason}") from error
    return device


# ---- data ------------------------------------------------------------------------------------


def _datasets(options: Options) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part, both normalised by the training part's mean and deviation."""
    make: Callable[[bool], ImageDataset]
    if options.data_dir is None:
        make = DigitsDataset
    else:
        folder = options.data_dir
        classes = max(CLASSES, options.sizes[-1] if options.sizes else 0)
        if options.download:
            download_mnist(folder)

        def make(train: bool) -> ImageDataset:
            return MNISTDataset(folder, train, classes=classes)

    train_data, test_data = make(True), make(False)
    shapes = [f"{data.images.shape[1]}×{data.images.shape[2]}" for data in (train_data, test_data)]
    if shapes[0] != shapes[1]:
        raise Fault(f"{options.data_dir}: training images of {shapes[0]}, test of {shapes[1]}")
    mean, std = _statistics(train_data.images)
    train_data.transform = test_data.transform = Compose([ToTensor(), Normalize((mean,), (std,))])
    return train_data, test_data


def _statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the pixels, of 1, to four decimals as the lecture has them.

    MNIST gives the lecture's 0.1307 and 0.3081. Exact, from counts of the 256 values.
    """
    counts = torch.bincount(images.flatten(), minlength=256).tolist()
    pixels = sum(counts)
    mean = sum(value * count for value, count in enumerate(counts)) / pixels
    square = sum(value * value * count for value, count in enumerate(counts)) / pixels
    deviation = math.sqrt(max(square - mean * mean, 0.0))
    return round(mean / 255, 4), round(deviation / 255, 4) or 1.0  # of images that are all alike


def _sizes(options: Options, train_data: ImageDataset, test_data: ImageDataset) -> tuple[int, ...]:
    pixels = train_data.images[0].numel()
    sizes = options.sizes or (pixels, HIDDEN, CLASSES)
    text = ",".join(map(str, sizes))
    if sizes[0] != pixels:
        raise Fault(f"--sizes {text}: must begin with the {pixels} pixels of an image")
    greatest = max(int(data.labels.max()) for data in (train_data, test_data))
    if sizes[-1] <= greatest:
        raise Fault(f"--sizes {text}: must end with at least {greatest + 1}, the number of classes")
    return sizes


# ---- terminal --------------------------------------------------------------------------------


class _Progress(contextlib.AbstractContextManager["_Progress"]):
    """Lines on stdout, over a bar on stderr where that is a terminal and tqdm is installed."""

    def __init__(self, total: int, done: int) -> None:
        self.bar: Any = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(
                    total=total, initial=done, unit="batch", leave=False, dynamic_ncols=True
                )

    def line(self, text: str) -> None:
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


class _Signals(contextlib.AbstractContextManager["_Signals"]):
    """Ctrl-C and a request to terminate, as a wish to be granted between two batches.

    A second one ends the program where it stands.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> _Signals:
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as a shell's background has it
                    self.before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signum

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)


# ---- plot ------------------------------------------------------------------------------------


def _check_plot(options: Options) -> None:
    """Finds out before the training what would go wrong after it."""
    file = options.plot
    assert file is not None
    check_writable(file)
    if options.checkpoint and os.path.realpath(file) == os.path.realpath(options.checkpoint):
        raise Fault(f"{file}: cannot be both --plot and --checkpoint")
    figure = _matplotlib().Figure()
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if _plot_kind(file) not in kinds:
        raise Fault(f"{file}: cannot be drawn: its ending is none of {', '.join(kinds)}")


def _draw(file: str, training: Training) -> None:
    """Error and loss against epochs."""
    figure = _matplotlib().Figure(figsize=(10, 4), layout="constrained")
    error_axes, loss_axes = figure.subplots(1, 2)
    for trainee in training.trainees:
        style = {"linestyle": "--" if trainee.name == PLAIN else "-"}
        epochs, losses, errors = list(zip(*trainee.curve, strict=True)) or [()] * 3
        label = f" ({trainee.name})" if len(training.trainees) > 1 else ""
        error_axes.plot(epochs, errors, label=f"training{label}", linewidth=1, **style)
        ends = range(1, len(trainee.test_errors) + 1)
        error_axes.plot(ends, trainee.test_errors, label=f"test{label}", marker=".", **style)
        loss_axes.plot(epochs, losses, label=f"training{label}", linewidth=1, **style)
    error_axes.set_ylabel("error in %")
    loss_axes.set_ylabel("cross entropy")
    for axes in (error_axes, loss_axes):
        axes.set_xlabel("epochs")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    write_whole(file, lambda stream: figure.savefig(stream, format=_plot_kind(file)))


def _plot_kind(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _matplotlib() -> Any:
    return require("matplotlib.figure", "Matplotlib", "--plot")
