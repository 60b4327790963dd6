"""Inputs that are mostly one value, whose products leave the steps out that would add nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from fused import ISAS, forced, mlp
from layouts import contiguous, expanded, offset, padded, strided, transposed
from numerics import POISONS, TRAVELLERS, Sweep, kinds
from reference import ACTIVATIONS, Problem, Results, assert_all_within
from sparse_inputs import every_third_column, every_third_row, rounded, samples, sparse
from torch import Tensor

from fastmlp import _C, FusedLinear, FusedMLP, functional

DTYPES = [torch.float32, torch.float64]
LEAST_ROWS, LEAST_FEATURES, MOST_ELEMENTS = 16, 64, 1 << 22


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    """Unless a test sets more."""
    torch.set_num_threads(1)


def pays(rows: int, outputs: int) -> tuple[bool, bool]:
    """Whether forward and dW of a nearly empty input must be faster for it: by a safe margin.

    What the steps that are left out save has to be more than it costs to look for them.
    """
    return 12 / rows + 25 / outputs < 0.77, 22 / rows + 35 / outputs < 0.8


def leaves_out() -> bool:
    """Whether a product did since recording began."""
    return any(name.startswith("listed_") for name in _C.recorded_kernels())


# Inputs -------------------------------------------------------------------------------------------


def counts(x: Tensor, value: float) -> bool:
    """Whether the sample lets it be left out: a value that is no larger than the others are."""
    sample = x.reshape(-1)[samples(*x.shape)]
    others = sample[sample != value].double()
    return value == 0 or bool(0 < value**2 * len(others) <= others.square().sum())


def sparse_problem(
    rows: int,
    sizes: list[int],
    dtype: torch.dtype = torch.float32,
    density: float = 0.02,
    value: float = 0.0,
    **options: Any,
) -> Problem:
    plain = Problem.random(rows, sizes, dtype, **options)
    x = sparse(rows, sizes[0], density, value, dtype)
    return replace(plain, x=x, background=rounded(value, dtype))


def border(x: Tensor, value: float) -> None:
    """Images of 28 × 28."""
    image = x.view(-1, 28, 28)
    for edge in (image[:, :7], image[:, 21:], image[:, :, :7], image[:, :, 21:]):
        edge.fill_(value)


def one_hot(x: Tensor, value: float) -> None:
    hot = torch.randint(x.shape[1], (len(x),))
    numbers = x.gather(1, hot[:, None])
    x.fill_(value).scatter_(1, hot[:, None], numbers)


def empty_rows(x: Tensor, value: float) -> None:
    x[:67], x[97:] = value, value


def empty_columns(x: Tensor, value: float) -> None:
    x[:, :301], x[:, 497:] = value, value


def dense_row_and_column(x: Tensor, value: float) -> None:
    """Beside next to nothing."""
    row, column = x[7].clone(), x[:, 9].clone()
    x.fill_(value)
    x[7], x[:, 9] = row, column


def a_corner(x: Tensor, value: float) -> None:
    """The last element alone."""
    corner = x[-1, -1].clone()
    x.fill_(value)
    x[-1, -1] = corner


def nothing(x: Tensor, value: float) -> None:
    x.fill_(value)


# What they do to a dense input [120, 784], and whether forward and dW leave steps out.
PATTERNS: dict[str, tuple[Callable[[Tensor, float], None], bool, bool]] = {
    fill.__name__: (fill, forward, gradient)
    for fill, forward, gradient in (
        (every_third_row, False, True),
        (every_third_column, True, False),
        (border, True, True),
        (one_hot, True, True),
        (empty_rows, True, True),
        (empty_columns, True, True),
        (dense_row_and_column, True, True),
        (a_corner, True, True),
        (nothing, True, True),
    )
}


# What is run --------------------------------------------------------------------------------------


def run(problem: Problem) -> tuple[Results[Tensor], bool, bool]:
    """Output and gradients; whether forward and backward left steps out.

    Forward without a graph is the same to the last bit.
    """
    seen = []

    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        outputs = []
        for graph in (False, True):
            _C.record_kernels(True)  # from the start
            with torch.set_grad_enabled(graph):
                outputs.append(mlp(problem)(x, weights, biases))
            seen.append(leaves_out())
        assert torch.equal(*(y.detach().nan_to_num() for y in outputs))
        assert torch.equal(*(kinds(y) for y in outputs))
        _C.record_kernels(True)
        return outputs[1]

    results = problem.run(network)
    assert seen[0] == seen[1]
    return results, seen[0], leaves_out()


def check(
    problem: Problem, forward: bool | None = None, gradient: bool | None = None, what: str = ""
) -> None:
    """Inside of the bounds on every instruction set; steps left out as told, None: either way.

    Where none are left out at all, no background widens the bounds.
    """
    results = {}
    for isa in ISAS:
        with forced(isa):
            results[isa] = run(problem)
    left_out = {isa: ran for isa, (_, *ran) in results.items()}
    if not any(any(ran) for ran in left_out.values()):
        problem = replace(problem, background=0.0)
    expected = problem.exact()
    for isa, (actual, *ran) in results.items():
        assert_all_within(actual, expected, f"{isa}: {what}")
        for name, left, told in zip(("forward", "dW"), ran, (forward, gradient), strict=True):
            assert told is None or left == told, f"{isa}: {what}: {name}"


# Sizes --------------------------------------------------------------------------------------------

BATCHES = [15, 16, 17, 49, 50, 64, 128, 400, 1000]
IN = [64, 65, 783, 784, 1000, 2000]
OUT = [15, 16, 17, 31, 33, 48, 63, 65, 97, 300]
DENSITIES = [0, 0.02, 0.2, 0.5, 0.9]
VALUES = [0.0, -0.4242, 1e-3, 1e3]


def cases(batch: int) -> Iterator[tuple[list[int], float, float, dict[str, Any]]]:
    """Sizes, density, value and the rest of the network, of every width of the input twice."""
    choice = random.Random(batch)
    for i, features in enumerate(2 * IN):
        number = 2 * len(IN) * BATCHES.index(batch) + i
        out = OUT[number % len(OUT)]
        value = VALUES[number // len(OUT) % len(VALUES)]
        density = DENSITIES[(number + number // 20) % len(DENSITIES)]
        hidden, output = choice.choices(list(ACTIVATIONS), k=2)
        deeper = choice.choice([[], [17], [20, 9]])
        bias = choice.random() < 0.7
        options = {"hidden": hidden, "output": output, "bias": bias}
        yield [features, out, *deeper], density, value, options


def test_cases_meet() -> None:
    every = [(batch, *case[:3]) for batch in BATCHES for case in cases(batch)]
    assert {(b, s[0]) for b, s, _, _ in every} == set(product(BATCHES, IN))
    assert {(b, d) for b, _, d, _ in every} == set(product(BATCHES, DENSITIES))
    assert {(s[1], v) for _, s, _, v in every} == set(product(OUT, VALUES))
    assert {(s[1], d) for _, s, d, _ in every} == set(product(OUT, DENSITIES))
    assert {(d, v) for _, _, d, v in every} == set(product(DENSITIES, VALUES))


@pytest.mark.parametrize("batch", BATCHES)
def test_sizes(dtype: torch.dtype, batch: int) -> None:
    slow = dtype == torch.float64  # its reference
    for sizes, density, value, options in list(cases(batch))[:: 2 if slow else 1]:
        if slow:
            sizes = [min(sizes[0], 784), min(sizes[1], 65), *sizes[2:]]
        problem = sparse_problem(batch, sizes, dtype, density, value, **options)
        forward: bool | None = None
        gradient: bool | None = None
        if batch < LEAST_ROWS or density == 0.9 or not counts(problem.x, problem.background):
            forward = gradient = False
        elif density <= 0.02:
            forward, gradient = (sure or None for sure in pays(batch, sizes[1]))
        check(problem, forward, gradient, f"{batch}×{sizes}, {density} of {value}")


@pytest.mark.parametrize("outputs", [31, 33, 47, 48, 49, 64, 65, 100])
def test_outputs(dtype: torch.dtype, outputs: int) -> None:
    """Ragged ends for every width of vectors and of tiles, and at every division by threads."""
    forward, gradient = pays(600, outputs)
    assert forward or outputs < 34
    for value in (0.0, -0.4242):
        problem = sparse_problem(600, [70, outputs], dtype, 0.005, value)
        for count in (1, 3):
            torch.set_num_threads(count)
            check(problem, forward or None, gradient or None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("value", [0.0, -0.4242])
def test_activations(dtype: torch.dtype, activation: str, bias: bool, value: float) -> None:
    """As a single layer's, where its gradient is the given one or made of it, and inside."""
    for batch, sizes in ((100, [100, 97]), (150, [70, 65, 5])):
        problem = sparse_problem(
            batch, sizes, dtype, 0.03, value, hidden=activation, output=activation, bias=bias
        )
        check(problem, True, True, f"{batch}×{sizes}")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("value", [0.0, -0.4242])
