"""How fast is fastmlp beside the fastest way there is in each of the other libraries?

Three tables, each by the program and with the checks that measure it alone, all relative to ours:
steps in a row (fit.py), a step by call (train_step.py), the module (model.py). Then a line for each
rival and task, of its fastest variant. Rivals: eager, with torch's fused optimizers as well;
torch.compile of the module and of the whole step, with the C++ wrapper as well; JAX by call and
with all steps in one scan; ONNX Runtime; C whose sizes the compiler knows. Exit status 1 if one was
refused.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fit
import report
import train_step
from harness import Spread
from report import Row
from suite import Suite, family, fastest, names, network_options


class Part(NamedTuple):
    """One of the tables.

    Attributes:
        suite: what measures it.
        ours: whom the others are compared with.
        tasks, rivals: all there are.
    """

    title: str
    suite: type[Suite]
    ours: str
    tasks: tuple[str, ...]
    rivals: tuple[str, ...]


STEPS = ("eager", "eager-fused", "compile-step", "compile-step-cpp")
OPTIMIZERS = tuple(train_step.OPTIMIZERS)
PARTS = {
    "fit": Part(
        "steps in a row", fit.FitSuite, "fit", OPTIMIZERS,
        (*STEPS, "jax-scan-1", "jax-scan-8", "c"),
    ),
    "step": Part(
        "a step by call", train_step.StepSuite, "train_step", OPTIMIZERS,
        (*STEPS, "jax", "c"),
    ),
    "model": Part(
        "the module", Suite, "fastmlp", ("forward", "forward+backward"),
        ("eager", "compile", "compile-cpp", "jax", "onnxruntime", "c"),
    ),
}  # fmt: skip
TASKS = tuple(dict.fromkeys(task for part in PARTS.values() for task in part.tasks))
RIVALS = tuple(dict.fromkeys(family(name) for part in PARTS.values() for name in part.rivals))
COLUMNS = (
    f"{'shape':<15} {'task':<16} {'ours':<10} {'median µs':>10}   {'rival':<16} {'median µs':>10} "
    f"{'× ours':>9} {'p10–p90':>13}"
)


def verdicts(rows: Sequence[Row], ours: str) -> Iterator[str]:
    """Of each shape and task, a line for the fastest variant of each rival, under COLUMNS."""
    for shape, task in dict.fromkeys((row.shape, row.task) for row in rows):
        found = {r.contestant: r for r in rows if (r.shape, r.task) == (shape, task)}
        if ours not in found:
            continue
        times = {name: row.seconds for name, row in found.items()}
        for rival in RIVALS:
            name = fastest(times, rival)
            ratio = found[name].ratio if name else None
            if name is None or ratio is None:
                continue
            slower = Spread(1 / ratio.high, 1 / ratio.median, 1 / ratio.low)
            yield (
                f"{shape.name:<15} {task:<16} {ours:<10} {times[ours].median * 1e6:10.2f}   "
                f"{name:<16} {times[name].median * 1e6:10.2f} {slower.median:9.2f} "
                f"{f'{slower.low:.2f}–{slower.high:.2f}':>13}"
            )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    shapes = "tiny-1,micro-8,small-32,lecture-50"
    parser = network_options(__doc__, shapes, TASKS, RIVALS, RIVALS)
    parser.add_argument(
        "--parts", type=lambda text: names([*PARTS], text), default=[*PARTS], metavar="PART,…",
        help=f"default: {','.join(PARTS)}",
    )  # fmt: skip
    fit.add_batches(parser)
    options = parser.parse_args(arguments)
    if options.base or options.plot:
        parser.error("all are compared with ours, and nothing is drawn")
    if not any(set(PARTS[name].tasks) & set(options.tasks) for name in options.parts):
        parser.error(f"none of the tasks {options.tasks} belongs to a part of {options.parts}")
    return options


def main() -> int:
    options = parsed()
    rows: list[Row] = []
    lines: list[str] = []
    status = 0
    for part in (PARTS[name] for name in options.parts):
        mine = copy.copy(options)
        mine.tasks = [task for task in part.tasks if task in options.tasks]
        mine.peers = [part.ours, *(r for r in part.rivals if family(r) in options.peers)]
        mine.base, mine.csv = part.ours, None
        if not mine.tasks:
            continue
        print(f"\n{part.title}")
        suite = part.suite(mine)
        status = max(status, suite.run())
        rows += suite.rows
        lines += [f"{part.title}", *verdicts(suite.rows, part.ours)]
    print(f"\n{report.describe_machine()}\n{COLUMNS}")
    print("\n".join(lines))
    if options.csv and rows:
        report.write_csv(options.csv, rows)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
