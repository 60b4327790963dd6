"""Each form of a matrix product, at the sizes where one takes over from another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fused import ISAS, check_threads, forced, mlp
from layouts import contiguous, offset, padded, strided, transposed
from numerics import POISONS, kinds, places
from processes import output, run
from reference import ACTIVATIONS, Problem, assert_all_within

from fastmlp import _C, functional


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    """Unless a test sets more: thousands of small products take longer on several."""
    torch.set_num_threads(1)


def forms() -> set[str]:
    """Those that ran since recording began."""
    return {name.split("_")[0] for name in _C.recorded_kernels()}


def check(problem: Problem, what: str = "") -> None:
    """Forward and backward inside of their bounds on every instruction set."""
    expected = problem.exact()
    for isa in ISAS:
        with forced(isa):
            assert_all_within(problem.run(mlp(problem)), expected, f"{isa}: {what}")


def laid_out(problem: Problem, choice: int) -> Problem:
    """The same numbers with strides of their own, between NaNs that must not be read."""
    layouts = (contiguous, padded, strided, transposed, offset)
    x, w, g = (layouts[(choice + shift) % 5] for shift in (0, 2, 4))
    return replace(
        problem,
        x=x(problem.x),
        weights=[w(weight) for weight in problem.weights],
        grad_output=g(problem.grad_output),
    )


# Around the edges of tiles, vectors, blocks and forms

BATCHES = [1, 2, 4, 5, 8, 15, 16, 17, 20, 21, 31, 32, 33, 47, 48, 49, 50, 63, 64, 65, 96, 97, 128]
BATCHES += [257]
IN = [1, 3, 16, 17, 64, 384, 385, 769, 1025]
OUT = [1, 2, 5, 15, 16, 17, 300]


def shapes(batch: int) -> list[tuple[int, int]]:
    """Of a layer for a batch: each width of the input; over all batches, with each output's."""
    shift = BATCHES.index(batch)
    return [(m, OUT[(i + shift) % len(OUT)]) for i, m in enumerate(IN)]


def test_shapes_meet() -> None:
    every = {(batch, m, n) for batch in BATCHES for m, n in shapes(batch)}
    assert {s[:2] for s in every} == set(itertools.product(BATCHES, IN))
    assert {s[1:] for s in every} == set(itertools.product(IN, OUT))


@pytest.mark.parametrize("batch", BATCHES)
def test_edges(dtype: torch.dtype, batch: int) -> None:
    for i, (m, n) in enumerate(shapes(batch)):
        problem = Problem.random(batch, [m, n], dtype, output="relu")
        check(laid_out(problem, BATCHES.index(batch) + i), f"{batch}×{m}→{n}")


# Of a layer: rows, in_features, out_features. Inside of the range of one form, at its edges, and
# where two work together.
FORMS = [
    (1, 784, 300),
    (1, 64, 4),
    (2, 300, 30),
    (4, 1025, 17),
    (32, 384, 300),
    (64, 385, 300),
    (65, 385, 300),
    (33, 1025, 300),
    (300, 40, 300),
    (257, 64, 16),
    (64, 300, 1),
    (257, 64, 1),
    (2000, 7, 1),
]
CACHES = [256 << 10, 512 << 10, 1 << 20, 2 << 20]  # of a core, as processors have them


