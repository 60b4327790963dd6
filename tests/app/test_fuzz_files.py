"""fuzz_files.py for a while: a few hundred files in each run, ten thousand in CI."""

from __future__ import annotations

import pytest
from fuzz_files import KINDS, run

pytest.importorskip("PIL")


@pytest.mark.filterwarnings("ignore::Warning")  # Pillow's
@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 300), *(pytest.param(seed, 2500, marks=pytest.mark.sweep) for seed in (2, 3, 4, 5))],
)
def test_damaged_files(seed: int, count: int) -> None:
    made = run(seed, 0, count)
    assert sum(made.values()) == count
    assert len(made) == len(KINDS)
