"""All gradients against the reference: sizes, layouts, ranks, depths, every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
from edges import EDGES, LARGE, SIZES, pairwise
from fused import check, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, Layout
from reference import ACTIVATIONS, Problem, assert_within

from fastmlp import functional


@pytest.mark.parametrize("batch", EDGES[1:])
def test_one_layer(isa: str, dtype: torch.dtype, batch: int) -> None:
    for rows, m, n in pairwise(batch):
        check(Problem.random(rows, [m, n], dtype, output="tanh"), f"{rows}×{m}→{n}")


@pytest.mark.parametrize("batch", EDGES[1:])
def test_two_layers(isa: str, batch: int) -> None:
    for rows, m, n in pairwise(batch):
        check(Problem.random(rows, [m, n, m]), f"{rows}×{m}→{n}→{m}")


@pytest.mark.parametrize("sizes", [[5, 3], [0, 3], [5, 0], [0, 0], [5, 0, 3], [5, 4, 0], [0, 4, 3]])
@pytest.mark.parametrize("batch", [0, 4, (2, 0, 3)])
def test_nothing_to_do(batch: int | tuple[int, ...], sizes: list[int]) -> None:
    check(Problem.random(batch, sizes))
    check(Problem.random(batch, sizes, bias=False))


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
    check(Problem.random(batch, sizes, dtype, hidden=hidden, output=output, bias=bias))


@pytest.mark.parametrize(("batch", "sizes"), LARGE)
def test_large(isa: str, batch: int, sizes: list[int]) -> None:
    check(Problem.random(batch, sizes))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 3, 1, 2)])
def test_ranks(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(Problem.random(shape, [5, 6, 3], dtype))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(9,), (2, 3, 4), ()])
def test_input_layouts(
    isa: str, dtype: torch.dtype, layout: Layout, shape: tuple[int, ...]
) -> None:
    plain = Problem.random(shape, [17, 8, 5], dtype)
    check(Problem(layout(plain.x), plain.weights, plain.biases, plain.grad_output))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(9,), (2, 3, 4), ()])
@pytest.mark.parametrize("output", [None, "sigmoid"])
def test_layouts_of_the_outputs_gradient(
    isa: str, dtype: torch.dtype, layout: Layout, shape: tuple[int, ...], output: str | None
) -> None:
    plain = Problem.random(shape, [17, 8, 5], dtype)
    grad_output = layout(plain.grad_output)
    check(Problem(plain.x, plain.weights, plain.biases, grad_output, output=output))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parameter_layouts(isa: str, dtype: torch.dtype, layout: Layout) -> None:
    for batch, sizes in ((1, [17, 19, 5]), (33, [40, 50, 20])):
        plain = Problem.random(batch, sizes, dtype)
        weights = [layout(w) for w in plain.weights]
        biases = [None if b is None else layout(b) for b in plain.biases]
        check(Problem(plain.x, weights, biases, plain.grad_output), f"{batch} {sizes}")


def test_some_biases(isa: str, dtype: torch.dtype) -> None:
    plain = Problem.random(9, [5, 6, 7, 3], dtype)
    for keep in itertools.product([False, True], repeat=3):
        biases = [b if k else None for b, k in zip(plain.biases, keep, strict=True)]
        check(Problem(plain.x, plain.weights, biases, plain.grad_output), str(keep))


def test_forward_is_the_same_with_and_without_backward(isa: str, dtype: torch.dtype) -> None:
    for batch, sizes in [(9, [17, 33, 5]), *LARGE]:
        for hidden in ("relu", "gelu"):
            problem = Problem.random(batch, sizes, dtype, hidden=hidden)
            given = (problem.x, list(problem.weights), list(problem.biases))
            with torch.no_grad():
                y = mlp(problem)(*given)
            assert torch.equal(problem.run(mlp(problem)).y, y), (batch, sizes)


@pytest.mark.parametrize("hidden", ["relu", "gelu"])
def test_each_subset_of_gradients(isa: str, hidden: str) -> None:
    """What is asked for comes, and nothing else; the numbers do not depend on what else does."""
    problem = Problem.random(33, [20, 18, 17], hidden=hidden)
    everything = problem.run(mlp(problem))
    expected = everything.named()
    names = ["dx", "dW0", "dW1", "db0", "db1"]
    for needed in itertools.product([False, True], repeat=5):
        if not any(needed):
            continue
        leaves = [
            t.detach().requires_grad_(n) for t, n in zip(problem.tensors(), needed, strict=True)
        ]
        x, w0, w1, b0, b1 = leaves
        y = functional.mlp(x, [w0, w1], [b0, b1], hidden)
        y.backward(problem.grad_output)
        for name, leaf, need in zip(names, leaves, needed, strict=True):
            assert (leaf.grad is not None) == need, (needed, name)
            if leaf.grad is not None:
                assert torch.equal(leaf.grad, expected[name]), (needed, name)


def test_inputs_stay_as_they_are(isa: str, dtype: torch.dtype) -> None:
    problem = Problem.random(33, [65, 40, 17], dtype)
    given = [*problem.tensors(), problem.grad_output]
    before = [t.clone() for t in given]
    results = check(problem).named().values()
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    memory = {t.untyped_storage().data_ptr() for t in results}
    assert len(memory) == len(results)
    assert memory.isdisjoint(t.untyped_storage().data_ptr() for t in given)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear(isa: str, dtype: torch.dtype, activation: str) -> None:
    problem = Problem.random((3, 4), [21, 18], dtype, output=activation)
    expected = problem.run(mlp(problem))
    actual = problem.run(lambda x, w, b: functional.linear(x, w[0], b[0], activation))
    for name, tensor in actual.named().items():
        assert torch.equal(tensor, expected.named()[name]), name


def test_one_tensor_in_two_places(isa: str, dtype: torch.dtype) -> None:
    """Tied weights, and an input that is a weight: the gradients of all places add up."""
    weight = torch.randn(8, 8, dtype=dtype) / 3
    bias = torch.randn(8, dtype=dtype)
    g = torch.randn(8, 8, dtype=dtype)
    problem = Problem(weight, [weight, weight], [bias, bias], g, hidden="tanh")
    parts = problem.exact().named()
    leaf, leaf_bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    functional.mlp(leaf, [leaf, leaf], [leaf_bias, leaf_bias], "tanh").backward(g)
    eps = torch.finfo(dtype).eps
    for total, names in ((leaf.grad, ("dx", "dW0", "dW1")), (leaf_bias.grad, ("db0", "db1"))):
        assert total is not None
        value = sum(parts[n].value for n in names)
        bound = sum(parts[n].bound + 2 * eps * abs(parts[n].value) for n in names)
        off = abs(total.numpy() - value)
        assert (off <= bound).all()


def test_gradient_of_a_sum(isa: str) -> None:
    """y.sum() hands in a gradient that is one number, expanded."""
    problem = Problem.random(33, [20, 18, 17])
    x = problem.x.clone().requires_grad_()
    mlp(problem)(x, list(problem.weights), list(problem.biases)).sum().backward()
    ones = Problem(problem.x, problem.weights, problem.biases, torch.ones(33, 17))
    expected = ones.exact().x
    assert expected is not None
    assert x.grad is not None
    assert_within(x.grad, expected)
