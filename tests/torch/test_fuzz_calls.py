"""fuzz_calls.py for a while: a few calls in each run, two thousand in CI."""

from __future__ import annotations

import pytest
from fuzz_calls import CALLS, run


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 120), *(pytest.param(seed, 500, marks=pytest.mark.sweep) for seed in (2, 3, 4, 5))],
)
def test_random_calls(seed: int, count: int) -> None:
    made = run(seed, 0, count)
    assert sum(made.values()) == count
    assert len(made) == len(CALLS)
