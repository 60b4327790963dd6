"""Is there any shape at which fastmlp is slower than eager?

Every shape of the grid, forward and forward+backward. A row whose spread includes 1 is measured
again, four times as long, before it counts as a loss. Exit status 1 if a row is a loss.
"""

import statistics

from report import Row, line
from suite import Suite, network_options

AGAIN = 4  # times the rounds, and the budget


def undecided(row: Row) -> bool:
    """Whether the row's spread leaves open who is faster."""
    return (
        row.contestant != "eager" and row.ratio is not None and row.ratio.low <= 1 <= row.ratio.high
    )


def main() -> int:
    tasks = ("forward", "forward+backward")
    suite = Suite(network_options(__doc__, "grid", tasks, ("fastmlp", "eager")).parse_args())
    status = suite.run(
        again=lambda rows: any(map(undecided, rows)),
        more=suite.effort._replace(
            rounds=AGAIN * suite.effort.rounds, budget_s=AGAIN * suite.effort.budget_s
        ),
    )
    ratios = [(row.ratio, row) for row in suite.rows if row.ratio and row.contestant != "eager"]
    losses = [row for ratio, row in ratios if ratio.median < 1]
    if ratios:
        medians = [ratio.median for ratio, _ in ratios]
        print(
            f"\n{len(ratios)} rows: ratio {min(medians):.2f} at least, "
            f"{statistics.geometric_mean(medians):.2f} in the geometric mean"
        )
    certain = sum(ratio.high < 1 for ratio, _ in ratios)
    print(f"{len(losses)} below 1.0, {certain} of them with their whole spread")
    for row in losses:
        print(line(row))
    return 1 if losses else status


if __name__ == "__main__":
    raise SystemExit(main())
