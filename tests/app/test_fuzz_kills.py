"""fuzz_kills.py for a while: a few ends in each run, twenty-five and more in CI."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from processes import run_file


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 4), *(pytest.param(seed, 25, marks=pytest.mark.sweep) for seed in (2, 3))],
)
def test_ended_at_random_moments_it_goes_on_to_the_same(seed: int, count: int) -> None:
    done = run_file(
        Path(__file__).parents[1] / "support" / "fuzz_kills.py", "--seed", seed, "--count", count
    )
    assert done.returncode == 0, done.stderr
    made = ast.literal_eval(done.stdout)
    assert made["SIGKILL"] + made["SIGINT"] == count
    assert made["whole"]
