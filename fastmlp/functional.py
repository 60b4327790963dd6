"""Stateless forms: one fused layer, and a whole network as one differentiable operation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp._ops import _C

__all__ = ["ACTIVATIONS", "linear", "mlp"]

ACTIVATIONS: tuple[str, ...] = _C.ACTIVATIONS
"""The activations that run fused, with the parameters that torch's modules default to."""

_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_SLOPES = {"leaky_relu": 0.01, "elu": 1.0}

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
    hidden, last = activation_code(activation), activation_code(output_activation)
    codes = [hidden] * (len(weights) - 1) + [last]
    return run(input, weights, biases, codes, [_SLOPES.get(ACTIVATIONS[c], 0.0) for c in codes])


def activation_code(name: str | None) -> int:
    """The operators' number for an activation's name."""
    code = _CODES.get("identity" if name is None else name)
    if code is None:
        expected = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"fastmlp: expected an activation of {expected} or None, got {name!r}")
    return code


def run(
    input: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    codes: Sequence[int],
    slopes: Sequence[float],
) -> Tensor:
    """The network of the operators' arguments, fused where it can be, plain elsewhere."""
    if torch.compiler.is_compiling():
        if why_plain_when_compiled(input, weights, biases) is None:
            result: Tensor = torch.ops.fastmlp.mlp(input, weights, biases, codes, slopes)
            return result
        return plain(input, weights, biases, codes, slopes)
    if forward_ad._current_level < 0:
        output = _C.run(input, weights, biases, codes, slopes)
        if output is not None:
            return output
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("plain path: %s", why_plain(input, weights, biases, codes, slopes))
    return plain(input, weights, biases, codes, slopes)


def why_plain(
    input: Any,
    weights: list[Tensor],
    biases: list[Tensor | None],
    codes: Sequence[int],
    slopes: Sequence[float],
) -> str | None:
    """Why :func:`run` takes the plain path for these arguments, None where it runs fused."""
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return _C.why_plain(input, weights, biases, codes, slopes)


def why_plain_when_compiled(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> str | None:
    """The same under torch.compile, which traces this function."""
    for tensor in (input, *weights, *biases):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return "not on the CPU"
        if tensor.dtype != input.dtype or tensor.dtype not in (torch.float32, torch.float64):
            return "not all float32 or all float64"
    if input.dim() == 0 or torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, or the input has no dimensions"
    return None


def plain(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    codes: Sequence[int],
    slopes: Sequence[float],
) -> Tensor:
    """The reference path: the same network as torch operations."""
    for weight, bias, code, slope in zip(weights, biases, codes, slopes, strict=True):
        input = F.linear(input, weight, bias)
        name = ACTIVATIONS[code]
        if name == "leaky_relu":
            input = F.leaky_relu(input, slope)
        elif name == "elu":
            input = F.elu(input, slope)
        elif name == "gelu_tanh":
            input = F.gelu(input, approximate="tanh")
        elif name != "identity":
            input = getattr(F if name in ("gelu", "silu") else torch, name)(input)
    return input
