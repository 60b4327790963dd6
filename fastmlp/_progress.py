"""What long work tells on its way: scores of a training's batches, and a progress bar."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Score:
    """Sums over rows, and their means. Of some, the prediction does not count: those of the class
    that the loss ignores."""

    losses: float = 0.0
    wrong: int = 0
    rows: int = 0
    ignored: int = 0

    def add(
        self, losses: Sequence[float], correct: Sequence[int], rows: int, batch_size: int
    ) -> None:
        """Adds batches: the mean loss and the right predictions of each; the last one may have
        fewer rows.

        One batch after the other, so that the sums are the same however the batches come divided.
        """
        total = self.losses
        for loss in losses[:-1]:  # a step of a small network takes as long as ten such additions
            total += loss * batch_size
        for loss in losses[-1:]:
            total += loss * (rows - batch_size * (len(losses) - 1))
        self.losses = total
        self.wrong += rows - sum(correct)
        self.rows += rows

    def ignore(self, rows: int) -> None:
        """Takes back rows that were added as wrong ones."""
        self.wrong -= rows
        self.ignored += rows

    @property
    def loss(self) -> float:
        return self.losses / self.rows

    @property
    def error(self) -> float:
        """Of the predictions that count, in percent; NaN where none does."""
        return self._wrong(100)

    @property
    def wrong_fraction(self) -> float:
        """The same of 1."""
        return self._wrong(1)

    def _wrong(self, whole: int) -> float:
        counted = self.rows - self.ignored
        return whole * self.wrong / counted if counted else math.nan


def _in_notebook() -> bool:
    """Whether IPython's kernel for notebooks runs this: its stderr is no terminal."""
    if "ipykernel" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Bar(contextlib.AbstractContextManager["Bar"]):
    """A progress bar on stderr, and lines on stdout above it.

    Args:
        total: units in all.
        wanted: whether there is a bar; None: in a notebook, and where stderr is a terminal, if tqdm
            is installed.
        done: units that were done before.
        leave: whether the bar stays when it is closed.
        unit: what is counted.
        delay: seconds before the bar is shown: what is done by then needs none.
    """

    def __init__(
        self,
        total: int,
        wanted: bool | None = None,
        *,
        done: int = 0,
        leave: bool = True,
        unit: str = "batch",
        delay: float = 0,
    ) -> None:
        self.bar: Any = None
        notebook = _in_notebook()
        if wanted or (wanted is None and (notebook or sys.stderr.isatty())):
            try:
                if notebook:
                    from tqdm.auto import tqdm
                else:
                    from tqdm import tqdm
            except ImportError:
                if wanted:
                    raise ImportError(
                        "fastmlp.TrainStep.fit: progress=True needs tqdm: pip install tqdm"
                    ) from None
            else:
                self.bar = tqdm(
                    total=total, initial=done, leave=leave, unit=unit, delay=delay,
                    dynamic_ncols=True,
                )  # fmt: skip

    def advance(self, units: int, loss: float | None = None) -> None:
        if self.bar is not None:
            if loss is not None:
                self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(units)

    def line(self, text: str) -> None:
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
