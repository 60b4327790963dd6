"""Forward against the reference: sizes, layouts, ranks, depths, every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
from edges import EDGES, LARGE, SIZES, pairwise
from fused import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, Layout
from reference import ACTIVATIONS, Problem

from fastmlp import functional


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def test_pairwise_is_pairwise() -> None:
    shapes = [shape for batch in EDGES for shape in pairwise(batch)]
    for i, j in itertools.combinations(range(3), 2):
        assert {(s[i], s[j]) for s in shapes} == set(itertools.product(EDGES, EDGES))


@pytest.mark.parametrize("batch", EDGES[1:])
def test_one_layer(isa: str, dtype: torch.dtype, batch: int) -> None:
    for rows, m, n in pairwise(batch):
        check_forward(Problem.random(rows, [m, n], dtype, output="relu"), f"{rows}×{m}→{n}")


@pytest.mark.parametrize("sizes", [[5, 3], [0, 3], [5, 0], [0, 0], [5, 0, 3], [5, 4, 0], [0, 4, 3]])
@pytest.mark.parametrize("batch", [0, 4, (2, 0, 3)])
def test_nothing_to_do(batch: int | tuple[int, ...], sizes: list[int]) -> None:
    check_forward(Problem.random(batch, sizes))
    check_forward(Problem.random(batch, sizes, bias=False))


@settings(max_examples=60)
@given(
    batch=SIZES,
    sizes=st.lists(SIZES, min_size=2, max_size=6),
    hidden=st.sampled_from(list(ACTIVATIONS)),
    output=st.sampled_from([None, *ACTIVATIONS]),
    bias=st.booleans(),
)
def test_networks(
    isa: str,
    dtype: torch.dtype,
    batch: int,
    sizes: list[int],
    hidden: str,
    output: str | None,
    bias: bool,
) -> None:
    check_forward(Problem.random(batch, sizes, dtype, hidden=hidden, output=output, bias=bias))


@pytest.mark.parametrize(("batch", "sizes"), LARGE)
def test_large(isa: str, batch: int, sizes: list[int]) -> None:
    check_forward(Problem.random(batch, sizes))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 3, 1, 2), (1, 1)])
def test_ranks(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    y = check_forward(Problem.random(shape, [5, 6, 3], dtype))
    assert y.shape == (*shape, 3)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(9,), (2, 3, 4), ()])
def test_input_layouts(
    isa: str, dtype: torch.dtype, layout: Layout, shape: tuple[int, ...]
) -> None:
    plain = Problem.random(shape, [17, 8, 5], dtype)
    problem = Problem(layout(plain.x), plain.weights, plain.biases, plain.grad_output)
    check_forward(problem)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parameter_layouts(isa: str, dtype: torch.dtype, layout: Layout) -> None:
    for batch, sizes in ((1, [17, 19, 5]), (33, [40, 50, 20])):
        plain = Problem.random(batch, sizes, dtype)
        weights = [layout(w) for w in plain.weights]
        biases = [None if b is None else layout(b) for b in plain.biases]
        check_forward(Problem(plain.x, weights, biases, plain.grad_output), f"{batch} {sizes}")


def test_some_biases(isa: str, dtype: torch.dtype) -> None:
    plain = Problem.random(9, [5, 6, 7, 3], dtype)
    for keep in itertools.product([False, True], repeat=3):
        biases = [b if k else None for b, k in zip(plain.biases, keep, strict=True)]
        check_forward(Problem(plain.x, plain.weights, biases, plain.grad_output), str(keep))


def test_no_list_of_biases(isa: str) -> None:
    problem = Problem.random(9, [5, 6, 3], bias=False)
    y = functional.mlp(problem.x, problem.weights)
    assert torch.equal(y, check_forward(problem))


def test_inputs_stay_as_they_are(isa: str, dtype: torch.dtype) -> None:
    problem = Problem.random(33, [65, 40, 17], dtype)
    given = problem.tensors()
    before = [t.clone() for t in given]
    y = check_forward(problem)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(y.data_ptr() != t.data_ptr() for t in given)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear(isa: str, dtype: torch.dtype, activation: str) -> None:
    problem = Problem.random((3, 4), [21, 18], dtype, output=activation)
    y = functional.linear(problem.x, problem.weights[0], problem.biases[0], activation)
    assert torch.equal(y, check_forward(problem))
    problem = Problem.random((3, 4), [21, 18], dtype, output=activation, bias=False)
    y = functional.linear(problem.x, problem.weights[0], activation=activation)
    assert torch.equal(y, check_forward(problem))
