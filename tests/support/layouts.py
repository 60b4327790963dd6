"""Tensors laid out in memory in every way, between NaNs that must not be read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def contiguous(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def offset(t: Tensor) -> Tensor:
    """One number past the start of its memory, which no vector's alignment allows for."""
    memory = t.new_full((t.numel() + 2,), torch.nan)
    view = memory[1 : 1 + t.numel()].view(t.shape)
    return view.copy_(t)


def padded(t: Tensor) -> Tensor:
    """Inside of a greater tensor, with an odd margin on each side."""
    memory = t.new_full([n + 3 for n in t.shape], torch.nan)
    view = memory[tuple(slice(1, 1 + n) for n in t.shape)]
    return view.copy_(t)


def strided(t: Tensor) -> Tensor:
    """Every second number along the last dimension."""
    memory = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), torch.nan)
    view = memory[..., 1::2]
    return view.copy_(t)


def transposed(t: Tensor) -> Tensor:
    """Dimensions in reverse order in memory, with a margin."""
    return padded(t.permute(*reversed(range(t.dim())))).permute(*reversed(range(t.dim())))


def expanded(t: Tensor) -> Tensor:
    """Its first slice repeated with stride 0: other values than the given ones."""
    return contiguous(t[:1]).expand_as(t)


def expanded_last(t: Tensor) -> Tensor:
    """Its first number in each row repeated with stride 0: other values than the given ones."""
    return contiguous(t[..., :1]).expand_as(t)


def windows(t: Tensor) -> Tensor:
    """Rows that overlap, each one number after the last: other values than the given ones."""
    if t.dim() != 2:
        return contiguous(t)
    return torch.randn(sum(t.shape), dtype=t.dtype).as_strided(t.shape, (1, 1), 1)


Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (
        contiguous, offset, padded, strided, transposed, expanded, expanded_last, windows,
    )
}  # fmt: skip
