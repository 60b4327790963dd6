"""What a measurement becomes: a row, a printed table, a CSV file, a plot."""

from __future__ import annotations

import csv
import importlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Spread
from shapes import Shape


@dataclass(frozen=True)
class Row:
    """One contestant at one task of one shape."""

    shape: Shape
    task: str
    contestant: str
    seconds: Spread  # of one call
    ratio: Spread | None  # the base's time over this one's, paired by round; None without a base
    peak_gflops: float  # of the machine with as many threads, measured beside it; nan if unknown
    rounds: int
    base: str = "eager"  # the contestant that all are compared with
    input: str = "random"  # what it was fed, see inputs.py

    @property
    def gflops(self) -> float:
        return self.shape.flops(self.task) / self.seconds.median / 1e9


def columns(base: str) -> str:
    """What stands above the lines of rows with this base."""
    return (
        f"{'shape':<15} {'network':<19} {'task':<16} {'contestant':<16} {'median µs':>10} "
        f"{'p10–p90':>19} {f'× {base}':>12} {'p10–p90':>11} {'GFLOP/s':>8} {'of peak':>7} "
        f"{'rounds':>6}"
    )


def network_label(shape: Shape) -> str:
    """Like ``784-300-10``, or ``9×100`` where all nine sizes are the same."""
    alike = len(shape.sizes) > 3 and len(set(shape.sizes)) == 1
    return f"{len(shape.sizes)}×{shape.sizes[0]}" if alike else shape.network


def line(row: Row) -> str:
    """The row under :func:`columns`."""
    digits = 1 if row.seconds.median < 1e-3 else 0
    low, median, high = (f"{s * 1e6:.{digits}f}" for s in row.seconds)
    ratio = f"{row.ratio.median:.2f}" if row.ratio else "–"
    ratios = f"{row.ratio.low:.2f}–{row.ratio.high:.2f}" if row.ratio else "–"
    if row.contestant == row.base:  # which of its variants counts
        ratios = "base"
    peak = "–" if math.isnan(row.peak_gflops) else f"{row.gflops / row.peak_gflops:.0%}"
    return (
        f"{row.shape.name:<15} {network_label(row.shape):<19} {row.task:<16} {row.contestant:<16} "
        f"{median:>10} {f'{low}–{high}':>19} {ratio:>12} {ratios:>11} {row.gflops:8.1f} "
        f"{peak:>7} {row.rounds:6}"
    )


def version(module: str) -> str:
    """The module's version, or ``-`` where it is not installed."""
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return "-"


def instruction_set() -> str:
    """The instruction set that fastmlp uses, or ``-`` without fastmlp."""
    try:
        import fastmlp
    except ImportError:
        return "-"
    return str(fastmlp.get_isa())


def cpu_name() -> str:
    """The processor's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [entry.split(":", 1)[1].strip() for entry in lines if entry.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """Where and with what the measurement was taken."""
    return {
        "cpu": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "isa": instruction_set(),
        "fastmlp": version("fastmlp"),
        "torch": str(torch.__version__),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def describe_machine() -> str:
    """:func:`machine` on one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def fields(row: Row) -> dict[str, Any]:
    """The row as flat, plainly named values."""
    ratio = row.ratio or Spread(math.nan, math.nan, math.nan)
    return {
        "group": row.shape.group,
        "shape": row.shape.name,
        "network": row.shape.network,
        "batch": row.shape.batch,
        "input": row.input,
        "task": row.task,
        "contestant": row.contestant,
        **{f"us_{k}": f"{v * 1e6:.4g}" for k, v in row.seconds._asdict().items()},
        "base": row.base,
        **{f"ratio_{k}": f"{v:.4f}" for k, v in ratio._asdict().items()},
        "gflops": f"{row.gflops:.4g}",
        "peak_gflops": f"{row.peak_gflops:.4g}",
        "rounds": row.rounds,
        **machine(),
    }


def write_csv(path: str, rows: Sequence[Row]) -> None:
    """One line a row, with the machine in every line so that files can be joined."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fields(rows[0])))
        writer.writeheader()
        writer.writerows(map(fields, rows))


def write_plot(path: str, rows: Sequence[Row]) -> None:
    """The ratios to the base as bars with their spread, a panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [(r, r.ratio) for r in rows if r.ratio and r.contestant != r.base]
    tasks = list(dict.fromkeys(r.task for r, _ in bars)) or ["nothing to compare"]
    names = list(dict.fromkeys(r.contestant for r, _ in bars))
    shapes = list(dict.fromkeys(r.shape.name for r, _ in bars))
    figure, axes = plt.subplots(
        1, len(tasks), squeeze=False, sharey=True, layout="constrained",
        figsize=(5 * len(tasks), 1.5 + 0.18 * len(shapes) * max(1, len(names))),
    )  # fmt: skip
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, name in enumerate(names):
            mine = [(r, s) for r, s in bars if r.task == task and r.contestant == name]
            axis.barh(
                [shapes.index(r.shape.name) + i / (len(names) + 1) for r, _ in mine],
                [s.median for _, s in mine],
                height=1 / (len(names) + 1),
                xerr=[[s.median - s.low for _, s in mine], [s.high - s.median for _, s in mine]],
                label=name,
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=task, xlabel=f"times faster than {rows[0].base}")
        axis.set_yticks([k + 0.5 - 1 / (len(names) + 1) for k in range(len(shapes))], shapes)
    if len(names) > 1:
        axes[0][0].legend()
    axes[0][0].invert_yaxis()
    figure.suptitle(describe_machine(), fontsize="xx-small")
    figure.savefig(path)
    plt.close(figure)