def expected_forms(batch: int, m: int, n: int, dtype: torch.dtype) -> set[str]:
    """Of forward, with the instruction set and the cache that are set.

    Few rows, or a depth that makes transposing the weight dear, take dot products; where whole
    vectors of rows are turned, and half the cache holds them, that is faster still, but for rows
    beyond them that a tile of dot products holds; everything else is tiled. The constants are
    narrow_product.h's.
    """
    tiles = _C.tiles(str(dtype).removeprefix("torch."))
    width = tiles["width"]
    if n == 1:
        return {"dot"}  # a column is computed as a row
    turned = batch - batch % width if batch % width <= tiles["dot_rows"] else batch
    vectors = -(-turned // width)
    turning = (
        batch >= width
        and batch * m * dtype.itemsize <= _C.second_level_cache_bytes() / 2
        and not (12 * batch >= m and batch * (n + 2 * m) >= n * m)
        and vectors * width / 0.83 + (batch - turned) / 0.5 + 2 < batch / 0.68
    )
    if turning:
        return {"turned", "dot"} if turned < batch else {"turned"}
    return {"dot"} if batch <= tiles["few_rows"][0] or 12 * batch < m else {"gemm"}


@pytest.fixture(params=CACHES, ids=lambda size: f"{size >> 10}K")
def cache(request: pytest.FixtureRequest) -> Iterator[int]:
    """A second-level cache of this size, whatever the machine's."""
    _C.set_second_level_cache_bytes(request.param)
    yield request.param
    _C.set_second_level_cache_bytes(0)


@pytest.mark.parametrize(("batch", "m", "n"), FORMS)
def test_forms(
    isa: str, dtype: torch.dtype, cache: int, threads: int, batch: int, m: int, n: int
) -> None:
    """Forward takes those that its sizes ask for; backward never reads Wᵀ, and needs but one."""
    problem = Problem.random(batch, [m, n], dtype)
    x, weight = problem.x.requires_grad_(), problem.weights[0]
    for count in (1, 2, 8):
        torch.set_num_threads(count)
        _C.record_kernels(True)  # from the start
        y = functional.linear(x, weight)
        assert forms() == expected_forms(batch, m, n, dtype)
        _C.record_kernels(True)
        y.backward(problem.grad_output)
        assert forms() == {"outer" if n == 1 else "gemm"}  # of depth one, or any other


def test_a_rule_that_is_known(isa: str) -> None:
    """What expected_forms() says of sizes for which there is no choice."""
    for batch, m, n, form in ((1, 784, 300, "dot"), (300, 40, 300, "gemm"), (2000, 7, 1, "dot")):
        assert expected_forms(batch, m, n, torch.float32) == {form}
    functional.linear(torch.randn(5, 64), torch.randn(3, 64))


# Several blocks of rows and of depth, panels packed once for all, dW written along its rows: what
# depends on the size of the cache.
CACHED = [
    (33, 1025, 300),
    (64, 385, 300),
    (300, 500, 130),
    (8, 701, 200),
    pytest.param(1100, 400, 200, marks=pytest.mark.sweep),
]


@pytest.mark.parametrize(("batch", "m", "n"), CACHED)
def test_right_with_any_cache(
    cache: int, dtype: torch.dtype, threads: int, batch: int, m: int, n: int
) -> None:
    problem = Problem.random(batch, [m, n], dtype, output="relu")
    expected = problem.exact()
    for isa in ISAS:
        first = None
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            with forced(isa):
                actual = problem.run(mlp(problem))
            first = first or actual
            for name, tensor in actual.named().items():
                assert torch.equal(tensor, first.named()[name]), f"{isa}: {name}, {count} threads"
        assert first is not None
        assert_all_within(first, expected, f"{isa}: {cache} bytes")


def test_the_environment_sets_the_cache() -> None:
    program = "from fastmlp import _C; print(_C.second_level_cache_bytes())"
    assert output(program, FASTMLP_L2_BYTES="262144").split() == ["262144"]
    own = int(output(program, FASTMLP_L2_BYTES=None))
    assert own >= 64 << 10
    assert output(program, FASTMLP_L2_BYTES="").split() == [str(own)]
    wrong = run(program, FASTMLP_L2_BYTES="1 MiB")
    assert "FASTMLP_L2_BYTES: expected a number of bytes, got '1 MiB'" in wrong.stderr


def test_forms_of_the_edges(isa: str, dtype: torch.dtype) -> None:
    """The shapes of test_edges are of all forms; one feature makes an outer product."""
    for batch in BATCHES:
        for m, n in shapes(batch):
            # No constant input: its products have a form of their own (test_sparse_input.py).
            functional.linear(torch.randn(batch, m, dtype=dtype), torch.ones(n, m, dtype=dtype))
    assert forms() == {"dot", "turned", "gemm", "outer"}


# One output


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_output(dtype: torch.dtype, activation: str, bias: bool) -> None:
    """A column's epilogue runs along it; 64 numbers are activated at a time."""
    for batch, m in ((1, 17), (3, 1), (15, 40), (63, 5), (64, 33), (65, 20), (129, 9), (1000, 3)):
        problem = Problem.random(batch, [m, 1], dtype, output=activation, bias=bias)
        check(laid_out(problem, batch), f"{batch}×{m}→1")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_hidden_unit(dtype: torch.dtype, activation: str) -> None:
    for batch in (1, 65, 200):
        problem = Problem.random(batch, [20, 1, 17, 1], dtype, hidden=activation, output="tanh")
        check(problem, f"{batch}")


# Forms of the outer product


@pytest.mark.parametrize("batch", [1, 3, 8, 15, 16, 17])
def test_large_gradient_of_a_small_batch(batch: int) -> None:
    """dW of up to 16 rows, larger than the half of any usual second-level cache."""
    check(Problem.random(batch, [1101, 899]))


def test_large_gradient_of_a_small_batch_double() -> None:
    check(Problem.random(5, [701, 603], torch.float64))


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_large_output_of_one_input(activation: str) -> None:
    """The forward form of the same, whose epilogue follows each tile."""
    for bias in (True, False):
        check(Problem.random(701, [1, 803], output=activation, bias=bias))


@pytest.mark.parametrize("batch", [7, 8, 9, 17, 50])
@pytest.mark.parametrize("features", [512, 1024, 2048])
def test_rows_in_the_same_places_of_the_cache(batch: int, features: int) -> None:
    """Gradients of inputs whose weights' rows lie a multiple of 2 KiB apart, packed in groups.

    400 outputs are two blocks of depth, each no multiple of what is packed at a time.
    """
    check(Problem.random(batch, [features, 400 if features == 512 else 37]))


def test_rows_in_the_same_places_of_the_cache_double() -> None:
    check(Problem.random(9, [512, 70], torch.float64))
    check(Problem.random(9, [523, 70], torch.float64))


@pytest.mark.parametrize("hidden", ["relu", "gelu"])
def test_epilogues_of_the_groups(hidden: str) -> None:
    """dx becomes dz of the layer below, tile by tile."""
    check(Problem.random(37, [40, 512, 70, 30], hidden=hidden))


def test_packed_on_both_sides() -> None:
    """dz, too, is copied where its rows lie far apart."""
    check(Problem.random(50, [1024, 800]))


# NaN and infinity

POISONED = {
    "row": (1, [100, 40, 300]),
    "dot": (4, [100, 40, 300]),
    "turned": (32, [96, 300, 97]),
    "turned and dot": (33, [96, 300, 97]),
    "gemm": (257, [20, 40, 17]),
    "column": (70, [33, 65, 1]),
    "hidden column": (70, [33, 1, 5]),
    "groups": (20, [20, 512, 20]),
    "by rows": (8, [701, 603]),
}


@pytest.mark.parametrize(("batch", "sizes"), POISONED.values(), ids=POISONED)
def test_one_poisoned_number(batch: int, sizes: list[int]) -> None:
    """The numbers that depend on it, and they alone, are lost as in torch."""
    problem = Problem.random(batch, sizes)
    for i, (place, tensor) in enumerate(places(problem).items()):
        numbers = tensor.view(-1)
        for j, poison in enumerate(POISONS):
            position = (0, 37 % len(numbers), len(numbers) - 1)[(i + j) % 3]
            healthy = numbers[position].item()
            numbers[position] = poison
            lost = {name: kinds(t) for name, t in problem.eager().named().items()}
            for isa in ISAS:
                with forced(isa):
                    ours = problem.run(mlp(problem)).named()
                for name, result in ours.items():
                    what = f"{isa}: {name}, {poison} in {place}[{position}]"
                    assert torch.equal(kinds(result), lost[name]), what
            numbers[position] = healthy


# Threads

DIVIDED = [
    *((batch, [m, n]) for batch, m, n in FORMS),
    (16, [1025, 300, 16]),
    (50, [784, 300, 10]),
    (97, [769, 300, 1]),
    (128, [384, 300, 300]),
    (3000, [30, 1]),
    (8, [1101, 899]),
    (16, [603, 701]),
    (701, [1, 803]),
    (17, [2048, 300]),
    (50, [512, 1024, 512]),
    (257, [512, 17]),
]


@pytest.mark.parametrize(("batch", "sizes"), DIVIDED)
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, threads: int, batch: int, sizes: list[int]
) -> None:
    problem = Problem.random(batch, sizes, dtype, hidden="gelu", output="sigmoid")
    check_threads(problem, 2, 3, 4)


def test_rows_do_not_depend_on_their_place(isa: str, dtype: torch.dtype) -> None:
    """Equal rows of the input give equal rows of the output where one form holds them all."""
    for batch, m, n in FORMS:
        if len(expected_forms(batch, m, n, dtype)) > 1:
            continue
        x, weight = torch.randn(m, dtype=dtype), torch.randn(n, m, dtype=dtype) / math.sqrt(m)
        y = functional.linear(x.expand(batch, m), weight, None, "tanh")
        assert torch.equal(y, y[:1].expand_as(y)), (batch, m, n)
