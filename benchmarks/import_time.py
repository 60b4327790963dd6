"""How much time does ``import fastmlp`` add to ``import torch``?

Fresh interpreters, alternately with and without fastmlp. Two answers: the time of ``import
fastmlp`` where torch is there already, and how much longer the pair takes than torch in another
interpreter, which is noisier.
"""

import random
import subprocess
import sys
from pathlib import Path

import report
from harness import Spread
from suite import common_options, effort

CODE = """
from time import perf_counter
start = perf_counter()
import torch
middle = perf_counter()
{then}
end = perf_counter()
print(middle - start, end - middle)
"""


def child(then: str) -> tuple[float, float]:
    """Seconds of importing torch, and of ``then``, in a new interpreter."""
    here = Path(__file__).resolve().parent  # where no folder named fastmlp hides the installed one
    command = [sys.executable, "-c", CODE.format(then=then)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=here)
    first, second = map(float, done.stdout.split())
    return first, second


def milliseconds(samples: list[float]) -> str:
    low, median, high = (s * 1e3 for s in Spread.of(samples))
    return f"{median:8.1f} ms  (p10–p90 {low:.1f}–{high:.1f})"


def main() -> int:
    options = common_options(__doc__).parse_args()
    rounds = effort(options).rounds
    variants = ["pass", "import fastmlp"]
    samples: dict[str, list[tuple[float, float]]] = {v: [] for v in variants}
    for variant in variants:
        child(variant)  # brings the files into memory
    for _ in range(rounds):
        for variant in random.sample(variants, 2):
            samples[variant].append(child(variant))
    with_it, without = samples["import fastmlp"], samples["pass"]
    difference = [sum(a) - sum(b) for a, b in zip(with_it, without, strict=True)]
    print(report.describe_machine())
    print(f"import torch                       {milliseconds([a for a, _ in without])}")
    print(f"then import fastmlp                {milliseconds([b for _, b in with_it])}")
    print(f"both, less import torch elsewhere  {milliseconds(difference)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
