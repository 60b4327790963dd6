"""The fused network in the form that reference.py takes."""

from __future__ import annotations

from reference import Network, Problem, Results, assert_all_within
from torch import Tensor

from fastmlp import functional


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