def test_patterns(dtype: torch.dtype, pattern: str, value: float) -> None:
    fill, forward, gradient = PATTERNS[pattern]
    single = [] if dtype == torch.float64 else [[784, 150]]  # whose reference is slow
    for sizes in (*single, [784, 150, 10]):
        problem = Problem.random(120, sizes, dtype)
        fill(problem.x, rounded(value, dtype))
        problem = replace(problem, background=rounded(value, dtype))
        counted = counts(problem.x, problem.background)
        check(problem, forward and counted, gradient and counted, pattern)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_of_both_signs(dtype: torch.dtype, value: float) -> None:
    """They are one value."""
    problem = sparse_problem(100, [200, 97, 5], dtype, 0.02, value)
    zeros = problem.x == 0
    problem.x[zeros & (torch.rand(zeros.shape) < 0.4)] = -value
    check(problem, True, True)


def test_many_parts(dtype: torch.dtype) -> None:
    """Sums over more terms than are added up at a time, and blocks of features."""
    for value in (0.0, 1e-3):
        check(sparse_problem(800, [800, 49], dtype, 0.02, value), True, True)
        check(sparse_problem(60, [2500, 113, 5], dtype, 0.02, value), True, True)


# Where nothing is left out ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "features", "outputs", "forward"),
    [(16, 64, 1000, True), (15, 64, 1000, False), (300, 64, 200, True), (300, 63, 200, False)],
)
def test_just_large_enough(
    isa: str, dtype: torch.dtype, rows: int, features: int, outputs: int, forward: bool
) -> None:
    problem = sparse_problem(rows, [features, outputs], dtype, 0.005)
    assert run(problem)[1:] == (forward, forward and rows > 16)


