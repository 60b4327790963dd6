"""Autograd's graphs, looked into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.utils.checkpoint
from fused import mlp
from reference import Network, Problem
from torch import Tensor


def leaves(problem: Problem, needed: tuple[bool, ...] | None = None) -> list[Tensor]:
    """Input, weights, biases as leaves; `needed` says which want a gradient."""
    needed = needed or (True,) * len(problem.tensors())
    return [t.clone().requires_grad_(n) for t, n in zip(problem.tensors(), needed, strict=True)]


def apply(network: Network, given: list[Tensor], layers: int) -> Tensor:
    """The network of tensors in the order of leaves()."""
    biases: list[Tensor | None] = [*given[1 + layers :]] or [None] * layers
    return network(given[0], given[1 : 1 + layers], biases)


def function(problem: Problem) -> Callable[..., Tensor]:
    return lambda *given: apply(mlp(problem), list(given), len(problem.weights))


def is_modified(error: RuntimeError) -> bool:
    """Whether it is torch's error about a saved tensor; any other error goes on."""
    if "one of the variables needed for gradient computation has been modified" in str(error):
        return True
    raise error


def outcome(
    network: Network, problem: Problem, needed: tuple[bool, ...], which: int
) -> tuple[str, list[Tensor | None]]:
    """What becomes of backward when one tensor (-1: the output) is modified after forward."""
    given = leaves(problem, needed)
    y = apply(network, given, len(problem.weights))
    try:
        with torch.no_grad():
            (y if which < 0 else given[which]).add_(1)
        y.backward(problem.grad_output)
    except RuntimeError as error:
        return "error" if is_modified(error) else "", []
    return "fine", [t.grad for t in given]


@contextmanager
def counted() -> Iterator[list[Tensor]]:
    """The tensors that autograd saves."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield saved


def kept_bytes(network: Network, problem: Problem, needed: tuple[bool, ...]) -> int:
    """Bytes of distinct memory that backward keeps beyond the caller's own tensors."""
    given = leaves(problem, needed)
    with counted() as saved:
        y = apply(network, given, len(problem.weights))
    own = {t.untyped_storage().data_ptr() for t in [*given, y]}
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(n for p, n in kept.items() if p not in own)
