"""The one table of shapes that every benchmark draws from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

TASKS = ("forward", "forward+backward", "step")

# The sweep crosses BATCHES with WIDTHS; the depth walks through DEPTHS along the way, so that every
# depth meets small and large batches and widths, full vectors and ragged ends.
BATCHES = (1, 3, 8, 17, 50, 128, 512, 1024, 4096)
WIDTHS = (8, 17, 46, 64, 100, 256, 300, 1000, 2048)
DEPTHS = (1, 2, 3, 5, 8)
GRID_FLOP_LIMIT = 45e9  # of one forward+backward: well under half a second on two cores


@dataclass(frozen=True)
class Shape:
    """A multilayer perceptron with ReLU between its layers, and the batch it is fed."""

    group: str
    name: str
    sizes: tuple[int, ...]  # features: input, hidden ..., output
    batch: int  # rows of the input
    input: str = "random"  # what the rows hold: random, mnist, mnist-raw or onehot; see inputs.py
    dropout: float = 0.0  # after each ReLU, while it trains
    residual: bool = False  # whether the hidden layers that can add their input to their output

    @property
    def network(self) -> str:
        return "-".join(map(str, self.sizes))

    @property
    def options(self) -> dict[str, Any]:
        """What FusedMLP is told beside the sizes; nothing that versions without it were not."""
        given = {"dropout": self.dropout, "residual": self.residual}
        return {name: value for name, value in given.items() if value}

    @property
    def skips(self) -> tuple[bool, ...]:
        """Of each layer, whether its input is added to its output."""
        *hidden, _ = (self.residual and m == n for m, n in pairwise(self.sizes))
        return (*hidden, False)

    def flops(self, task: str) -> float:
        """Floating-point operations of the products of one call of ``task``.

        Backward has two products a layer, dW and dX, but no dX for the first layer: the input of a
        network asks for no gradient here. Bias, activation, dropout, loss and update are not
        counted.
        """
        products = [2.0 * self.batch * m * n for m, n in pairwise(self.sizes)]
        return sum(products) if task == "forward" else 3 * sum(products) - products[0]


def _grid() -> Iterator[Shape]:
    for i, batch in enumerate(BATCHES):
        for j, width in enumerate(WIDTHS):
            # The deepest network at or below this pair's depth that stays within the limit.
            for depth in reversed(DEPTHS[: (2 * i + j) % len(DEPTHS) + 1]):
                shape = Shape("grid", f"b{batch}-w{width}-d{depth}", (width,) * (depth + 1), batch)
                if depth == 1 or shape.flops("forward+backward") <= GRID_FLOP_LIMIT:
                    yield shape
                    break


SHAPES = (
    Shape("named", "lecture-50", (784, 300, 10), 50),
    Shape("named", "lecture-1", (784, 300, 10), 1),
    Shape("named", "small-32", (64, 256, 256, 8), 32),
    Shape("named", "tiny-1", (64, 64, 64, 4), 1),
    Shape("named", "large-1024", (1024,) * 5, 1024),
    Shape("small", "micro-8", (4, 32, 16, 2), 8),
    # torch takes several times as long at width 46 as at 45 (pytorch#144633); time should follow
    # work.
    *(Shape("width", f"width-{n}", (784, n, 10), 128) for n in (45, 46)),
    # Where a tile's beginning and end cost as much as its middle; policies and tables.
    Shape("narrow", "narrow-33", (33,) * 9, 1000),
    Shape("narrow", "narrow-46", (45, 46, 46, 3), 1000),
    *(Shape("narrow", f"policy-{n}", (17, 64, 64, 6), n) for n in (64, 256, 2048)),
    Shape("narrow", "table-256", (256, 512, 512, 2), 256),
    Shape("narrow", "table-1000", (100, 300, 300, 1), 1000),
    Shape("narrow", "square-256", (256,) * 5, 256),
    Shape("narrow", "curve-10000", (4, 32, 16, 4), 10000),
    # Inputs of which most is background or zero.
    Shape("sparse", "mnist-50", (784, 300, 10), 50, "mnist"),
    Shape("sparse", "mnist-raw-50", (784, 300, 10), 50, "mnist-raw"),
    Shape("sparse", "onehot-64", (1000, 128, 10), 64, "onehot"),
    # What may follow an activation.
    Shape("blocks", "dropout-100", (784, 1000, 10), 100, dropout=0.5),
    Shape("blocks", "residual-32", (64,) * 9, 32, residual=True),
    *_grid(),
)


def select(patterns: str) -> list[Shape]:
    """The shapes whose name or group matches one of the comma-separated patterns (``*``, ``?``).

    Raises:
        ValueError: when nothing matches.
    """
    wanted = [p.strip() for p in patterns.split(",")]
    found = [s for s in SHAPES if any(fnmatchcase(n, p) for p in wanted for n in (s.name, s.group))]
    if not found:
        known = ", ".join(s.name for s in SHAPES)
        raise ValueError(f"no shape matches {patterns!r}; there are {known}")
    return found
