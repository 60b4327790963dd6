"""Accuracy beside torch's own, over a wide sweep; NaN and inf travel as in torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fused import mlp
from numerics import (
    AT_MOST,
    AT_MOST_IN_THE_MEAN,
    POISONS,
    TRAVELLERS,
    Sweep,
    assert_same_kinds,
    places,
)
from reference import Problem, assert_all_within, error

SHAPES = [
    (1, [64, 64, 4]),
    (1, [1500, 40]),
    (4, [300, 30, 10]),
    (50, [784, 300, 10]),
    (32, [64, 256, 256, 8]),
    (17, [33, 65, 129, 31]),
    (600, [40, 50, 20]),
    (4000, [10, 6]),
    (100, [1000, 20]),
    (64, [64] * 9),
    (3, [20, 700, 20]),
]


def conditions(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """The same network with numbers of other kinds."""
    x = problem.x
    yield "normal", problem
    yield "positive", replace(problem, x=x.abs(), grad_output=problem.grad_output.abs())
    yield "far from 0", replace(problem, x=x + 10)
    yield "sparse", replace(problem, x=x.relu() * (torch.rand_like(x) < 0.3))
    yield "wide", replace(problem, x=x * 10 ** torch.empty_like(x).uniform_(-4, 4))
    biases = [None if b is None else b * 1e-6 for b in problem.biases]
    yield "small", replace(problem, x=x * 1e-6, biases=biases)
    yield "large", replace(problem, x=x * 1e4, grad_output=problem.grad_output * 1e4)
    yield "large weights", replace(problem, weights=[30 * w for w in problem.weights])


# One activation of each kind in each run, some more in a sweep: what each adds of its own is seen
# in test_activations.py.
FEW = ["relu", "tanh", "gelu"] + [
    pytest.param(name, marks=pytest.mark.sweep)
    for name in ("identity", "leaky_relu", "elu", "sigmoid", "gelu_tanh", "silu")
]


@pytest.fixture
def _one_thread(threads: int) -> None:
    """Bits do not depend on threads, and thousands of small products take longer on several."""
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("hidden", FEW)
def test_error_beside_torchs(hidden: str) -> None:
    """Each result of each input, norm-wise; and each number inside of its bound.

    Few numbers may be right, ours or torch's, by luck: of small results it is the mean over the
    sweep that counts.
    """
    sweep = Sweep(torch.float32)
    for batch, sizes in SHAPES:
        for kind, problem in conditions(Problem.random(batch, sizes, hidden=hidden)):
            sweep.add(problem, f"{batch} {sizes}, {kind}")
    sweep.check()


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("hidden", FEW)
def test_double_error_beside_torchs(hidden: str) -> None:
    sweep = Sweep(torch.float64)
    shapes = [(17, [33, 65, 31]), (4, [300, 30, 10]), (300, [10, 6]), (1, [20, 30, 30, 5])]
    for batch, sizes in 3 * shapes:
        plain = Problem.random(batch, sizes, torch.float64, hidden=hidden)
        for kind, problem in conditions(plain):
            sweep.add(problem, f"{batch} {sizes}, {kind}")
    sweep.check()


@pytest.mark.usefixtures("_one_thread")
def test_long_sums(isa: str) -> None:
    """Where errors pile up: many terms of one sign, in dW and db, in forward, in dx."""
    # A sum that torch, too, gets nearly exactly says nothing: half an ulp is free.
    least = torch.finfo(torch.float32).eps / 4
    logs = []
    for long, place in itertools.product((300, 512, 784, 1000, 4096), range(3)):
        batch, features, outputs = (long if i == place else 60 for i in range(3))
        problem = Problem.random(batch, [features, outputs])
        problem = replace(
            problem,
            x=problem.x.abs(),
            weights=[w.abs() for w in problem.weights],
            grad_output=problem.grad_output.abs(),
        )
        expected, torchs = problem.exact(), problem.eager().named()
        ours = problem.run(mlp(problem))
        assert_all_within(ours, expected, f"{long} terms")
        for name, exact in expected.named().items():
            off, theirs = error(ours.named()[name], exact), error(torchs[name], exact)
            ratio = max(off, least) / max(theirs, least)
            assert ratio <= AT_MOST, f"{name} of {long} terms: {off:.2e} and torch {theirs:.2e}"
            logs.append(math.log(ratio))
    mean = math.exp(sum(logs) / len(logs))
    assert mean <= AT_MOST_IN_THE_MEAN, f"{mean:.2f} times torch's error"


# NaN and inf


@pytest.mark.parametrize("hidden", TRAVELLERS)
@pytest.mark.parametrize("poison", POISONS)
def test_one_poisoned_number(isa: str, dtype: torch.dtype, hidden: str, poison: float) -> None:
    """Wherever it is, the numbers that depend on it, and they alone, are lost as in torch."""
    # 32 columns: for a vector's remainder, torch's code takes NaN otherwise in elu's derivative.
    sizes = [32, 64, 32]
    for place in places(Problem.random(32, sizes, dtype)):
        for position in (0, -1, 37):
            problem = Problem.random(32, sizes, dtype, hidden=hidden)
            numbers = places(problem)[place].view(-1)
            numbers[position % len(numbers)] = poison
            assert_same_kinds(problem, f"{poison} in {place}[{position}]")


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(("batch", "sizes"), [(1, [5, 3]), (3, [17, 9, 5]), (50, [100, 65, 10])])
def test_zeros_do_not_hide_it(isa: str, poison: float, batch: int, sizes: list[int]) -> None:
    """0 · inf is NaN: zeros in the input, dead units and zero gradients may not be skipped over."""
    for place in places(Problem.random(batch, sizes)):
        problem = Problem.random(batch, sizes)
        problem.x[:, ::2] = 0
        problem.grad_output.zero_()
        for bias in problem.biases:
            if bias is not None:
                bias[::2] = -1000  # dead under relu
        for weight in problem.weights:
            weight[:, 1::2] = 0
        places(problem)[place].view(-1)[0] = poison
        assert_same_kinds(problem, f"{poison} in {place}")


def test_relu_stops_a_gradient_of_nan(isa: str, dtype: torch.dtype) -> None:
    """torch selects, it does not multiply by a mask: a dead unit's NaN gradient becomes 0."""
    problem = Problem.random(33, [8, 40], dtype, output="relu")
    y = problem.eager().y
    problem.grad_output[y == 0] = math.nan
    assert (y == 0).any()
    assert_same_kinds(problem, "")
    weight = problem.run(mlp(problem)).weights[0]
    assert weight is not None
    assert weight.isfinite().all()


