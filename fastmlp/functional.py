"""Stateless forms: one fused layer, and a whole network as one differentiable operation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp._ops import _C

__all__ = ["ACTIVATIONS", "linear", "mlp"]

ACTIVATIONS: tuple[str, ...] = _C.ACTIVATIONS
"""The activations that run fused, with the parameters that torch's modules default to."""

_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_CLASSES = {name.replace("_", ""): code for name, code in _CODES.items()}  # "ReLU" is relu
_SLOPES = {"leaky_relu": 0.01, "elu": 1.0}
_NOISE, _SKIP = 1, 2  # kNoise and kSkip of csrc/mlp.h

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
    slopes = [_SLOPES.get(ACTIVATIONS[c], 0.0) for c in codes]
    without = [0.0] * len(codes), [False] * len(codes)
    return run(input, Network(weights, biases, codes, slopes, *without))


def activation_code(name: str | None) -> int:
    """The operators' number for an activation's name, ours or that of torch's class."""
    code = _CODES.get("identity" if name is None else name)
    if code is None and isinstance(name, str):
        code = _CLASSES.get(name.lower())
    if code is None:
        expected = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"fastmlp: expected an activation of {expected} or None, got {name!r}")
    return code


class Network(NamedTuple):
    """What the operators compute, one item a layer: from x to activation(x @ weight.T + bias),
    then dropout, then + x where the layer skips."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    codes: list[int]  # of the activations
    slopes: list[float]
    dropouts: list[float]  # probabilities; 0: none
    skips: list[bool]

    def append(self, weight: Tensor, bias: Tensor | None) -> None:
        """Another layer, of nothing else."""
        self.weights.append(weight)
        self.biases.append(bias)
        self.codes.append(0)
        self.slopes.append(0.0)
        self.dropouts.append(0.0)
        self.skips.append(False)

    def tails(self) -> list[int]:
        """What follows the activations, as the operators take it; empty for nothing anywhere."""
        if not any(self.dropouts) and not any(self.skips):
            return []
        return [
            _NOISE * (dropout > 0) + _SKIP * skip
            for dropout, skip in zip(self.dropouts, self.skips, strict=True)
        ]


def run(input: Tensor, network: Network) -> Tensor:
    """The network, fused where it can be, plain elsewhere."""
    if torch.compiler.is_compiling():
        if why_plain_when_compiled(input, network) is None:
            operands = network.weights, network.biases, network.codes, network.slopes
            noise, tails = _draw_noise(input, network), network.tails()
            result: Tensor = torch.ops.fastmlp.mlp(input, *operands, noise, tails)
            return result
        return plain(input, network)
    if forward_ad._current_level < 0:
        output = _C.run(input, *network)
        if output is not None:
            return output
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("plain path: %s", why_plain(input, network))
    return plain(input, network)


def why_plain(input: Any, network: Network) -> str | None:
    """Why :func:`run` takes the plain path for these arguments, None where it runs fused."""
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return _C.why_plain(input, *network)


def why_plain_when_compiled(input: Tensor, network: Network) -> str | None:
    """The same under torch.compile, which traces this function."""
    for tensor in (input, *network.weights, *network.biases):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return "not on the CPU"
        if tensor.dtype != input.dtype or tensor.dtype not in (torch.float32, torch.float64):
            return "not all float32 or all float64"
    if input.dim() == 0 or torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, or the input has no dimensions"
    return None


def _draw_noise(input: Tensor, network: Network) -> Tensor | None:
    """What draw_noise of csrc/dropout.cpp draws, as operations that can be traced."""
    parts = [
        F.dropout(input.new_ones((*input.shape[:-1], weight.size(0))), dropout).flatten()
        for weight, dropout in zip(network.weights, network.dropouts, strict=True)
        if dropout > 0
    ]
    return torch.cat(parts) if parts else None


def plain(input: Tensor, network: Network) -> Tensor:
    """The reference path: the same network as torch operations."""
    for weight, bias, code, slope, dropout, skip in zip(*network, strict=True):
        output = F.linear(input, weight, bias)
        name = ACTIVATIONS[code]
        if name == "leaky_relu":
            output = F.leaky_relu(output, slope)
        elif name == "elu":
            output = F.elu(output, slope)
        elif name == "gelu_tanh":
            output = F.gelu(output, approximate="tanh")
        elif name != "identity":
            output = getattr(F if name in ("gelu", "silu") else torch, name)(output)
        if dropout > 0:
            output = F.dropout(output, dropout)
        input = input + output if skip else output
    return input
