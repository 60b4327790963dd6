"""Large products, which are those of torch's BLAS library."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from edges import NETWORKS
from fused import ISAS, LIBRARY_ALONE, check, check_threads, mlp
from layouts import LAYOUTS, Layout
from reference import Problem
from torch import nn
from twins import EXACT, LOSSES, OPTIMIZERS, Twins

from fastmlp import _C, FusedMLP, TrainStep

SIZES = [17, 33, 33, 6]


@pytest.fixture(autouse=True)
def _allowed() -> Iterator[None]:
    _C.allow_library(True)
    yield
    _C.allow_library(False)
    _C.set_tuning({})


@pytest.fixture
def smallest(isa: str) -> str:
    """Products of any size are the library's."""
    _C.set_tuning(LIBRARY_ALONE)
    return isa


def products(dtype: torch.dtype = torch.float32) -> set[str]:
    """Rows and columns of the library's products since the record began."""
    kind = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    found = [name.split("_") for name in _C.recorded_kernels() if name.startswith("library_")]
    assert all(name[1] == kind for name in found)
    return {name[2] for name in found}


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_every_product(smallest: str, dtype: torch.dtype, batch: int) -> None:
    check(Problem.random(batch, SIZES, dtype, output="tanh"), str(batch))
    # Forward, dx and dW.
    shapes = {f"{batch}x33", f"{batch}x6", f"{batch}x17", "33x17", "33x33", "6x33"}
    assert products(dtype) == shapes


def test_no_rows(smallest: str) -> None:
    check(Problem.random(0, SIZES))


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_networks(smallest: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(Problem.random(50, [33, 33, 33, 5], dtype, **options))
    assert products(dtype)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["x", "grad_output"])
def test_layouts(smallest: str, layout: Layout, which: str) -> None:
    plain = Problem.random((2, 25), [17, 16, 5])
    check(replace(plain, **{which: layout(getattr(plain, which))}))
    assert products()


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_weights_with_a_stride(smallest: str, columns: int) -> None:
    plain = Problem.random(20, SIZES)
    weights = [
        torch.cat([w, w.new_ones(len(w), columns)], 1)[:, : w.size(1)] for w in plain.weights
    ]
    check(replace(plain, weights=weights))
    assert products()


@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_a_step_of_nan(smallest: str, lr: float) -> None:
    """As in torch, where 0 · NaN is NaN: a library does not look at what it multiplies by zero."""
    model = FusedMLP([8, 4])
    twin = copy.deepcopy(model.as_sequential())
    x, y = torch.ones(6, 8), torch.zeros(6, 4)
    x[1, 2] = torch.nan
    TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=lr))(x, y)
    optimizer = torch.optim.SGD(twin.parameters(), lr=lr)
    nn.MSELoss()(twin(x), y).backward()
    optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert products()


def test_rows_in_one_place_are_ours(smallest: str) -> None:
    """Which the library would copy."""
    problem = Problem.random(12, [16, 8])
    check(replace(problem, x=problem.x[:1].expand(12, 16)))
    assert products() == {"12x16"}  # dx, which does not read it


def test_a_quota_keeps_it_away(smallest: str, threads: int) -> None:
    """It would start as many threads as torch has been told."""
    torch.set_num_threads(4)
    _C.set_teams_bend(True)
    _C.set_cores(1)
    try:
        check(Problem.random(20, SIZES))
        assert not products()
    finally:
        _C.set_cores(1 << 30)
        _C.set_teams_bend(False)
    check(Problem.random(20, SIZES))
    assert products()


def test_another_floating_point_state_keeps_it_away(smallest: str) -> None:
    """Its threads have their own."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has none")
    try:
        check(Problem.random(20, SIZES))
        assert not products()
    finally:
        torch.set_flush_denormal(False)


def test_no_finite_numbers(smallest: str) -> None:
    """NaN and inf as in torch."""
    model = FusedMLP([8, 8, 4])
    x = torch.ones(6, 8)
    x[1, 2], x[3, 4] = torch.nan, torch.inf
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.as_sequential()(x), equal_nan=True)
    assert products()


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("sizes", [[20, 33, 33, 6], [80, 33, 6]], ids=str)
def test_steps(
    smallest: str, sizes: list[int], optimizer: str, max_grad_norm: float | None
) -> None:
    """The second network looks at its input, which may be sparse."""
    model = FusedMLP(sizes, activation="gelu", dtype=torch.float64)
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], model=model, max_grad_norm=max_grad_norm)
    for rows in (50, 16, 1000):
        twins.check(2, EXACT, rows)
    assert products(torch.float64)


def test_a_sparse_input(smallest: str, threads: int) -> None:
    """Is still passed over, in a network whose other layers are the library's."""
    torch.set_num_threads(2)
    problem = Problem.random(64, [300, 64, 64, 5])
    x = torch.where(torch.rand(64, 300) < 0.98, 0.0, problem.x)
    check(replace(problem, x=x))
    assert "64x5" in products()
    assert any(name.startswith("listed") for name in _C.recorded_kernels())


def largest(isa: str) -> list[int]:
    """Sizes of a layer and its batch that are the library's on this instruction set."""
    if math.isinf(_C.get_tuning()["library_multiplications"]):
        # The generic kernels stand in for those of another machine.
        assert isa == "generic"
        assert _C.available_isas() != ["generic"]
        _C.set_tuning({"library_multiplications": 1e5})
    tuning = _C.get_tuning()
    side = int(max(tuning["library_least"], tuning["library_columns"]))
    batch = int(tuning["library_multiplications"] // side**2) + 1
    return [side, max(batch, side)]


def test_large_products(isa: str) -> None:
    side, batch = largest(isa)
    check(Problem.random(batch, [side, side]))
    assert products()


def test_deterministic_algorithms_are_ours(isa: str, threads: int) -> None:
    """And their bits do not depend on the threads."""
    side, batch = largest(isa)
    problem = Problem.random(batch, [side, side, 3])
    torch.use_deterministic_algorithms(True)
    try:
        check_threads(problem, 2, 3)
        assert not products()
        model = FusedMLP([side, side, 3])
        step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        step(problem.x, torch.zeros(batch, 3))
        assert not products()
    finally:
        torch.use_deterministic_algorithms(False)
    problem.run(mlp(problem))
    assert products()


def test_fit(smallest: str) -> None:
    model, other = FusedMLP([9, 20, 4]), FusedMLP([9, 20, 4])
    other.load_state_dict(model.state_dict())
    x, target = torch.randn(64, 9), torch.randint(0, 4, (64,))
    for one, on in ((model, True), (other, False)):
        _C.allow_library(on)
        step = TrainStep(one, nn.CrossEntropyLoss(), torch.optim.SGD(one.parameters(), lr=0.1))
        step.fit((x, target), 32, epochs=2, shuffle=False)
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, another)
    assert products()


@pytest.mark.parametrize("name", ["nothing", "chain"])
def test_tunings(name: str) -> None:
    before = _C.get_tuning()
    if name == "nothing":
        with pytest.raises(ValueError, match="nothing is tuned by 'nothing'"):
            _C.set_tuning({name: 1})
    else:
        for wrong, message in ((-1, "a positive number"), (0.5, "whole"), (math.inf, "whole")):
            with pytest.raises(ValueError, match=f"{message}.*for 'chain', got {wrong}"):
                _C.set_tuning({name: wrong})
        assert _C.get_tuning() == before
        _C.set_tuning({name: 64})
        assert _C.get_tuning() == before | {name: 64}
    _C.set_isa(ISAS[0])
    assert _C.get_tuning() == before
