"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fused import forced
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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=_C.available_isas())
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
