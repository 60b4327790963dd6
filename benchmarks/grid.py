"""Is there any shape at which fastmlp is slower than eager?

Every shape of the grid, forward and forward+backward. A row whose spread includes 1 is measured
again, four times as long, before it counts as a loss. Exit status 1 if a row is a loss.
"""

from suite import Suite, network_options


def main() -> int:
    tasks = ("forward", "forward+backward")
    options = network_options(__doc__, "grid", tasks, ("fastmlp", "eager")).parse_args()
    return Suite(options).search()


if __name__ == "__main__":
    raise SystemExit(main())
