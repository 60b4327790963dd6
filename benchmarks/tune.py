"""Would other numbers than those of csrc/cpu/isa/tuning*.h be better on this machine?

Each number is multiplied by some factors, one at a time, and each shape and task measured with the
present numbers and all others in turns. ``FASTMLP_ISA`` and ``FASTMLP_L2_BYTES`` stand for other
machines. The shapes of the tiles are compiled: after a change of those, compare.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial

import peers
import report
import torch
from harness import Spread, measure, speedup
from suite import add_shapes, common_options, effort, names

TASKS = ("forward", "forward+backward")
FACTORS = (0.5, 2.0)
NOW = "now"


def factors(text: str) -> list[float]:
    """Comma-separated positive numbers."""
    found = [float(one) for one in text.split(",")]
    if not all(0 < factor < math.inf for factor in found):
        raise argparse.ArgumentTypeError(f"{text}: expected positive numbers")
    return found


Tuning = dict[str, float]


def candidates(now: Tuning, numbers: list[str], by: list[float]) -> dict[str, Tuning]:
    """Tunings in which one of these numbers is another, by what it is: "name = value"."""
    found = {}
    for name in numbers:
        for factor in by:
            value = now[name] * factor
            if now[name].is_integer():  # which infinity is not
                value = float(max(1, round(value)))
            if value != now[name]:
                found[f"{name} = {value:g}"] = {name: value}
    return found


def main() -> int:
    from fastmlp import _C

    now = _C.get_tuning()
    parser = common_options(__doc__)
    add_shapes(parser, "named,narrow")
    parser.add_argument(
        "--tasks", type=partial(names, TASKS), default=",".join(TASKS), metavar="TASK,…"
    )
    parser.add_argument(
        "--numbers", type=partial(names, sorted(now)), default=",".join(sorted(now)), metavar="…",
        help="default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--factors", type=factors, default=",".join(map(str, FACTORS)), metavar="…",
        help="default: %(default)s",
    )  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    others = candidates(now, options.numbers, options.factors)
    for tuning in others.values():
        try:
            _C.set_tuning(tuning)
        except ValueError as error:
            parser.error(str(error))
    _C.set_tuning({})
    present = NOW

    def run(one: str, call: Callable[[], object]) -> None:
        nonlocal present
        if present != one:
            _C.set_tuning(others.get(one, {}))
            present = one
        call()

    print(report.describe_machine())
    ratios: dict[str, list[tuple[float, Spread, str]]] = {one: [] for one in others}
    for shape in options.shapes:
        for task in options.tasks:
            contestant = peers.fastmlp(peers.Problem(shape, task), options.threads)
            calls: dict[str, Callable[[], object]] = {
                one: partial(run, one, contestant.run) for one in (NOW, *others)
            }
            times = measure(calls, effort(options), grad=task != "forward")
            for one in others:
                spread = speedup(times[NOW], times[one])
                ratios[one].append((spread.median, spread, f"{shape.name} {task}"))
            print(f"{shape.name} {task}: {Spread.of(times[NOW]).median * 1e6:.1f} µs", flush=True)
    _C.set_tuning({})

    print(f"\n{'number':<36} {'now/this':>9}   the least row, and the greatest (p10–p90)")
    for one, rows in sorted(ratios.items()):
        mean = statistics.geometric_mean(median for median, _, _ in rows)
        ends = "   ".join(
            f"{median:.2f} ({spread.low:.2f}–{spread.high:.2f}) {where}"
            for median, spread, where in (min(rows), max(rows))
        )
        better = any(spread.low > 1 for _, spread, _ in rows)
        worse = any(spread.high < 1 for _, spread, _ in rows)
        print(f"{one:<36} {mean:9.3f} {'*' if better and not worse else ' '} {ends}")
    print("* a row is faster with its whole spread, and none is slower: to be measured again")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
