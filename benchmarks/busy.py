"""How fast is fastmlp while other programs keep the cores busy?

Beside 0, 1, 2 and 4 processes that only count, contestants take turns of half a second, each with
the threads asked for and with one: the module, a step by call, steps in a row. Every call is timed.
Then ``TrainStep.fit`` in two processes at once, against one alone.
"""

from __future__ import annotations

import argparse
import copy
import csv
import multiprocessing
import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Queue
from typing import Any, NamedTuple

import fit
import numpy as np
import peers
import report
import torch
import train_step
from harness import Spread, settle
from shapes import Shape
from suite import Suite, add_shapes, common_options, names


class Work(NamedTuple):
    """What is measured.

    Attributes:
        task: of the problem.
        ours: whom the others are compared with.
        suite: what knows the contestants and refuses who is wrong.
        known: the contestants' names.
    """

    task: str
    ours: str
    suite: type[Suite]
    known: Collection[str]


BATCHES = 50  # of a call of fit
WORKS = {
    **{task: Work(task, "fastmlp", Suite, peers.PEERS) for task in ("forward", "forward+backward")},
    **{
        task: Work(task, "train_step", train_step.StepSuite, train_step.CONTESTANTS)
        for task in train_step.OPTIMIZERS
    },
    **{
        f"fit-{task}": Work(task, "fit", fit.FitSuite, fit.CONTESTANTS)
        for task in train_step.OPTIMIZERS
    },
}
RIVALS = ("eager", "eager-fused", "jax", "jax-scan-8", "onnxruntime")
TURN_S = 0.5  # many of the system's time slices
ROUNDS = 6
LEAD_IN_S = 0.05
COLUMNS = (
    f"{'busy':>4} {'shape':<12} {'task':<16} {'contestant':<13} {'threads':>7} {'mean µs':>10} "
    f"{'p10–p90':>17} {'median':>10} {'p99/median':>10} {'ours ×':>7} {'p10–p90':>11}"
)


def count(started: Any) -> None:
    """What a busy program does."""
    started.set()
    n = 0
    while True:
        n += 1


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps so many processes counting."""
    context = multiprocessing.get_context("spawn")
    counting = []
    try:
        for _ in range(processes):
            started = context.Event()
            process = context.Process(target=count, args=(started,), daemon=True)
            process.start()
            counting.append(process)
            started.wait()
        yield
    finally:
        for process in counting:
            process.kill()
            process.join()


class Entry(NamedTuple):
    """A contestant with so many threads."""

    contestant: peers.Contestant
    threads: int


def entries(shape: Shape, work: Work, options: argparse.Namespace) -> tuple[list[Entry], bool]:
    """All that take part in a work, ours first, on one thread next; whether one was refused."""
    mine = copy.copy(options)
    mine.peers = [work.ours, *(name for name in options.peers if name in work.known)]
    mine.base, mine.data_dir, mine.batches = work.ours, None, BATCHES
    suite = work.suite(mine)
    # The others' threads are of their pools, which are made once.
    both, counts = {work.ours, "eager", "eager-fused"}, dict.fromkeys((options.threads, 1))
    found = [
        Entry(contestant, n)
        for contestant in suite.admitted(peers.Problem(shape, work.task))
        for n in (counts if contestant.name in both else (options.threads,))
    ]
    return found, bool(suite.refused)


def turn(entry: Entry, seconds: float) -> np.ndarray[Any, Any]:
    """The time of every call, in seconds, as long as they last."""
    torch.set_num_threads(entry.threads)
    run, clock = entry.contestant.run, time.perf_counter
    settle()
    begun = clock()
    while clock() - begun < min(LEAD_IN_S, seconds):
        run()
    times = [clock()]
    while times[-1] - times[0] < seconds:
        run()
        times.append(clock())
    return np.diff(times) / entry.contestant.repeats


class Measured(NamedTuple):
    """An entry's calls: means of its turns, and of all calls the median and 99th percentile."""

    means: list[float]
    median: float
    p99: float


def measure(several: Sequence[Entry], rounds: int, seconds: float) -> list[Measured]:
    order = random.Random(0)
    samples: list[list[np.ndarray[Any, Any]]] = [[] for _ in several]
    for _ in range(rounds):
        for i in order.sample(range(len(several)), len(several)):
            samples[i].append(turn(several[i], seconds))
    measured = []
    for turns in samples:
        median, p99 = np.percentile(np.concatenate(turns), (50, 99))
        measured.append(Measured([float(t.mean()) for t in turns], float(median), float(p99)))
    return measured