@pytest.mark.parametrize(
    ("rows", "features", "outputs"), [(15, 784, 300), (50, 63, 300), (50, 784, 16), (50, 784, 1)]
)
def test_too_small(dtype: torch.dtype, rows: int, features: int, outputs: int) -> None:
    check(sparse_problem(rows, [features, outputs], dtype), False, False)


@pytest.mark.parametrize(("rows", "fits"), [(4096, True), (4097, False)])
def test_too_large(dtype: torch.dtype, rows: int, fits: bool) -> None:
    features = MOST_ELEMENTS // 4096
    x, weight = sparse(rows, features, 0.01, dtype=dtype), torch.randn(64, features, dtype=dtype)
    weight.requires_grad_()
    with forced(ISAS[0]):
        y = functional.linear(x, weight)
        assert leaves_out() == fits
        _C.record_kernels(True)
        y.backward(torch.ones_like(y))
        assert leaves_out() == fits
    assert weight.grad is not None
    # Sums of a column: 4097 terms, of which a hundredth is not 0.
    bound = 4100 * torch.finfo(dtype).eps * x.abs().sum(0)
    assert ((weight.grad - x.sum(0)).abs() <= bound).all()


MOSTLY = {
    "dense": lambda x: x,
    "40 %": lambda x: x.where(torch.rand(x.shape) < 0.6, 0.0),
    "two values": lambda x: x.sign(),
    "NaN": lambda x: x.where(torch.rand(x.shape) < 0.02, math.nan),
    "inf": lambda x: x.where(torch.rand(x.shape) < 0.02, math.inf),
    "-inf": lambda x: x.where(torch.rand(x.shape) < 0.02, -math.inf),
}


@pytest.mark.parametrize("mostly", MOSTLY)
def test_mostly_something_else(isa: str, dtype: torch.dtype, mostly: str) -> None:
    problem = Problem.random(100, [100, 128], dtype)
    problem = replace(problem, x=MOSTLY[mostly](problem.x).to(dtype))
    actual, *left_out = run(problem)
    assert left_out == [False, False]
    if problem.x.isfinite().all():
        assert_all_within(actual, problem.exact())
    else:
        for name, tensor in problem.eager().named().items():
            assert torch.equal(kinds(actual.named()[name]), kinds(tensor)), name


