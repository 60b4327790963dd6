"""The operators' arguments."""

from __future__ import annotations

import torch
from fused import arguments
from reference import Problem
from torch import Tensor

OPS = torch.ops.fastmlp


def backward_arguments(
    problem: Problem, foreseen: list[bool], needs: list[bool]
) -> tuple[object, ...]:
    x, operands, program, constants = arguments(problem)
    y, saved = OPS.mlp_forward(x, operands, program, constants, foreseen)
    return problem.grad_output, x, operands, y, saved, program, constants, foreseen, needs


def lowest_needs(operands: int) -> list[list[bool]]:
    """No needs, and the operands' from each one upwards."""
    return [[], *([i > first for i in range(1 + operands)] for first in range(operands))]


def layout_of(t: Tensor) -> tuple[object, ...]:
    return tuple(t.shape), t.stride(), t.dtype, t.device, t.storage_offset()
