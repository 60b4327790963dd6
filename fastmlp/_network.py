"""A network as the operators take it, and as torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmlp import _activations

# Op of csrc/network/program.h
_LINEAR, _ACTIVATION, _DROPOUT, _NOISE, _SKIP, _LAYER_NORM, _RMS_NORM, _SKIP_OVER = range(8)
_NO_WEIGHT = 2  # what the number of a norm has where there is none
_BATCH_NORM, _FIXED_NORM, _SOFTMAX, _LOG_SOFTMAX, _PASS, _PRELU, _GATE = range(8, 15)


class Norm(Enum):
    """What stands in the place of a linear layer's product."""

    NONE = _LINEAR
    LAYER = _LAYER_NORM
    RMS = _RMS_NORM
    BATCH = _BATCH_NORM
    FIXED = _FIXED_NORM  # a batch norm with a mean and a variance that are given
    SOFTMAX = _SOFTMAX
    LOG_SOFTMAX = _LOG_SOFTMAX
    PASS = _PASS  # nothing, for what follows a layer that has its own already
    PRELU = _PRELU  # of one weight for each feature, or for all


# Of what a number tells which parameters there are, and what has an eps.
_NORMS = (Norm.LAYER, Norm.RMS, Norm.BATCH, Norm.FIXED)


@dataclass
class Layer:
    """From x to activation(x @ weight.T + bias), then dropout, then + the input of a block of
    layers, of which it is the last.

    Where there is a norm, its result times the weight, of one dimension, is in the product's place.
    """

    weight: Tensor | None  # of a norm None: ones
    bias: Tensor | None
    activation: int = 0
    parameters: tuple[float, ...] = ()  # the activation's
    dropout: float = 0.0  # a probability
    skip: int = 0  # layers of that block; 0: nothing is added
    norm: Norm = Norm.NONE
    eps: float = 0.0  # the norm's
    mean: Tensor | None = None  # of Norm.FIXED
    variance: Tensor | None = None
    averages: nn.BatchNorm1d | None = None  # of Norm.BATCH: what keeps them, and counts batches
    # Whether it takes the input of the layer before it, with whose output its own is multiplied.
    gates: bool = False

    @property
    def whole_weight(self) -> Tensor | None:
        """The weight, where it is as long as the output has features."""
        return None if self.norm is Norm.PRELU else self.weight

    @property
    def operands(self) -> list[Tensor]:
        """All that it takes beside its input and the noise."""
        rest = [one for one in (self.bias, self.mean, self.variance) if one is not None]
        if self.weight is None and self.norm is not Norm.NONE:
            return rest
        return [self.weight, *rest]  # type: ignore[list-item]  # of which errors will tell

    @property
    def is_half_of_gate(self) -> bool:
        """Whether it may be one of the two layers of a gate."""
        return self.norm is Norm.NONE and not (self.dropout or self.skip or self.gates)

    def sums(self, x: Tensor) -> Tensor:
        """What the activation is given."""
        weight, bias = self.weight, self.bias
        if self.norm is Norm.NONE:
            return F.linear(x, weight, bias)  # type: ignore[arg-type]  # torch tells of None
        if self.norm is Norm.LAYER:
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        if self.norm is Norm.RMS:
            return F.rms_norm(x, x.shape[-1:], weight, self.eps)
        if self.norm in (Norm.BATCH, Norm.FIXED):
            finds = self.norm is Norm.BATCH
            return F.batch_norm(x, self.mean, self.variance, weight, bias, finds, 0.0, self.eps)
        if self.norm is Norm.SOFTMAX:
            return F.softmax(x, -1)
        if self.norm is Norm.LOG_SOFTMAX:
            return F.log_softmax(x, -1)
        if self.norm is Norm.PRELU:
            return F.prelu(x, weight)  # type: ignore[arg-type]
        return x