@pytest.mark.parametrize("value", [1.5, -999.0, 1e3, 1e30])
def test_a_value_larger_than_the_others(dtype: torch.dtype, value: float) -> None:
    """Its rounding would be in every number, in those as well that have nothing to do with it."""
    problem = sparse_problem(100, [300, 128, 10], dtype)
    problem.x[problem.x == 0] = value
    problem.x[7], problem.x[:, 9] = 1e-3, 1e-3
    check(problem, False, False)
    problem.x.fill_(value)
    check(problem, False, False)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_the_sample_is_wrong(dtype: torch.dtype, value: float) -> None:
    """A dense input that looks sparse, and a sparse one that looks dense."""
    problem = Problem.random(100, [200, 128, 5], dtype)
    problem.x.view(-1)[samples(100, 200)[4:]] = value
    check(replace(problem, background=value), False, False, "dense")
    problem = sparse_problem(100, [200, 128, 5], dtype, 0.02, value)
    problem.x.view(-1)[samples(100, 200)] = torch.randn(128, dtype=dtype)
    check(problem, False, False, "sparse")


@pytest.mark.parametrize("others", [0, 1, 25, 70, 127])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_most_of_the_sample(isa: str, value: float, others: int) -> None:
    """The value that most of it has, wherever in it the others are."""
    places = samples(100, 200)
    shuffled = random.Random(others).sample(range(128), 128)
    for order in (list(range(128)), list(range(127, -1, -1)), shuffled):
        x = sparse(100, 200, 0.02, value)
        x.view(-1)[places[order[:others]]] = 10 + torch.randn(others)
        x.view(-1)[places[order[others:]]] = value
        _C.record_kernels(True)
        functional.linear(x, torch.randn(300, 200))
        assert leaves_out() == (others < 64 and (others > 0 or value == 0))


# Layouts ------------------------------------------------------------------------------------------


def between_columns(x: Tensor) -> Tensor:
    memory = x.new_full((len(x), x.shape[1] + 11), math.nan)
    view = memory[:, 5 : 5 + x.shape[1]]
    return view.copy_(x)


def every_second_row(x: Tensor) -> Tensor:
    memory = x.new_full((2 * len(x), x.shape[1]), math.nan)
    view = memory[::2]
    return view.copy_(x)


def overlapping(x: Tensor) -> Tensor:
    """Rows one number apart: other values than the given ones, as sparse."""
    memory = x.flatten()[: sum(x.shape)].clone()
    return memory.as_strided(x.shape, (1, 1))


