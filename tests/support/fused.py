"""The fused network in the form that reference.py takes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from reference import Network, Problem, Results, assert_all_within
from torch import Tensor

from fastmlp import _C, functional

# Those that a test of each runs: a run with FASTMLP_ISA is one as on a machine of that kind, beside
# another with them all.
ISAS = [os.environ["FASTMLP_ISA"]] if os.environ.get("FASTMLP_ISA") else _C.available_isas()


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


# A tuning with which products of any size are the BLAS library's.
LIBRARY_ALONE = {"library_multiplications": 1, "library_columns": 1, "library_least": 1}


# csrc/network/program.h
LINEAR, ACTIVATION, DROPOUT, NOISE, SKIP = range(5)
PARAMETERS = {
    "leaky_relu": [0.01],
    "elu": [1.0],
    "softplus": [1.0, 20.0],
    "celu": [1.0],
    "relu6": [0.0, 6.0],
}

Encoded: TypeAlias = tuple[list[Tensor], list[int], list[float]]


def encode(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    noises: Sequence[Tensor | None] = (),
    skips: Sequence[bool] = (),
) -> Encoded:
    """Operands, program and constants of a network, as the operators take them."""
    operands: list[Tensor] = []
    program: list[int] = []
    constants: list[float] = []
    without: list[None] = [None] * len(weights)
    layers = zip(
        weights, biases, activations, noises or without, skips or without, strict=True
    )  # fmt: skip
    for weight, bias, name, noise, skip in layers:
        program += [LINEAR, int(bias is not None)]
        operands += [weight] if bias is None else [weight, bias]
        if name != "identity":
            program += [ACTIVATION, functional.ACTIVATIONS.index(name)]
            constants += PARAMETERS.get(name, [])
        if noise is not None:
            program.append(NOISE)
            operands.append(noise.reshape(math.prod(noise.shape[:-1]), noise.size(-1)))
        if skip:
            program.append(SKIP)
    return operands, program, constants


def names(problem: Problem) -> list[str]:
    """Of the activations."""
    return [problem.hidden] * (len(problem.weights) - 1) + [problem.output or "identity"]


def encoded(
    problem: Problem, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Encoded:
    return encode(weights, biases, names(problem), problem.noises, problem.skips)


def arguments(problem: Problem, needed: bool = False) -> tuple[Tensor, list[Tensor], Any, Any]:
    """Of torch.ops.fastmlp.mlp."""
    x = problem.x.detach().requires_grad_(needed)
    weights = [w.detach().requires_grad_(needed) for w in problem.weights]
    biases = [b if b is None else b.detach().requires_grad_(needed) for b in problem.biases]
    return x, *encoded(problem, weights, biases)


def mlp(problem: Problem) -> Network:
    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        if not problem.noises and not problem.skips:
            return functional.mlp(x, weights, biases, problem.hidden, problem.output)
        result: Tensor = torch.ops.fastmlp.mlp(x, *encoded(problem, weights, biases))
        return result

    return network


def check(problem: Problem, what: str = "") -> Results[Tensor]:
    """Forward and backward inside their bounds; gives them back."""
    actual = problem.run(mlp(problem))
    assert_all_within(actual, problem.exact(), what)
    for name, tensor in actual.named().items():
        assert tensor.dtype == problem.x.dtype, name
    return actual


def check_threads(problem: Problem, *counts: int, runs: int = 1) -> None:
    """Forward and backward to the same bits as on one thread; `runs` times with each count."""
    torch.set_num_threads(1)
    expected = problem.run(mlp(problem)).named()
    for count in counts:
        torch.set_num_threads(count)
        for _ in range(runs):
            for name, tensor in problem.run(mlp(problem)).named().items():
                assert torch.equal(tensor, expected[name]), f"{name}, {count} threads"


def check_forward(problem: Problem, what: str = "") -> Tensor:
    """Forward alone inside its bound; gives it back."""
    y = mlp(problem)(problem.x, list(problem.weights), list(problem.biases))
    assert_all_within(Results(y), problem.exact(backward=False), what)
    assert y.dtype == problem.x.dtype
    assert y.is_contiguous()
    return y