def test_overflow(isa: str, dtype: torch.dtype) -> None:
    """Sums beyond the type's range are inf.

    Of one sign: with terms of both, each too large, the order decides between inf and NaN.
    """
    huge = torch.finfo(dtype).max ** 0.6
    for hidden in ("identity", "relu", "tanh", "sigmoid"):
        problem = Problem.random(9, [20, 32, 10], dtype, hidden=hidden)
        problem = replace(
            problem,
            x=torch.full_like(problem.x, huge),
            weights=[torch.full_like(w, huge) for w in problem.weights],
            grad_output=torch.full_like(problem.grad_output, huge),
        )
        assert_same_kinds(problem, hidden)
        if hidden in ("identity", "relu"):
            assert problem.run(mlp(problem)).y.isinf().all()


def test_denormals(isa: str, dtype: torch.dtype) -> None:
    """Gradual underflow, as torch's default has it: no number is flushed to 0 that torch keeps."""
    tiny = torch.finfo(dtype).smallest_normal
    problem = Problem.random(9, [20, 17, 33], dtype, hidden="relu")
    problem = replace(
        problem, x=problem.x * tiny, biases=[None, None], grad_output=problem.grad_output * tiny
    )
    actual = problem.run(mlp(problem))
    assert_all_within(actual, problem.exact())
    for name in ("y", "dx"):
        result = actual.named()[name]
        assert ((result != 0) & (result.abs() < tiny)).any(), name