@dataclass
class Network:
    """Layers, one after the other."""

    layers: list[Layer] = field(default_factory=list)
    flatten: nn.Module | None = None  # what lies before the first layer
    takes_rows: bool = False  # whether more dimensions than two would mean something else
    in_features: int | None = None  # that the first layer expects, where no operand tells

    @property
    def operands(self) -> list[Tensor]:
        """Weights and biases, and what norms are given."""
        return [tensor for layer in self.layers for tensor in layer.operands]

    @property
    def weights(self) -> list[Tensor]:
        """Of all layers that have one as long as their output, as all with a product have."""
        return [one for one in (layer.whole_weight for layer in self.layers) if one is not None]

    @property
    def draws_first(self) -> bool:
        """Whether dropout may be given what lies in memory as the input does."""
        lies = [True]  # whether what a layer is given does
        for layer in self.layers:
            stays = layer.norm in (Norm.PASS, Norm.PRELU) and lies[-1]
            if stays and layer.dropout:
                return True
            lies.append(stays or (layer.skip > 0 and lies[-layer.skip]))
        return False

    @property
    def finds_statistics(self) -> bool:
        """Whether there are norms over the batch, which modules keep averages of."""
        return any(layer.norm is Norm.BATCH for layer in self.layers)

    @property
    def averages(self) -> list[Tensor]:
        """What modules keep of the statistics that the network finds."""
        modules = [layer.averages for layer in self.layers if layer.averages is not None]
        both = [one for module in modules for one in (module.running_mean, module.running_var)]
        return [one for one in both if one is not None]

    def out_features(self, in_features: int) -> list[int]:
        """Of each layer."""
        features = []
        for layer in self.layers:
            weight = layer.whole_weight
            in_features = in_features if weight is None else weight.size(0)
            features.append(in_features)
        return features

    def why_modules(self, input: Tensor) -> str | None:
        """Why only the modules know what becomes of an input; None: the network does, too."""
        rows = 2 if self.flatten is not None else input.dim()
        if type(self.flatten) is nn.Flatten and input.dim() < 2:
            return "the input has fewer than two dimensions, and the model begins with Flatten"
        if self.takes_rows and rows != 2:
            return (
                "the input is not of two dimensions, and the model has a BatchNorm1d, a PReLU of "
                "several weights or a softmax over dimension 1"
            )
        # torch's mask lies, and is drawn, as memory like the input's would.
        if self.draws_first and not torch.empty_like(self.flat(input)).is_contiguous():
            return "dropout is drawn in the order of an input that is not contiguous"
        if self.finds_statistics and input.size(0) < 2:
            return "a BatchNorm1d finds no statistics in fewer than two rows"
        if self.in_features not in (None, self.flat(input).size(-1)):
            return f"the input does not have the {self.in_features} features of the first norm"
        return None

    def flat(self, input: Tensor) -> Tensor:
        """The input as the first layer takes it."""
        return input if self.flatten is None else self.flatten(input)

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
            program.append(layer.norm.value)
            if layer.norm is Norm.NONE:
                program.append(int(layer.bias is not None))
            elif layer.norm in _NORMS:
                program.append((layer.bias is not None) + _NO_WEIGHT * (layer.weight is None))
                constants.append(layer.eps)
            operands += layer.operands
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
            if layer.gates:
                program.append(_GATE)
        return operands, program, constants

    def drawn(self, input: Tensor) -> tuple[list[Tensor], list[int], list[float]]:
        """The same with noise, by operations that can be traced."""
        rows = 1
        for size in input.shape[:-1]:
            rows *= size

        features = dict(zip(map(id, self.layers), self.out_features(input.size(-1)), strict=True))

        def draw(layer: Layer) -> Tensor:
            return F.dropout(input.new_ones((rows, features[id(layer)])), layer.dropout)

        return self.encoded(draw)

    def add_batch(self, statistics: Tensor, in_features: int, rows: int) -> None:
        """Takes what mlp_train finds of so many rows into the averages, as torch's modules do."""
        for layer, features in zip(self.layers, self.out_features(in_features), strict=True):
            if layer.norm is not Norm.BATCH:
                continue
            mean, variance = statistics[:features], statistics[features : 2 * features]
            statistics = statistics[2 * features :]
            module: Any = layer.averages
            module.num_batches_tracked.add_(1)
            share = module.momentum
            if share is None:
                share = 1 / module.num_batches_tracked.to(mean.dtype)
            module.running_mean.mul_(1 - share).add_(mean * share)
            module.running_var.mul_(1 - share).add_(variance * (rows / (rows - 1)) * share)

    def plain(self, input: Tensor) -> Tensor:
        """The reference path: the same network as torch operations."""
        inputs: list[Tensor] = []
        for layer in self.layers:
            gated = input
            if layer.gates:
                input = inputs[-1]
            inputs.append(input)
            output = layer.sums(input)
            output = _activations.ALL[layer.activation].plain(output, layer.parameters)
            if layer.gates:
                output = output * gated
            if layer.dropout > 0:
                output = F.dropout(output, layer.dropout)
            input = inputs[-layer.skip] + output if layer.skip else output
        return input


def why_plain_when_compiled(input: Tensor, network: Network) -> str | None:
    """Why the operators do not take it under torch.compile, which traces this function."""
    for tensor in (input, *network.operands, *network.averages):
        if tensor.device.type != "cpu":
            return "not on the CPU"
        if tensor.dtype != input.dtype or tensor.dtype not in (torch.float32, torch.float64):
            return "not all float32 or all float64"
    if input.dim() == 0 or torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, or the input has no dimensions"
    return None
