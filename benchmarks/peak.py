"""What can this machine's FMA units do at most: float32 and float64, one thread and several?

The figure that "fraction of peak" refers to. Cores that share a clock or a power limit give less
together than one gives alone, and a virtual machine's neighbours take their share: so every
benchmark measures it anew.
"""

import report
import torch
from harness import Spread
from suite import common_options, effort


def main() -> int:
    options = common_options(__doc__).parse_args()
    from fastmlp import _C

    torch.set_num_threads(options.threads)
    chosen = effort(options)
    seconds = 0.002 if options.quick else 0.1
    print(report.describe_machine())
    print(f"{'dtype':<8} {'threads':>7} {'GFLOP/s':>8} {'p10–p90':>14} {'per thread':>11}")
    for dtype in ("float32", "float64"):
        for threads in sorted({1, options.threads}):
            peak = Spread.of([_C.fma_peak(seconds, threads, dtype) for _ in range(chosen.rounds)])
            around = f"{peak.low:.1f}–{peak.high:.1f}"
            rates = f"{peak.median:8.1f} {around:>14} {peak.median / threads:11.1f}"
            print(f"{dtype:<8} {threads:>7} {rates}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
