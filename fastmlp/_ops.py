"""The extension module, and what torch.compile has to know of its operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmlp import _extension
from fastmlp._cores import granted_cores

if TYPE_CHECKING:
    from fastmlp import _C as _C
else:
    _C = _extension.load()
# Read FASTMLP_ISA and FASTMLP_L2_BYTES: what they should not be is an error here, at import.
_C.get_isa()
_C.second_level_cache_bytes()
# More threads would be stopped for the rest of each period.
if math.isfinite(_granted := granted_cores()):
    _C.set_cores(math.ceil(_granted))


def get_isa() -> str:
    """The instruction set whose kernels run: "generic", "avx2" or "avx512".

    It is the best one that the processor and the operating system support, unless the environment
    variable `FASTMLP_ISA` forced another when fastmlp was imported.
    """
    return _C.get_isa()


def empty_cache() -> None:
    """Gives memory that waits to be used again back to the system.

    Blocks of 16 KiB and more that freed gradients, activations and scratch buffers leave are kept
    for the next ones, because memory fresh from the system takes longer to get than a wide layer's
    gradients take to compute. This frees them, after an unusually large batch for one; tensors in
    use stay as they are.
    """
    _C.empty_cache()


def _rows(input: Tensor) -> int | torch.SymInt:
    rows: int | torch.SymInt = 1
    for size in input.shape[:-1]:
        rows *= size
    return rows


def _output(
    input: Tensor, operands: Sequence[Tensor], program: Sequence[int], constants: Sequence[float]
) -> Tensor:
    weights = [operands[place] for place in _C.weights(list(program), list(constants))]
    features = input.size(-1)
    for weight in weights:
        torch._check(
            weight.size(-1) == features,  # of a norm, all that it has
            lambda: (
                f"fastmlp: mat1 and mat2 shapes cannot be multiplied: got an input of shape "
                f"{tuple(input.shape)} and weights of shapes {[tuple(w.shape) for w in weights]}"
            ),
        )
        features = weight.size(0)
    return input.new_empty((*input.shape[:-1], features))


@torch.library.register_fake("fastmlp::mlp")
def _mlp_fake(
    input: Tensor, operands: Sequence[Tensor], program: Sequence[int], constants: Sequence[float]
) -> Tensor:
    return _output(input, operands, program, constants)


@torch.library.register_fake("fastmlp::mlp_forward")
def _mlp_forward_fake(
    input: Tensor,
    operands: Sequence[Tensor],
    program: Sequence[int],
    constants: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    features: int | torch.SymInt = 0
    for place in _C.saved_weights(list(program), list(constants), list(needs)):
        features += operands[place].size(0)
    output = _output(input, operands, program, constants)
    return output, input.new_empty((_rows(input) * features,))


@torch.library.register_fake("fastmlp::mlp_backward")
def _mlp_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    operands: Sequence[Tensor],
    output: Tensor,
    saved: Tensor,
    program: Sequence[int],
    constants: Sequence[float],
    foreseen: Sequence[bool],
    needs: Sequence[bool],
) -> list[Tensor]:
    pairs = zip((input, *operands), needs, strict=True) if needs else ()
    return [input.new_empty(like.shape) for like, need in pairs if need]
