"""Stateless forms: one fused layer, and a whole network as one differentiable operation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp import _activations
from fastmlp._network import Layer, Network, why_plain_when_compiled
from fastmlp._ops import _C

__all__ = ["ACTIVATIONS", "linear", "mlp"]

ACTIVATIONS: tuple[str, ...] = tuple(one.name for one in _activations.ALL)
"""The activations that run fused, with the parameters that torch's modules default to."""

_log = logging.getLogger("fastmlp")


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = "identity"
) -> Tensor:
    """`activation(input @ weight.T + bias)` in one step.

    Args:
        input: `(..., in_features)`, any number of leading dimensions.
        weight: `(out_features, in_features)`.
        bias: `(out_features,)` or None.
        activation: one of :data:`ACTIVATIONS`; None is "identity".

    Returns:
        `(..., out_features)`, of the operands' dtype. float32 and float64 on the CPU run fused; any
        other dtype or device runs as the same torch operations.

    Raises:
        ValueError: an unknown activation.
        RuntimeError, TypeError: as `torch.nn.functional.linear` raises them.
    """
    return mlp(input, [weight], [bias], output_activation=activation)


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    activation: str | None = "relu",
    output_activation: str | None = None,
) -> Tensor:
    """A multilayer perceptron in one step: linear layers with an activation after each.

    Args:
        input: `(..., in_features)`, any number of leading dimensions.
        weights: of each layer, `(out_features, in_features)`.
        biases: of each layer, `(out_features,)` or None; None for all: no layer has one.
        activation: after each layer but the last, one of :data:`ACTIVATIONS`; None is "identity".
        output_activation: after the last layer, likewise.

    Returns:
        `(..., out_features)` of the last layer, of the operands' dtype. float32 and float64 on the
        CPU run fused; any other dtype or device runs as the same torch operations.

    Raises:
        ValueError: an unknown activation, no weights, or a number of biases unlike that of weights.
        RuntimeError, TypeError: as `torch.nn.functional.linear` raises them.
    """
    weights = list(weights)
    biases = [None] * len(weights) if biases is None else list(biases)
    if not weights:
        raise ValueError("fastmlp: expected at least one weight, got none")
    if len(biases) != len(weights):
        raise ValueError(
            f"fastmlp: expected as many biases (or None) as weights, got {len(biases)} biases "
            f"for {len(weights)} weights"
        )
    hidden, last = map(_activations.number_of, (activation, output_activation))
    numbers = [hidden] * (len(weights) - 1) + [last]
    layers = [
        Layer(weight, bias, number, _activations.defaults(number))
        for weight, bias, number in zip(weights, biases, numbers, strict=True)
    ]
    return run(input, Network(layers))


def run(input: Tensor, network: Network) -> Tensor:
    """The network, fused where it can be, plain elsewhere; one that finds statistics only where
    :func:`~fastmlp.modules.runs` says so."""
    input = network.flat(input)
    if torch.compiler.is_compiling():
        if why_plain_when_compiled(input, network) is None:
            result: Tensor
            if not network.finds_statistics:
                result = torch.ops.fastmlp.mlp(input, *network.drawn(input))
                return result
            result, statistics = torch.ops.fastmlp.mlp_train(input, *network.drawn(input))
            with torch.no_grad():
                network.add_batch(statistics, input.size(-1), input.size(0))
            return result
        return network.plain(input)
    if forward_ad._current_level < 0:
        output = _C.run(input, *network.encoded())
        if output is not None:
            return output
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("plain path: %s", why_plain(input, network))
    return network.plain(input)


def why_plain(input: Any, network: Network) -> str | None:
    """Why :func:`run` takes the plain path for these arguments, None where it runs fused."""
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if isinstance(input, Tensor) and input.dim() > 0:
        reason = network.why_modules(input)
        if reason is not None:
            return reason
        input = network.flat(input)
    return _C.why_plain(input, *network.encoded())
