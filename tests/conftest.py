"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from zlib import crc32

import pytest
import torch
from fused import ISAS, forced
from hypothesis import HealthCheck, settings

from fastmlp import _C

# The same examples in every run; a fixture that forces an instruction set holds for all of them.
settings.register_profile(
    "fastmlp",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastmlp")


def pytest_configure() -> None:
    """Tests that run beside others have one thread each, and those that they start, but where a
    test says otherwise: teams that wait for their turn on a core slow each other down tenfold."""
    # A shell's job in the background ignores SIGINT, and so would all that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _C.set_teams_bend(False)  # tests of several threads want them, whatever else runs
    _C.allow_library(False)  # tests of large products want ours
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


# Of a test with more cases, every run takes a spread of so many, and a sweep them all.
MOST_CASES = 16


@pytest.hookimpl(tryfirst=True)  # before those of a sweep are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        several.sort(key=lambda item: crc32(item.nodeid.encode()))  # no pattern of the parameters
        for item in several[MOST_CASES:]:
            item.add_marker(pytest.mark.sweep)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each instruction set in turn, and proves that its kernels ran and no other's did."""
    with forced(request.param):
        yield request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The types that run fused."""
    result: torch.dtype = request.param
    return result


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of threads; the test may set another, it is put back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)