LAYOUTS = (
    contiguous, offset, padded, strided, transposed, expanded, between_columns, every_second_row,
    overlapping,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("value", [0.0, -0.4242])
def test_layouts(dtype: torch.dtype, layout: Callable[[Tensor], Tensor], value: float) -> None:
    for sizes in ([130, 97], [130, 128, 5]):
        problem = sparse_problem(100, sizes, dtype, 0.02, value)
        turn = LAYOUTS.index(layout)
        others = (contiguous, padded, strided, transposed, offset)
        problem = replace(
            problem,
            x=layout(problem.x),
            weights=[others[turn % 5](w) for w in problem.weights],
            grad_output=others[(turn + 2) % 5](problem.grad_output),
        )
        check(problem, True, True, layout.__name__)


def test_more_dimensions(dtype: torch.dtype) -> None:
    problem = Problem.random((4, 2, 15), [100, 97, 5], dtype)
    problem = replace(problem, x=sparse(120, 100, dtype=dtype).view(4, 2, 15, 100))
    check(problem, True, True)


@pytest.mark.parametrize("value", [0.0, -0.4242])
def test_frozen(isa: str, dtype: torch.dtype, value: float) -> None:
    """The gradients that are wanted are the same bits whatever else is."""
    for sizes in ([100, 97], [100, 128, 5]):
        problem = sparse_problem(100, sizes, dtype, 0.02, value)
        expected = problem.run(mlp(problem)).named()
        for wanted in product([False, True], repeat=3):
            names = ("dx", "dW0", "db0")
            bias = problem.biases[0]
            assert bias is not None
            given = [
                tensor.clone().requires_grad_(want)
                for tensor, want in zip((problem.x, problem.weights[0], bias), wanted, strict=True)
            ]
            last = problem.weights[-1].clone().requires_grad_()  # something is always trained
            weights = [given[1], last] if len(sizes) > 2 else [given[1]]
            biases = [given[2], *problem.biases[1:]]
            y = mlp(problem)(given[0], weights, biases)
            assert torch.equal(y.detach(), expected["y"])
            if not y.requires_grad:
                continue
            _C.record_kernels(True)
            y.backward(problem.grad_output)
            assert leaves_out() == wanted[1]
            for name, tensor, want in zip(names, given, wanted, strict=True):
                assert (tensor.grad is not None) == want
                assert tensor.grad is None or torch.equal(tensor.grad, expected[name]), name


def test_modules(isa: str, dtype: torch.dtype) -> None:
    """FusedMLP and FusedLinear take the same way as the functions."""
    problem = sparse_problem(100, [784, 300, 10], dtype)
    expected = problem.run(mlp(problem)).named()
    model = FusedMLP([784, 300, 10], dtype=dtype)
    linear = FusedLinear(784, 300, activation="relu", dtype=dtype)
    with torch.no_grad():
        for layer, weight, bias in zip(model[::2], problem.weights, problem.biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        linear.load_state_dict(model[0].state_dict())
        _C.record_kernels(True)
        assert torch.equal(model(problem.x), expected["y"])
        assert leaves_out()
        _C.record_kernels(True)
        hidden = linear(problem.x)
        assert leaves_out()
        assert torch.equal(model[2:](hidden), expected["y"])
    model(problem.x).backward(problem.grad_output)
    for layer, index in ((model[0], 0), (model[2], 1)):
        assert torch.equal(layer.weight.grad, expected[f"dW{index}"])
        assert torch.equal(layer.bias.grad, expected[f"db{index}"])


# Accuracy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -0.4242, 1e3])
def test_error_beside_torchs(dtype: torch.dtype, value: float) -> None:
    """Norm-wise; and each number inside of its bound."""
    sweep = Sweep(dtype)
    shapes = [(50, [784, 150, 10]), (400, [200, 65]), (100, [300, 97, 31])]
    if dtype == torch.float64:  # whose reference is slow
        shapes = [(100, [100, 97, 10]), (60, [200, 113])]
    for (batch, sizes), density, hidden in product(shapes, (0.02, 0.15), ("relu", "tanh")):
        problem = sparse_problem(batch, sizes, dtype, density, value, hidden=hidden)
        sweep.add(problem, f"{batch} {sizes} {density}, {value}")
    sweep.check()


# NaN and infinity ---------------------------------------------------------------------------------

BACKGROUNDS = [0.0, -0.4242, 1e3]


def poisoned(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """One number at a time: in x (the background, or another), the gradient, weights, biases."""
    features = problem.x.shape[1]
    empty = (problem.x == problem.background).all(0).nonzero()[:, 0]
    marked = (problem.x != problem.background).nonzero()
    places: dict[str, tuple[str, Any]] = {
        "x where it is the background": ("x", (len(problem.x) // 2, empty[0])),
        "x elsewhere": ("x", tuple(marked[len(marked) // 2])),
        "the last of x": ("x", (-1, -1)),
        "the gradient": ("grad_output", (3, 1)),
        "the gradient's last row": ("grad_output", (-1, -1)),
        "the weight of a feature that is the background": ("weights", (2, empty[-1])),
        "the weight of another": ("weights", (-1, marked[0, 1])),
        "the weight's last": ("weights", (-1, features - 1)),
        "the bias": ("biases", (1,)),
    }
    for what, (field, place) in places.items():
        for poison in POISONS:
            tensor = getattr(problem, field)
            of_layers = isinstance(tensor, list)
            changed = (tensor[0] if of_layers else tensor).clone()
            changed[place] = poison
            value = [changed, *tensor[1:]] if of_layers else changed
            yield f"{poison} in {what}", replace(problem, **{field: value})


def assert_same_kinds(problem: Problem, what: str) -> None:
    """NaN where torch has it, infinities of torch's sign where it has them; steps were left out."""
    actual, *left_out = run(problem)
    assert left_out == [True, True], what
    for name, tensor in problem.eager().named().items():
        assert torch.equal(kinds(actual.named()[name]), kinds(tensor)), f"{what}: {name}"


@pytest.mark.parametrize("value", BACKGROUNDS)
@pytest.mark.parametrize(
    ("batch", "sizes"), [(64, [96, 128]), (100, [100, 97, 16]), (400, [400, 64])], ids=str
)
def test_one_poisoned_number(
    isa: str, dtype: torch.dtype, value: float, batch: int, sizes: list[int]
) -> None:
    """The numbers that depend on it, and they alone, are lost as in torch: 0 · inf is NaN."""
    for hidden in ("relu",) if batch == 400 else ("identity", "tanh"):
        problem = sparse_problem(batch, sizes, dtype, 0.01, value, hidden=hidden)
        for what, changed in poisoned(problem):
            assert_same_kinds(changed, f"{hidden}: {what}")


@pytest.mark.parametrize("hidden", TRAVELLERS)
@pytest.mark.parametrize("value", BACKGROUNDS)
def test_one_poisoned_number_in_activations(isa: str, hidden: str, value: float) -> None:
    problem = sparse_problem(64, [96, 128, 32], torch.float32, 0.01, value, hidden=hidden)
    for what, changed in poisoned(problem):
        assert_same_kinds(changed, what)


@pytest.mark.parametrize("value", BACKGROUNDS)
def test_opposite_infinities(isa: str, dtype: torch.dtype, value: float) -> None:
    """Which only together give NaN."""
    for axis in range(2):
        problem = sparse_problem(100, [900, 97], dtype, 0.01, value, output="relu")
        places = [(2, 5), (2, 700)] if axis else [(2, 5), (31, 5)]
        for infinities in ((math.inf, -math.inf), (math.inf, math.inf)):
            for tensor in (problem.weights[0], problem.x):
                healthy = tensor.clone()
                for place, infinity in zip(places, infinities, strict=True):
                    tensor[place] = infinity
                assert_same_kinds(problem, f"{infinities} at {places}")
                tensor.copy_(healthy)


@pytest.mark.parametrize("value", BACKGROUNDS)
def test_dead_units_and_no_gradient(isa: str, dtype: torch.dtype, value: float) -> None:
    """Zeros beside it do not hide it, nor are they lost by it."""
    problem = sparse_problem(64, [96, 128, 32], dtype, 0.01, value)
    assert problem.biases[0] is not None
    problem.biases[0][::2] = -1e6
    problem.grad_output.zero_()
    for what, changed in poisoned(problem):
        assert_same_kinds(changed, what)


def overflows(dtype: torch.dtype) -> dict[str, Problem]:
    """What is beyond the type's range only on the way: x, weight, gradient of one layer."""
    most = torch.finfo(dtype).max
    kind: dict[str, Any] = {"dtype": dtype}

    def one_layer(x: Tensor, weight: Tensor, gradient: Tensor) -> Problem:
        return Problem(x, [weight], [None], gradient)

    ones = torch.ones(100, 128, **kind)
    small = sparse(100, 800, 0.02, 1e-3, dtype)
    small[:, [5, 700]] = rounded(1e-3, dtype)
    weight = torch.zeros(128, 800, **kind)
    weight[3, 5] = weight[3, 700] = 0.9 * most
    parts = one_layer(small, weight, ones)
    x = sparse(100, 300, 0.02, 1e3, dtype).abs()
    x[7] = 0
    large = one_layer(x, torch.full((128, 300), most / 600, **kind), ones)
    far = torch.full((100, 300), -0.6 * most, **kind)
    far[7] = 0.6 * most
    apart = one_layer(far, torch.full((128, 300), 1e-5, **kind), 1e-5 * ones)
    # Less than a unit in the last place of the greatest number, but more than half of one.
    edge = torch.full((100, 300), -0.99 * most * torch.finfo(dtype).eps, **kind)
    edge[torch.rand(100, 300, generator=torch.Generator().manual_seed(0)) < 0.05] = most / 100
    edge[7] = edge[0].min()
    edge[7, 0] = most
    edges = one_layer(edge, torch.full((128, 300), 1e-3, **kind), 1e-5 * ones)
    gradient = torch.zeros(100, 128, **kind)
    gradient[7] = most / 100
    one_row = one_layer(x, torch.full((128, 300), 1e-3, **kind), gradient)
    return {"parts": parts, "rows of zeros": large, "far apart": apart, "edge": edges,
            "gradient": one_row}  # fmt: skip


@pytest.mark.parametrize("case", overflows(torch.float32))
def test_what_does_not_overflow_in_torch(isa: str, dtype: torch.dtype, case: str) -> None:
    problem = overflows(dtype)[case]
    theirs = problem.eager().named()
    assert theirs["y"][7].isfinite().all()
    ours, *left_out = run(problem)
    assert left_out == [case not in ("far apart", "edge")] * 2
    for name, tensor in ours.named().items():
        assert torch.equal(kinds(tensor), kinds(theirs[name])), name


def test_overflow(isa: str, dtype: torch.dtype) -> None:
    """Sums beyond the type's range are inf where torch's are, of one sign."""
    huge = torch.finfo(dtype).max ** 0.6
    for value in (0.0, huge):
        x = sparse(100, 200, 0.02, value, dtype).abs()
        problem = Problem.random(100, [200, 128], dtype, bias=False)
        weight = torch.full_like(problem.weights[0], huge)
        x = x if value else huge * x
        problem = replace(problem, x=x, weights=[weight], background=value)
        problem.grad_output.fill_(huge)
        assert_same_kinds(problem, f"{value}")


def test_denormals(isa: str, dtype: torch.dtype) -> None:
    """Gradual underflow: no number is flushed to 0 that torch keeps."""
    tiny = torch.finfo(dtype).smallest_normal
    problem = sparse_problem(100, [100, 128], dtype)
    problem = replace(
        problem, x=problem.x * tiny, biases=[None], grad_output=problem.grad_output * tiny
    )
    actual, *left_out = run(problem)
    assert left_out == [True, True]
    assert_all_within(actual, problem.exact())
    assert ((actual.y != 0) & (actual.y.abs() < tiny)).any()


# Threads ------------------------------------------------------------------------------------------

DIVIDED = [
    (50, [784, 300, 10]),
    (60, [300, 113]),
    (128, [2000, 65, 5]),
    (400, [1000, 130]),
    (1000, [100, 65, 20]),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("batch", "sizes"), DIVIDED, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.4242])
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, batch: int, sizes: list[int], value: float
) -> None:
    for density in (0.02, 0.2)[: 2 if batch == 50 else 1]:
        problem = sparse_problem(batch, sizes, dtype, density, value, hidden="gelu", output="tanh")
        expected, *left_out = run(problem)
        assert density > 0.02 or left_out == [True, True]
        for count in (2, 3, 4, 7):
            torch.set_num_threads(count)
            for name, tensor in run(problem)[0].named().items():
                assert torch.equal(tensor, expected.named()[name]), f"{name}, {count} threads"
        torch.set_num_threads(1)


@pytest.mark.parametrize("place", ["weight", "gradient"])
def test_bits_beside_a_poisoned_number_do_not_depend_on_threads(isa: str, place: str) -> None:
    problem = sparse_problem(50, [784, 300], torch.float32, 0.05, -0.4242)
    (problem.weights[0] if place == "weight" else problem.grad_output)[40, 100] = math.inf
    expected = run(problem)[0].named()
    for count in (2, 3, 4, 7):
        torch.set_num_threads(count)
        for name, tensor in run(problem)[0].named().items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=0, atol=0, equal_nan=True,
                msg=lambda text, name=name, count=count: f"{name}, {count} threads: {text}",
            )  # fmt: skip


def test_on_several_python_threads() -> None:
    """What one call finds out about its input is its own."""
    torch.set_num_threads(2)
    problems = [sparse_problem(100, [300, 128, 10], value=value) for value in (0.0, -0.4242)]
    problems += [Problem.random(100, [300, 128, 10]), sparse_problem(60, [784, 200, 10])]
    expected = [p.run(mlp(p)).named() for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            got = pool.map(lambda p: p.run(mlp(p)).named(), problems)
            for actual, wanted in zip(got, expected, strict=True):
                assert all(torch.equal(actual[name], wanted[name]) for name in wanted)
