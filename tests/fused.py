"""The fused network in the form that reference.py takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from reference import Network, Problem, Results, assert_all_within
from torch import Tensor

from fastmlp import _C, functional


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Forces an instruction set, and proves that its kernels ran and no other's did."""
    before = _C.get_isa()
    _C.set_isa(isa)
    _C.record_kernels(True)
    try:
        yield
        ran = set(_C.recorded_kernels())
    finally:
        _C.record_kernels(False)
        _C.set_isa(before)
    assert ran, "no kernel ran: the plain path was taken"
    assert all(name.endswith(f"_{isa}") for name in ran), sorted(ran)


def codes(problem: Problem) -> tuple[list[int], list[float]]:
    """The activations and their slopes, as the operators take them."""
    names = [problem.hidden] * (len(problem.weights) - 1) + [problem.output or "identity"]
    slopes = {"leaky_relu": 0.01, "elu": 1.0}
    return [functional.ACTIVATIONS.index(n) for n in names], [slopes.get(n, 0.0) for n in names]


def tails(problem: Problem) -> tuple[Tensor | None, list[int]]:
    """The noise, and what follows each layer's activation, as the operators take them."""
    layers = len(problem.weights)
    noises, skips = problem.noises or [None] * layers, problem.skips or [False] * layers
    given = [noise.flatten() for noise in noises if noise is not None]
    numbers = [(noise is not None) + 2 * skip for noise, skip in zip(noises, skips, strict=True)]
    return torch.cat(given) if given else None, numbers if any(numbers) else []


def mlp(problem: Problem) -> Network:
    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        if not problem.noises and not problem.skips:
            return functional.mlp(x, weights, biases, problem.hidden, problem.output)
        result: Tensor = torch.ops.fastmlp.mlp(x, weights, biases, *codes(problem), *tails(problem))
        return result

    return network


def check(problem: Problem, what: str = "") -> Results[Tensor]:
    """Forward and backward inside their bounds; gives them back."""
    actual = problem.run(mlp(problem))
    assert_all_within(actual, problem.exact(), what)
    for name, tensor in actual.named().items():
        assert tensor.dtype == problem.x.dtype, name
    return actual


def check_forward(problem: Problem, what: str = "") -> Tensor:
    """Forward alone inside its bound; gives it back."""
    y = mlp(problem)(problem.x, list(problem.weights), list(problem.biases))
    assert_all_within(Results(y), problem.exact(backward=False), what)
    assert y.dtype == problem.x.dtype
    assert y.is_contiguous()
    return y
