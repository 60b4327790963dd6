"""The activations that run fused: the extension's list, and torch.nn's modules of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmlp._ops import _C

# Parameter::Rule of csrc/network/activations.h
_ANY, _NOT_ZERO, _NOT_BELOW_THE_ONE_BEFORE = range(3)


class Activation(NamedTuple):
    """One of `csrc/network/activations-inl.h`; its place in :data:`ALL` is its number."""

    name: str
    kind: type[nn.Module]
    op: str  # of torch.ops.aten
    parameters: Mapping[str, float]  # names of the module's attributes, with torch's defaults
    rules: tuple[int, ...]  # of each parameter
    mode_name: str | None  # the attribute that tells modules of one class apart, and its value
    mode: str | None

    def make(self) -> nn.Module:
        """A module of torch.nn, with torch's defaults."""
        return self.kind(**({} if self.mode_name is None else {self.mode_name: self.mode}))

    def plain(self, z: Tensor, parameters: tuple[float, ...]) -> Tensor:
        """By torch's own operation."""
        if self.name == "identity":
            return z
        mode = {} if self.mode_name is None else {self.mode_name: self.mode}
        result: Tensor = getattr(torch.ops.aten, self.op)(z, *parameters, **mode)
        return result

    def takes(self, parameters: tuple[float, ...]) -> bool:
        """Whether torch's function is defined for these."""
        for i, rule in enumerate(self.rules):
            if rule == _NOT_ZERO and parameters[i] == 0:
                return False
            if rule == _NOT_BELOW_THE_ONE_BEFORE and parameters[i] < parameters[i - 1]:
                return False
        return True


ALL = tuple(
    Activation(name, getattr(nn, kind), op, parameters, rules, mode_name, mode)
    for name, kind, op, parameters, rules, mode_name, mode in _C.ACTIVATION_INFOS
)
NUMBERS = {activation.name: number for number, activation in enumerate(ALL)}
# "ReLU" is relu.
_BY_CLASS = {name.replace("_", ""): number for name, number in NUMBERS.items()}


def number_of(name: Any) -> int:
    """The number of an activation's name, ours or that of torch's class.

    Args:
        name: a str, a class of torch.nn, or None for "identity".
    """
    number = None
    if isinstance(name, type):
        # Another class of that name is another function.
        number = next((n for n, one in enumerate(ALL) if one.kind is name), None)
    else:
        number = NUMBERS.get("identity" if name is None else name)
        if number is None and isinstance(name, str):
            number = _BY_CLASS.get(name.lower())
    if number is None:
        expected = ", ".join(repr(one.name) for one in ALL)
        raise ValueError(f"fastmlp: expected an activation of {expected} or None, got {name!r}")
    return number


def defaults(number: int) -> tuple[float, ...]:
    """Torch's defaults of an activation's parameters."""
    return tuple(ALL[number].parameters.values())


def read(module: Any) -> tuple[int, tuple[float, ...]] | None:
    """The number and the parameters of an activation module, None for any other module.

    Types are compared exactly: a subclass, a parametrised layer among them, has a forward of its
    own.
    """
    for number, one in enumerate(ALL):
        if one.kind is not type(module):
            continue
        if one.mode_name is not None and getattr(module, one.mode_name) != one.mode:
            continue
        parameters = tuple(getattr(module, name) for name in one.parameters)
        # Torch will say what it thinks of others; a tensor may want a gradient.
        if not all(isinstance(value, (int, float)) for value in parameters):
            return None
        try:
            parameters = tuple(map(float, parameters))
        except OverflowError:
            return None
        return (number, parameters) if one.takes(parameters) else None
    return None
