"""The extension module, and what torch.compile has to know of its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmlp import _extension

if TYPE_CHECKING:
    from fastmlp import _C as _C
else:
    _C = _extension.load()
# Read FASTMLP_ISA and FASTMLP_L2_BYTES: what they should not be is an error here, at import.
_C.get_isa()
_C.second_level_cache_bytes()


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


def _saved_elements(
    input: Tensor,
    weights: Sequence[Tensor],
    activations: Sequence[int],
    needs: Sequence[bool],
    tails: Sequence[int],
) -> int | torch.SymInt:
    # saved_layout of csrc/problem.cpp, for sizes that may be symbols
    layers = len(weights)
    features: int | torch.SymInt = 0
    passes = bool(needs) and needs[0]
    for layer, weight in enumerate(weights):
        passes = passes or (bool(needs) and (needs[1 + layer] or needs[1 + layers + layer]))
        reads_activated = passes and _C.saves_output(activations[layer])
        followed = bool(tails) and tails[layer] != 0
        if layer + 1 < layers and (
            (bool(needs) and needs[2 + layer]) or (reads_activated and not followed)
        ):
            features += weight.size(0)
        if reads_activated and followed:
            features += weight.size(0)
        if passes and _C.saves_sums(activations[layer]):
            features += weight.size(0)
    batch: int | torch.SymInt = 1
    for size in input.shape[:-1]:
        batch *= size
    return batch * features


def _output(input: Tensor, weights: Sequence[Tensor]) -> Tensor:
    features = input.size(-1)
    for weight in weights:
        torch._check(
            weight.size(1) == features,
            lambda: (
                f"fastmlp: mat1 and mat2 shapes cannot be multiplied: got an input of shape "
                f"{tuple(input.shape)} and weights of shapes {[tuple(w.shape) for w in weights]}"
            ),
        )
        features = weight.size(0)
    return input.new_empty((*input.shape[:-1], features))


@torch.library.register_fake("fastmlp::mlp")
def _mlp_fake(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    noise: Tensor | None = None,
    tails: Sequence[int] = (),
) -> Tensor:
    return _output(input, weights)


@torch.library.register_fake("fastmlp::mlp_forward")
def _mlp_forward_fake(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    needs: Sequence[bool],
    noise: Tensor | None = None,
    tails: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    saved = input.new_empty((_saved_elements(input, weights, activations, needs, tails),))
    return _output(input, weights), saved


@torch.library.register_fake("fastmlp::mlp_backward")
def _mlp_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    weights: Sequence[Tensor],
    output: Tensor,
    saved: Tensor,
    activations: Sequence[int],
    slopes: Sequence[float],
    kept: Sequence[bool],
    needs: Sequence[bool],
    noise: Tensor | None = None,
    tails: Sequence[int] = (),
) -> list[Tensor]:
    shapes = [input.shape, *(w.shape for w in weights), *(w.shape[:1] for w in weights)]
    return [input.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]
