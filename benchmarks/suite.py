"""What the benchmarks of networks share: options, check, measurement, table, CSV, plot."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import check
import inputs
import peers
import report
import torch
from harness import QUICK, Effort, Spread, measure, speedup
from report import Row
from shapes import Shape, select

BASES = ("lecture", "eager", "fastmlp")
OURS = ("train_step", "fastmlp")  # who should nowhere be slower than the base
AGAIN = 4  # times the rounds, and the budget, where a first measurement leaves it open


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
    description: str | None,
    shapes: str,
    tasks: Sequence[str],
    contestants: Sequence[str],
    known: Iterable[str] = peers.PEERS,
) -> argparse.ArgumentParser:
    """:func:`common_options` and those of a benchmark of networks; the arguments are defaults.

    Args:
        known: all contestants there are.
    """
    parser = common_options(description)
    add_shapes(parser, shapes)
    add = partial(parser.add_argument, help="default: %(default)s")
    add("--tasks", type=partial(names, tasks), default=",".join(tasks), metavar="TASK,…")
    add("--peers", type=partial(names, [*known]), default=",".join(contestants), metavar="…")
    parser.add_argument(
        "--base", choices=[*known], metavar="NAME",
        help="whom all are compared with; takes part in any case (default: the first of "
        f"{', '.join(BASES)} that does)",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", metavar="DIR", help="of MNIST, IDX or PNG, for the shapes mnist-*"
    )
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


def undecided(row: Row) -> bool:
    """Whether the row's spread leaves open if one of ours is slower."""
    mine = row.contestant in OURS and row.contestant != row.base
    return mine and row.ratio is not None and row.ratio.low <= 1 <= row.ratio.high


def family(name: str) -> str:
    """The contestant that this is a variant of, by the first word of its name."""
    return name.partition("-")[0]


def fastest(times: Mapping[str, Spread], of: str) -> str | None:
    """The fastest by its median of this contestant and its variants; None: none takes part."""
    variants = [name for name in times if f"{name}-".startswith(f"{of}-")]
    return min(variants, key=lambda name: times[name].median, default=None)


class Suite:
    """Measures shapes one after another.

    Attributes:
        known: the contestants there are, by name.
        base: whom all are compared with, or rather with the fastest of its variants.
        rows: all that was measured.
        refused: a line for each contestant that computed something wrong and so was not timed.
    """

    known: Mapping[str, peers.Make] = peers.PEERS

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.effort = effort(options)
        wanted = options.peers
        self.base = options.base or next((b for b in BASES if b in wanted), wanted[0])
        self.peers = list(dict.fromkeys([*wanted, self.base]))
        self.rows: list[Row] = []
        self.refused: list[str] = []
        torch.set_num_threads(options.threads)

    def fault(self, problem: peers.Problem, results: peers.Results) -> str | None:
        """What is wrong with a contestant's results, on one line; None: nothing."""
        return check.fault(problem, results)

    def admitted(self, problem: peers.Problem) -> list[peers.Contestant]:
        """The contestants whose results are right."""
        admitted = []
        threads = self.options.threads
        for contestant in peers.contestants(self.peers, self.known, problem, threads):
            with torch.set_grad_enabled(problem.task != "forward"):
                try:
                    wrong = self.fault(problem, contestant.results())
                except peers.NotAsNamed as error:
                    wrong = str(error)
            if wrong is None:
                admitted.append(contestant)
            else:
                where = f"{contestant.name}, {problem.task} of {problem.shape.name}"
                self.refused.append(f"refused {where}: {wrong}")
                print(self.refused[-1], flush=True)
        return admitted

    def _measure(
        self, problem: peers.Problem, contestants: list[peers.Contestant], effort: Effort
    ) -> list[Row]:
        shape, task = problem.shape, problem.task
        before = fma_peak(self.options.threads)
        times = measure({c.name: c.run for c in contestants}, effort, grad=task != "forward")
        samples = {c.name: [s / c.repeats for s in times[c.name]] for c in contestants}
        peak = max(before, fma_peak(self.options.threads))
        spreads = {name: Spread.of(mine) for name, mine in samples.items()}
        base = fastest(spreads, self.base) or self.base
        input, rows = inputs.note(shape, problem.data_dir), []
        for name, mine in samples.items():
            ratio = speedup(samples[base], mine) if base in samples else None
            rounds = len(mine)
            rows.append(Row(shape, task, name, spreads[name], ratio, peak, rounds, base, input))
        for row in rows:
            print(report.line(row), flush=True)
        return rows

    def run(
        self, again: Callable[[Row], bool] = lambda row: False, more: Effort | None = None
    ) -> int:
        """Check, time and print every shape and task that the options ask for.

        Args:
            again: whether this row, with those of the same shape and task, has to be measured once
                more, ...
            more: ... with this effort; the new rows then replace them.

        Returns:
            the exit status: 1 when a contestant was refused.
        """
        print(report.describe_machine())
        print(report.columns(self.base), flush=True)
        for shape in self.options.shapes:
            if shape.input != "random":
                print(f"{shape.name}: {inputs.note(shape, self.options.data_dir)}", flush=True)
            for task in self.options.tasks:
                problem = peers.Problem(shape, task, self.options.data_dir)
                contestants = self.admitted(problem)
                if not contestants:
                    continue
                rows = self._measure(problem, contestants, self.effort)
                if any(map(again, rows)):
                    rows = self._measure(problem, contestants, more or self.effort)
                self.rows += rows
        if self.options.csv and self.rows:
            report.write_csv(self.options.csv, self.rows)
        if self.options.plot and self.rows:
            report.write_plot(self.options.plot, self.rows)
        for line in self.refused:
            print(line, file=sys.stderr)
        return 1 if self.refused else 0

    def search(self) -> int:
        """:meth:`run`, with a summary of where one of ours is slower than the base.

        A row whose spread includes 1 is measured again, :data:`AGAIN` times as long, before it
        counts as a loss.

        Returns:
            the exit status: 1 when a row is a loss or a contestant was refused.
        """
        effort = self.effort
        status = self.run(
            undecided,
            effort._replace(rounds=AGAIN * effort.rounds, budget_s=AGAIN * effort.budget_s),
        )
        ours = [row for row in self.rows if row.contestant in OURS and row.contestant != self.base]
        ratios = [(row.ratio, row) for row in ours if row.ratio]
        losses = [row for ratio, row in ratios if ratio.median < 1]
        if ratios:
            medians = [ratio.median for ratio, _ in ratios]
            print(
                f"\n{len(ratios)} rows: ratio to {self.base} {min(medians):.2f} at least, "
                f"{statistics.geometric_mean(medians):.2f} in the geometric mean"
            )
        certain = sum(ratio.high < 1 for ratio, _ in ratios)
        print(f"{len(losses)} below 1.0, {certain} of them with their whole spread")
        for row in losses:
            print(report.line(row))
        return 1 if losses else status
