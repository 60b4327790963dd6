"""Shapes at the edges of what kernels take at once."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

EDGES = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65]
SIZES = st.one_of(st.sampled_from(EDGES[1:]), st.integers(1, 150))


def pairwise(batch: int) -> list[tuple[int, int, int]]:
    """Sizes of one layer for a batch: over all batches, each two sizes meet in each two places."""
    shift = EDGES.index(batch)
    return [(batch, m, EDGES[(i + shift) % len(EDGES)]) for i, m in enumerate(EDGES)]


# Beyond one block of every kernel in every dimension, and what a drop-in meets most.
LARGE = [
    (50, [784, 300, 10]),
    (1, [784, 300, 10]),
    (1, [64, 64, 64, 4]),
    (257, [300, 520, 130]),
    (4, [2048, 8]),
    (3, [8, 2048]),
    (2048, [9, 7]),
    (300, [1030, 3]),
    (129, [129] * 9),
]

# Options of networks, for what treats each of them in its own way.
NETWORKS: list[dict[str, Any]] = [
    {"bias": False},
    {"hidden": "gelu", "output": "sigmoid"},
    {"dropout": 0.3},
    {"residual": True},
    {"dropout": 0.3, "residual": True, "hidden": "silu", "output": "relu"},
]
