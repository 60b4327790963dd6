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


def _features(
    input: Tensor, operands: Sequence[Tensor], program: Sequence[int], constants: Sequence[float]
) -> tuple[list[int | torch.SymInt], int | torch.SymInt]:
    """Each layer's out_features, and the elements of all statistics."""
    layers = _C.layers(list(program), list(constants))
    weights = [operands[place] for place, *_ in layers if place >= 0]
    found: list[int | torch.SymInt] = []
    features, statistics = input.size(-1), 0
    before = features  # of the last layer's input
    for place, is_batch_norm, gates in layers:
        features = before if gates else features
        before = features
        if place >= 0:
            torch._check(
                operands[place].size(-1) == features,  # of a norm, all that it has
                lambda: (
                    f"fastmlp: mat1 and mat2 shapes cannot be multiplied: got an input of shape "
                    f"{tuple(input.shape)} and weights of shapes "
                    f"{[tuple(w.shape) for w in weights]}"
                ),
            )
            features = operands[place].size(0)
        statistics += 2 * features if is_batch_norm else 0
        found.append(features)
    return found, statistics


def _output(input: Tensor, features: Sequence[int | torch.SymInt]) -> Tensor:
    return input.new_empty((*input.shape[:-1], features[-1]))


@torch.library.register_fake("fastmlp::mlp")
def _mlp_fake(
    input: Tensor, operands: Sequence[Tensor], program: Sequence[int], constants: Sequence[float]
) -> Tensor:
    return _output(input, _features(input, operands, program, constants)[0])


@torch.library.register_fake("fastmlp::mlp_train")
def _mlp_train_fake(
    input: Tensor, operands: Sequence[Tensor], program: Sequence[int], constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    features, statistics = _features(input, operands, program, constants)
    return _output(input, features), input.new_empty((statistics,))


@torch.library.register_fake("fastmlp::mlp_forward")
def _mlp_forward_fake(
    input: Tensor,
    operands: Sequence[Tensor],
    program: Sequence[int],
    constants: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    features, saved = _features(input, operands, program, constants)
    for layer in _C.saved_layers(list(program), list(constants), list(needs)):
        saved += _rows(input) * features[layer]
    return _output(input, features), input.new_empty((saved,))


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
