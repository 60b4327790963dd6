"""How much faster are models as people write them, after ``fastmlp.fuse``?

The forms of tests/models/patterns.py, fused against as they are: forward without gradients in
evaluation mode, and forward with backward in training mode. Exit status 1 if one is slower by its
whole spread. ``--table`` writes what docs/models.md holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import report
import torch
from harness import Spread, measure, speedup
from suite import common_options, effort
from torch import Tensor, nn

import fastmlp

sys.path.append(str(Path(__file__).parent.parent / "tests" / "models"))
patterns = import_module("patterns")

LEAST = 0.98  # what a ratio may fall to
LEAST_ROWS = 2  # in training: a BatchNorm takes no single one


def forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return model(*inputs)


def both(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Forward and backward, all gradients set to None before."""
    for parameter in model.parameters():
        parameter.grad = None
    outputs = model(*inputs)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    wanted = [y for y in outputs if y.requires_grad]
    torch.autograd.backward(wanted, [torch.ones_like(y) for y in wanted])


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("--models", default="*", metavar="PATTERN,…", help="names, with wildcards")
    parser.add_argument("--batches", default="1,256,4096", metavar="N,…", help="rows of the input")
    parser.add_argument("--table", metavar="FILE", help="write a Markdown table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = [int(text) for text in options.batches.split(",")]
    chosen = [
        form
        for form in patterns.ALL
        if any(fnmatchcase(form.name, text) for text in options.models.split(","))
    ]
    print(f"{'form':<50} {'fused':>6}  ratio to the plain model, p10–p90")
    slower = 0
    lines = []
    for form in chosen:
        plain = form.make()
        fused = fastmlp.fuse(plain)
        share = fastmlp.explain(plain, *form.inputs(32)).share
        cells = []
        for task, call in (("forward", forward), ("forward+backward", both)):
            for batch in batches:
                training = task != "forward"
                if training:
                    batch = max(batch, LEAST_ROWS)
                inputs = form.inputs(batch)
                calls: dict[str, Callable[[], object]] = {
                    name: partial(call, model.train(training), inputs)
                    for name, model in (("plain", plain), ("fused", fused))
                }
                times = measure(calls, effort(options), grad=training)
                ratio = speedup(times["plain"], times["fused"])
                slower += ratio.high < LEAST
                mark = " slower" if ratio.high < LEAST else ""
                print(
                    f"{form.name:<50} {share:6.0%}  {task:<17}{batch:6}"
                    f"  {Spread.of(times['plain']).median * 1e6:10.1f} µs"
                    f"  {ratio.median:5.2f}  {ratio.low:.2f}–{ratio.high:.2f}{mark}",
                    flush=True,
                )
                cells.append(f"{ratio.median:.2f}")
        lines.append(f"| {form.name} | {share:.0%} | {' | '.join(cells)} |")
    print(f"\n{report.describe_machine()}")
    if options.table:
        heads = [f"inference {n}" for n in batches]
        heads += [f"training {max(n, LEAST_ROWS)}" for n in batches]
        head = f"| form | fused | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}\n"
        Path(options.table).write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return int(slower > 0)


if __name__ == "__main__":
    raise SystemExit(main())