def lines(
    load: int, shape: Shape, task: str, several: Sequence[Entry], found: Sequence[Measured]
) -> Iterator[dict[str, object]]:
    """A row for each; ``ratio``: its time over ours, round by round."""
    ours = found[0].means
    for entry, one in zip(several, found, strict=True):
        ratio = Spread.of([a / b for a, b in zip(one.means, ours, strict=True)])
        mean = Spread.of(one.means)
        yield {
            "busy": load, "shape": shape.name, "task": task, "contestant": entry.contestant.name,
            "threads": entry.threads,
            **{f"us_{k}": v * 1e6 for k, v in mean._asdict().items()},
            "us_call": one.median * 1e6, "p99": one.p99 / one.median,
            **{f"ratio_{k}": v for k, v in ratio._asdict().items()},
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """The row under COLUMNS."""
    mean, ratio = (
        f"{row[f'{key}_low']:.{n}f}–{row[f'{key}_high']:.{n}f}"
        for key, n in (("us", 1), ("ratio", 2))
    )
    return (
        f"{row['busy']:4} {row['shape']:<12} {row['task']:<16} {row['contestant']:<13} "
        f"{row['threads']:7} {row['us_median']:10.1f} {mean:>17} {row['us_call']:10.1f} "
        f"{row['p99']:10.1f} {row['ratio_median']:7.2f} {ratio:>11}"
    )


def trains(shape: Shape, threads: int, seconds: float, ready: Any, told: Queue[float]) -> None:
    """A process that trains by ``fit``; tells how many steps a second it took."""
    torch.set_num_threads(threads)
    one = fit.contestant("fit", BATCHES, peers.Problem(shape, "sgd"), threads)
    one.run()
    ready.wait()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        one.run()
        steps += one.repeats
    told.put(steps / (time.perf_counter() - begun))


def steps_a_second(processes: int, shape: Shape, threads: int, seconds: float) -> float:
    """Of so many trainings together."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(processes), context.Queue()
    training = [
        context.Process(target=trains, args=(shape, threads, seconds, ready, told), daemon=True)
        for _ in range(processes)
    ]
    for process in training:
        process.start()
    rates: list[float] = [told.get(timeout=120 + seconds) for _ in training]
    for process in training:
        process.join()
    return sum(rates)


def parsed() -> argparse.Namespace:
    parser = common_options(__doc__)
    add_shapes(parser, "tiny-1,small-32,lecture-1,lecture-50")
    parser.add_argument("--busy", type=lambda text: [int(n) for n in text.split(",")],
                        default=[0, 1, 2, 4], metavar="N,…", help="default: 0,1,2,4")  # fmt: skip
    for name, known in (("tasks", [*WORKS]), ("peers", RIVALS)):
        parser.add_argument(
            f"--{name}", type=partial(names, known), default=known, metavar="NAME,…",
            help=f"default: {','.join(known)}",
        )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=TURN_S, metavar="S", help="of a turn")
    parser.add_argument("--csv", metavar="FILE", help="write the rows there too")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    seconds = 0.01 if options.quick else options.seconds
    torch.set_num_threads(options.threads)
    print(f"{report.describe_machine()}\n{COLUMNS}", flush=True)
    rows, status = [], 0
    for shape in options.shapes:
        for task in options.tasks:
            several, refused = entries(shape, WORKS[task], options)
            status = max(status, int(refused))
            if not several or several[0].contestant.name != WORKS[task].ours:
                continue  # nobody to compare with; a line has told why
            for load in options.busy:
                with busy(load), torch.set_grad_enabled(task != "forward"):
                    found = measure(several, rounds, seconds)
                for row in lines(load, shape, task, several, found):
                    rows.append(row)
                    print(line(row), flush=True)
    if options.csv and rows:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            all_of = [{**report.machine(), **row} for row in rows]  # threads are the row's
            writer = csv.DictWriter(file, list(all_of[0]))
            writer.writeheader()
            writer.writerows(all_of)
    for shape in options.shapes:
        rates = [
            [steps_a_second(n, shape, options.threads, 4 * seconds) for n in (1, 2)]
            for _ in range(rounds)
        ]
        share = Spread.of([two / one for one, two in rates])
        print(
            f"two trainings at once, {shape.name}: {share.median:.2f} ({share.low:.2f}–"
            f"{share.high:.2f}) of the steps a second that one alone takes"
        )
    return status


if __name__ == "__main__":
    raise SystemExit(main())
