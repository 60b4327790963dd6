"""`fastmlp train`: the lecture's program, and what a long training needs around it.

Data set → batches → network → CrossEntropyLoss → SGD, by one of the loops of _loops.py; with
--compare by all of them, in turns on the same batches. All that the numbers depend on is in the
options, the data and the training's state(); nothing draws from torch's global generator once the
networks are made.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fastmlp import FusedMLP, checkpoint, get_isa
from fastmlp._epochs import EpochLoop
from fastmlp._faults import Fault, require
from fastmlp._files import check_writable, remove_drafts, write_whole
from fastmlp._progress import Score
from fastmlp.checkpoint import CheckpointError
from fastmlp.data import (
    Compose,
    DigitsDataset,
    ImageDataset,
    MNISTDataset,
    Normalize,
    ToTensor,
    download_mnist,
)

from ._loops import EpochSampler, Task, Trainee, make_trainee
from ._options import FUSED, KEPT, LOOPS, PLAIN, STEP, Options
from ._saved import check_network, check_progress

HIDDEN, CLASSES = 300, 10  # of the lecture's network
MOST_CLASSES = 1000  # that labels alone ask for; more are a slip, or --sizes says so
BATCHES_A_LINE = 100
_ANY = 2**31 - 1  # classes
_LOOPS = {
    PLAIN: "nn.Sequential, a DataLoader of single items",
    FUSED: "FusedMLP, torch's loss and optimizer",
    STEP: "TrainStep, runs of batches in one call",
}


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
    options = dataclasses.replace(
        options, sizes=_sizes(options, train_data, test_data), loop=_loop(options, device, saved)
    )
    training = Training(options, device, train_data, test_data)
    print(training.header(), flush=True)
    if saved:
        training.restore(saved)
    elif options.checkpoint:
        training.save()
    try:
        training.run()
    finally:
        if options.plot and (training.main.curve or training.main.test_errors):
            _draw(options.plot, training)
    if options.compare:
        print(training.comparison(), flush=True)
    return 0


class Training(EpochLoop):
    """The networks, their data, and how far they have come."""

    def __init__(
        self,
        options: Options,
        device: torch.device,
        train_data: ImageDataset,
        test_data: ImageDataset,
    ) -> None:
        assert options.sizes is not None
        assert options.loop is not None
        self.options = options
        self.device = device
        self.data = (train_data, test_data)
        self.sampler = EpochSampler(len(train_data), options.batch_size, options.seed)

        torch.manual_seed(options.seed)
        try:
            model = FusedMLP(options.sizes).to(device)
        except RuntimeError as error:  # no memory for them
            text = ",".join(map(str, options.sizes))
            raise Fault(f"--sizes {text}: {str(error).splitlines()[0]}") from error
        task = Task(train_data, test_data, self.sampler, options.lr)
        slower = LOOPS[: LOOPS.index(options.loop)] if options.compare else ()
        self.trainees = [make_trainee(name, copy.deepcopy(model), task) for name in slower]
        self.main = make_trainee(options.loop, model, task)
        self.trainees.append(self.main)
        scores = [trainee.scores for trainee in self.trainees]
        super().__init__(options.epochs, len(self.sampler), scores)
        self.seconds = 0.0  # spent on the batches of the next epoch
        self.turns = 0  # runs of batches since the program's start

    def run(self) -> None:
        """Trains for the epochs that are left."""
        if self.epoch >= self.epochs:
            print(f"already trained for {self.epoch} epochs: nothing left to do", flush=True)
            return
        with _Signals() as self.signals:
            self.run_epochs(leave=False)

    def start_epoch(self) -> None:
        start = perf_counter()
        self.sampler.seek(self.epoch, first=self.batch)
        for trainee in self.trainees:
            trainee.start()
        self.seconds += perf_counter() - start

    def limits(self) -> tuple[int, ...]:
        # Counted from the training's first batch: lines are as far apart across epochs.
        end = (self.epoch + 1) * self.batches
        return self.done, end, BATCHES_A_LINE, self.options.checkpoint_every

    def learn(self, batches: int) -> float:
        """Each network learns from the next batches."""
        start = perf_counter()
        # Who comes later finds them in the cache: they take turns.
        turn = self.turns % len(self.trainees)
        self.turns += 1
        losses = {}
        for trainee in self.trainees[turn:] + self.trainees[:turn]:
            losses[trainee.name] = trainee.learn(batches)
            for batch, loss in enumerate(losses[trainee.name], start=self.batch + 1):
                if not math.isfinite(loss):
                    raise Fault(
                        f"the {trainee.name} loop's training loss is {loss} in epoch "
                        f"{self.epoch + 1}, batch {batch}: try a smaller --lr than "
                        f"{self.options.lr:g}"
                    )
        for trainee in self.trainees[1:]:
            pairs = zip(losses[PLAIN], losses[trainee.name], strict=True)
            difference = max(abs(a - b) for a, b in pairs)
            trainee.loss_difference = max(trainee.loss_difference, difference)
        self.seconds += perf_counter() - start
        return self.main.scores.window.loss

    def end_run(self) -> None:
        if self.done % BATCHES_A_LINE == 0:
            self.bar.line(self._batch_line())
        if self.signals.received:
            self._interrupt(self.signals.received)
        if self.done % self.options.checkpoint_every == 0 and self.batch < self.batches:
            self.save()

    def end_epoch(self) -> None:
        for trainee in self.trainees:
            trainee.test()
        self.bar.line(self._epoch_line())
        super().end_epoch()
        self.seconds = 0.0
        self.save()
        if self.signals.received and self.epoch < self.epochs:
            self._interrupt(self.signals.received)

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
        rows = min(options.batch_size, len(train_data))
        example = torch.zeros(rows, height * width, device=self.device)
        model = self.main.model
        why_plain = model.why_plain(example) if isinstance(model, FusedMLP) else "--loop plain"
        path = f"not fused: {why_plain}" if why_plain else "fused"
        if self.device.type == "cpu" and not why_plain:
            path += f" ({get_isa()})"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        loop = f"{self.main.name}: {_LOOPS[self.main.name]}"
        if options.compare:
            loop = f"{_row(t.name for t in self.trainees)}, in turns on the same batches"
        assert options.sizes is not None
        return "\n".join(
            (
                f"data      {options.data_dir or 'digits'}: {len(train_data)} training and "
                f"{len(test_data)} test images of {height}×{width}",
                f"          {train_data.transform}",
                f"network   {'-'.join(map(str, options.sizes))}, seed {options.seed}, {path}",
                f"training  {options.epochs} epochs of {self.batches} batches of "
                f"{options.batch_size}, SGD with lr {options.lr:g}, {self.device}{threads}",
                f"loop      {loop}",
            )
        )

    def _batch_line(self) -> str:
        """The means since the last such line, which end the stretch they are of."""
        windows = [trainee.scores.window for trainee in self.trainees]
        for trainee, window in zip(self.trainees, windows, strict=True):
            at = self.epoch + self.batch / self.batches
            trainee.curve.append((at, window.loss, window.error))
            trainee.scores.window = Score()
        return f"epoch {self.epoch + 1:3d}  batch {self.batch:4d}  {_means(windows)}"

    def _epoch_line(self) -> str:
        means = _means([trainee.scores.epoch for trainee in self.trainees])
        errors = _row(f"{trainee.test_errors[-1]:5.2f}" for trainee in self.trainees)
        return f"epoch {self.epoch + 1:3d}  {means}  test error {errors} %  {self.seconds:.2f} s"

    def comparison(self) -> str:
        """What --compare found: differences, and times if batches were trained."""
        plain, *others = self.trainees

        def parameter_difference(trainee: Trainee) -> float:
            pairs = zip(trainee.model.parameters(), plain.model.parameters(), strict=True)
            return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)

        def error_difference(trainee: Trainee) -> float:
            pairs = zip(trainee.test_errors, plain.test_errors, strict=True)
            return max((abs(a - b) for a, b in pairs), default=0.0)

        lines = [
            f"{_row(t.name for t in others)} against plain: greatest difference",
            f"  of a batch's loss   {_row(f'{t.loss_difference:.2e}' for t in others)}",
            f"  of a parameter      {_row(f'{parameter_difference(t):.2e}' for t in others)}"
            ", in the end",
            f"  of the test error   {_row(f'{error_difference(t):.2f}' for t in others)} %",
        ]
        if plain.step_seconds:
            names = _row(t.name for t in self.trainees)
            lines.append(f"microseconds a batch, median: {names} (times as fast as plain)")
            for what, seconds in (
                ("training step    ", [t.step_seconds for t in self.trainees]),
                ("with data loading", [t.whole_seconds for t in self.trainees]),
            ):
                times = [median(each) * 1e6 for each in seconds]
                ratios = _row(f"{times[0] / time:.2f}" for time in times[1:])
                lines.append(f"  {what}   {_row(f'{time:.0f}' for time in times)} ({ratios})")
            if self.main.name == STEP:
                lines.append("  step loads its data within the call, which is what both lines show")
        return "\n".join(lines)

    # ---- state -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, if one is asked for."""
        if not self.options.checkpoint:
            return
        for trainee in self.trainees:  # not over a good one
            if not all(bool(p.isfinite().all()) for p in trainee.model.parameters()):
                raise Fault(
                    f"the {trainee.name} loop's parameters are no longer finite: try a smaller "
                    f"--lr than {self.options.lr:g}; {self.options.checkpoint} is left as it was"
                )
        checkpoint.save(self.options.checkpoint, self.state())

    def state(self) -> dict[str, Any]:
        """All that restore() needs. The batches' order follows from seed, epoch and batch."""
        return {
            **self.main.state(),
            **{trainee.name: trainee.state() for trainee in self.trainees[:-1]},
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
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
            fresh = {trainee.name: trainee.optimizer.state_dict() for trainee in self.trainees}
            check_progress(state, fresh, len(self.data[0]), BATCHES_A_LINE)
            self.main.restore(state)
            for trainee in self.trainees[:-1]:
                trainee.restore(state[trainee.name])
            self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        except CheckpointError:
            raise
        except Exception as error:  # whatever a value that is none of a training's leads to
            raise CheckpointError(f"{file}: does not hold what --resume needs") from error
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


def _row(values: Iterable[str]) -> str:
    """One value a network, in the order of the loops."""
    return " / ".join(values)


def _means(scores: Sequence[Score]) -> str:
    losses = _row(f"{score.loss:.4f}" for score in scores)
    return f"train loss {losses}  train error {_row(f'{score.error:5.2f}' for score in scores)} %"


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
    remove_drafts(file)
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
        # Before there was a choice, the loop was the fused one.
        kept = {name: {"loop": FUSED, **saved["options"]}[name] for name in KEPT}
        check_network(saved, kept)
    except Exception as error:  # whatever a value that is none of a training's leads to
        raise CheckpointError(f"{file}: does not hold what --resume needs") from error
    _check_agreement(file, wishes, kept)
    return dataclasses.replace(options, **{**kept, **wishes}), saved


def _check_agreement(file: str, wishes: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    if kept["compare"] and "loop" in wishes:
        raise CheckpointError(f"{file}: was trained with --compare: leave out --loop")
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


def _loop(options: Options, device: torch.device, saved: object) -> str:
    """The loop asked for, or the fastest that the device allows."""
    if options.loop is None:
        return STEP if device.type == "cpu" else FUSED
    if options.loop == STEP and device.type != "cpu":
        if saved:
            raise CheckpointError(
                f"{options.checkpoint}: was trained by TrainStep, which runs on the CPU, not on "
                f"{device}: give --device cpu"
            )
        raise Fault(f"--loop step runs on the CPU, not on {device}: give --loop fused")
    return options.loop


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
        if options.download:
            download_mnist(folder)

        def make(train: bool) -> ImageDataset:
            return MNISTDataset(folder, train, classes=_ANY)  # _sizes() looks at the labels

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
    greatest = max(int(data.labels.max()) for data in (train_data, test_data))
    sizes = options.sizes or (pixels, HIDDEN, max(CLASSES, greatest + 1))
    text = ",".join(map(str, sizes))
    if not options.sizes and sizes[-1] > MOST_CLASSES:
        raise Fault(
            f"{options.data_dir}: has labels up to {greatest}: if so many classes are meant, give "
            f"--sizes {text}"
        )
    if sizes[0] != pixels:
        raise Fault(f"--sizes {text}: must begin with the {pixels} pixels of an image")
    if sizes[-1] <= greatest:
        raise Fault(f"--sizes {text}: must end with at least {greatest + 1}, the number of classes")
    return sizes


# ---- terminal --------------------------------------------------------------------------------


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
    # The curves nearly coincide: those drawn later leave gaps for the earlier ones.
    for trainee, line in zip(reversed(training.trainees), ("-", "--", ":"), strict=False):
        style = {"linestyle": line}
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
