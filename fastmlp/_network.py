"""A network as the operators take it, and as torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmlp import _activations

# Op of csrc/network/program.h
_LINEAR, _ACTIVATION, _DROPOUT, _NOISE, _SKIP, _LAYER_NORM, _RMS_NORM, _SKIP_OVER = range(8)


class Norm(Enum):
    """What stands in the place of a linear layer's product."""

    NONE = _LINEAR
    LAYER = _LAYER_NORM
    RMS = _RMS_NORM


@dataclass
class Layer:
    """From x to activation(x @ weight.T + bias), then dropout, then + the input of a block of
    layers, of which it is the last.

    Where there is a norm, its result times the weight, of one dimension, is in the product's place.
    """

    weight: Tensor
    bias: Tensor | None
    activation: int = 0
    parameters: tuple[float, ...] = ()  # the activation's
    dropout: float = 0.0  # a probability
    skip: int = 0  # layers of that block; 0: nothing is added
    norm: Norm = Norm.NONE
    eps: float = 0.0  # the norm's

    def sums(self, x: Tensor) -> Tensor:
        """What the activation is given."""
        if self.norm is Norm.NONE:
            return F.linear(x, self.weight, self.bias)
        if self.norm is Norm.LAYER:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass
class Network:
    """Layers, one after the other."""

    layers: list[Layer] = field(default_factory=list)
    flattens: bool = False  # whether an nn.Flatten lies before the first layer

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases."""
        both = ((layer.weight, layer.bias) for layer in self.layers)
        return [tensor for pair in both for tensor in pair if tensor is not None]

    def flat(self, input: Tensor) -> Tensor:
        """The input as the first layer takes it."""
        return input.flatten(1) if self.flattens else input

    def encoded(
        self, draw: Callable[[Layer], Tensor] | None = None
    ) -> tuple[list[Tensor], list[int], list[float]]:
        """Operands, program and constants.

        Args:
            draw: gives the noise of a layer with dropout, which takes its place; None: it is still
                to be drawn.
        """
        operands: list[Tensor] = []
        program: list[int] = []
        constants: list[float] = []
        for layer in self.layers:
            program += [layer.norm.value, int(layer.bias is not None)]
            if layer.norm is not Norm.NONE:
                constants.append(layer.eps)
            operands += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
            if layer.activation:
                program += [_ACTIVATION, layer.activation]
                constants += layer.parameters
            if layer.dropout > 0 and draw is not None:
                program.append(_NOISE)
                operands.append(draw(layer))
            elif layer.dropout > 0:
                program.append(_DROPOUT)
                constants.append(layer.dropout)
            if layer.skip:
                program += [_SKIP] if layer.skip == 1 else [_SKIP_OVER, layer.skip]
        return operands, program, constants

    def drawn(self, input: Tensor) -> tuple[list[Tensor], list[int], list[float]]:
        """The same with noise, by operations that can be traced."""
        rows = 1
        for size in input.shape[:-1]:
            rows *= size

        def draw(layer: Layer) -> Tensor:
            return F.dropout(input.new_ones((rows, layer.weight.size(0))), layer.dropout)

        return self.encoded(draw)

    def plain(self, input: Tensor) -> Tensor:
        """The reference path: the same network as torch operations."""
        inputs = []
        for layer in self.layers:
            inputs.append(input)
            output = layer.sums(input)
            output = _activations.ALL[layer.activation].plain(output, layer.parameters)
            if layer.dropout > 0:
                output = F.dropout(output, layer.dropout)
            input = inputs[-layer.skip] + output if layer.skip else output
        return input


def why_plain_when_compiled(input: Tensor, network: Network) -> str | None:
    """Why the operators do not take it under torch.compile, which traces this function."""
    for tensor in (input, *network.parameters):
        if tensor.device.type != "cpu":
            return "not on the CPU"
        if tensor.dtype != input.dtype or tensor.dtype not in (torch.float32, torch.float64):
            return "not all float32 or all float64"
    if input.dim() == 0 or torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, or the input has no dimensions"
    return None
