"""What the benchmarks of networks share: options, check, measurement, table, CSV, plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import peers
import report
import torch
from check import fault
from harness import QUICK, Effort, Spread, measure, speedup
from report import Row
from shapes import Shape, select


def common_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark understands: ``--threads``, ``--rounds``, ``--quick``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), metavar="N",
        help="of every contestant (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of each contestant")
    parser.add_argument("--quick", action="store_true", help="see that it runs; times mean little")
    return parser


def effort(options: argparse.Namespace) -> Effort:
    """The effort that ``--quick`` and ``--rounds`` ask for."""
    chosen = QUICK if options.quick else Effort()
    return chosen._replace(rounds=options.rounds) if options.rounds else chosen


def names(known: Sequence[str], text: str) -> list[str]:
    """The comma-separated names in ``text``, all of which must be known."""
    wanted = text.split(",")
    if unknown := set(wanted) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return wanted


def add_shapes(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds ``--shapes``, which becomes a list of :class:`Shape`."""

    def matching(patterns: str) -> list[Shape]:
        try:
            return select(patterns)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.add_argument(
        "--shapes", type=matching, default=default, metavar="PATTERN,…",
        help="names or groups, * and ? match anything (default: %(default)s)",
    )  # fmt: skip


def network_options(
    description: str | None, shapes: str, tasks: Sequence[str], contestants: Sequence[str]
) -> argparse.ArgumentParser:
    """:func:`common_options` and those of a benchmark of networks; the arguments are defaults."""
    parser = common_options(description)
    add_shapes(parser, shapes)
    add = partial(parser.add_argument, help="default: %(default)s")
    add("--tasks", type=partial(names, tasks), default=",".join(tasks), metavar="TASK,…")
    add("--peers", type=partial(names, [*peers.PEERS]), default=",".join(contestants), metavar="…")
    parser.add_argument("--csv", metavar="FILE", help="write the rows there too")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios; needs matplotlib")
    return parser


def fma_peak(threads: int) -> float:
    """GFLOP/s, float32, that the machine's FMA units reach now; nan where that cannot be told.

    The greatest of some short samples: neighbours can only take away from it.
    """
    try:
        from fastmlp import _C
    except ImportError:
        return float("nan")
    return max(_C.fma_peak(0.005, threads, "float32") for _ in range(5))


class Suite:
    """Measures shapes one after another.

    Attributes:
        rows: all that was measured.
        refused: a line for each contestant that computed something wrong and so was not timed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.effort = effort(options)
        self.rows: list[Row] = []
        self.refused: list[str] = []
        torch.set_num_threads(options.threads)

    def _admitted(self, problem: peers.Problem) -> dict[str, Callable[[], object]]:
        """The calls of the contestants whose results are right."""
        calls = {}
        for contestant in peers.contestants(self.options.peers, problem, self.options.threads):
            with torch.set_grad_enabled(problem.task != "forward"):
                wrong = fault(problem, contestant.results())
            if wrong is None:
                calls[contestant.name] = contestant.run
            else:
                where = f"{contestant.name}, {problem.task} of {problem.shape.name}"
                self.refused.append(f"refused {where}: {wrong}")
                print(self.refused[-1], flush=True)
        return calls

    def _measure(
        self, shape: Shape, task: str, calls: dict[str, Callable[[], object]], effort: Effort
    ) -> list[Row]:
        before = fma_peak(self.options.threads)
        samples = measure(calls, effort, grad=task != "forward")
        peak = max(before, fma_peak(self.options.threads))
        eager = samples.get("eager")
        rows = [
            Row(shape, task, name, Spread.of(s), speedup(eager, s) if eager else None, peak, len(s))
            for name, s in samples.items()
        ]
        for row in rows:
            print(report.line(row), flush=True)
        return rows

    def run(
        self, again: Callable[[list[Row]], bool] = lambda rows: False, more: Effort | None = None
    ) -> int:
        """Check, time and print every shape and task that the options ask for.

        Args:
            again: whether these rows of one shape and task have to be measured once more, ...
            more: ... with this effort; the new rows then replace them.

        Returns:
            the exit status: 1 when a contestant was refused.
        """
        print(report.describe_machine())
        print(report.COLUMNS, flush=True)
        for shape in self.options.shapes:
            for task in self.options.tasks:
                calls = self._admitted(peers.Problem(shape, task))
                if not calls:
                    continue
                rows = self._measure(shape, task, calls, self.effort)
                if again(rows):
                    rows = self._measure(shape, task, calls, more or self.effort)
                self.rows += rows
        if self.options.csv and self.rows:
            report.write_csv(self.options.csv, self.rows)
        if self.options.plot and self.rows:
            report.write_plot(self.options.plot, self.rows)
        for line in self.refused:
            print(line, file=sys.stderr)
        return 1 if self.refused else 0
