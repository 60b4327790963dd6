"""The fused network in the form that reference.py takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def mlp(problem: Problem) -> Network:
    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        return functional.mlp(x, weights, biases, problem.hidden, problem.output)

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
