"""The loop over epochs and batches: of `TrainStep.fit`, and of `fastmlp train`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from time import perf_counter

from fastmlp._progress import Bar, Score

_SECONDS_A_CALL = 0.1  # between two looks at Ctrl-C and the progress bar


def calls(first: int, end: int, *every: int) -> Iterator[tuple[int, int]]:
    """Runs of the batches from `first` on, each as (first, end), that take about a tenth of a
    second each and end at each multiple of a number of `every`."""
    size = 1
    while first < end:
        until = min(end, first + size, *((first // number + 1) * number for number in every))
        began = perf_counter()
        yield first, until
        seconds = perf_counter() - began
        size = max(1, min(2 * size, int((until - first) * _SECONDS_A_CALL / max(seconds, 1e-9))))
        first = until


class Scores:
    """Of a network in training.

    Args:
        batch_size: rows of a batch; the last of an epoch may have fewer.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.window = Score()  # since the last report
        self.epoch = Score()

    def count(
        self, losses: Sequence[float], correct: Sequence[int], rows: int, ignored: int = 0
    ) -> None:
        """Adds batches that have `rows` rows in all, of which some do not count as predictions."""
        for score in (self.window, self.epoch):
            score.add(losses, correct, rows, self.batch_size)
            score.ignore(ignored)


class EpochLoop(ABC):
    """Epochs of batches, in runs that end where there is something to tell.

    Args:
        epochs: in all.
        batches: of an epoch.
        scores: of each network.
    """

    bar: Bar

    def __init__(self, epochs: int, batches: int, scores: Sequence[Scores]) -> None:
        self.epochs = epochs
        self.batches = batches
        self.scores = scores
        self.epoch = 0  # epochs done
        self.batch = 0  # batches done of the next one

    @property
    def done(self) -> int:
        """Batches of all epochs."""
        return self.epoch * self.batches + self.batch

    def run_epochs(self, progress: bool | None = None, *, leave: bool = True) -> None:
        """Trains for the epochs that are left.

        Args:
            progress, leave: of the bar, as `wanted` and `leave` there.
        """
        total = self.epochs * self.batches
        with Bar(total, progress, done=self.done, leave=leave) as self.bar:
            while self.epoch < self.epochs:
                self.start_epoch()
                for first, end in calls(*self.limits()):
                    loss = self.learn(end - first)
                    self.batch += end - first
                    self.bar.advance(end - first, loss)
                    self.end_run()
                self.end_epoch()

    @abstractmethod
    def start_epoch(self) -> None:
        """The next batches are those of the next epoch, which may have been begun before."""

    @abstractmethod
    def limits(self) -> tuple[int, ...]:
        """The arguments of calls() for the batches that are left of the epoch."""

    @abstractmethod
    def learn(self, batches: int) -> float:
        """Trains on the next batches, and returns the loss to show."""

    @abstractmethod
    def end_run(self) -> None:
        """Between two batches: reports, signals, files."""

    def end_epoch(self) -> None:
        """Goes on to the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        for scores in self.scores:
            scores.epoch = Score()
