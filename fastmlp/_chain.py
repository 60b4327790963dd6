"""Modules that run one after the other: which of them are one network, and running them as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.autograd import forward_ad

from fastmlp._network import Network
from fastmlp._ops import _C
from fastmlp.modules import Gated, Reader, Residual, read_modules

_run_modules = _C.run_modules
# What explain() wants to be told of each chain's input.
watchers: list[Callable[[Chain, Any], object]] = []


# Where a module that stands for the layer of another keeps that one.
OWNER = "_fastmlp_owner"


def linear_layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The linear layers in modules, each as often as it is there."""
    for module in modules:
        for one in module.modules():
            if isinstance(one, nn.Linear):
                yield one.__dict__.get(OWNER, one)


class Chain:
    """Modules that run one after the other, as one operation wherever that is possible.

    Args:
        modules: by their names.
    """

    # torch.fx writes it into code by these.
    __name__ = __qualname__ = "fastmlp_chain"

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.names, self.modules = tuple(modules), tuple(modules.values())

    def __call__(self, input: Any) -> Any:
        """What the last module gives."""
        for watch in watchers:
            watch(self, input)
        if forward_ad._current_level < 0:
            output = _run_modules(self.modules, input)
            if output is not None:
                return output
        for module in self.modules:
            input = module(input)
        return input

    def read(self) -> Network | str:
        """The network that the modules are, or why they are none."""
        return read_modules(dict(zip(self.names, self.modules, strict=True)))


class Cut(NamedTuple):
    """Modules as runs that are worth fusing, and those between them.

    Attributes:
        pieces: chains, and names of the modules that run by themselves, in order.
        reasons: why a linear layer, or a container that may hold some, is in no chain, by its name.
    """

    pieces: list[Chain | str]
    reasons: dict[str, str]

    @property
    def chains(self) -> list[Chain]:
        return [piece for piece in self.pieces if isinstance(piece, Chain)]


def cut(modules: Mapping[str, nn.Module | None]) -> Cut:
    """The longest runs of modules that are a network, from the first module on.

    They are the same in training and in evaluation mode.
    """
    pieces: list[Chain | str] = []
    reasons: dict[str, str] = {}
    run: dict[str, nn.Module] = {}
    reader = Reader(as_trained=True)

    def close() -> None:
        nonlocal run, reader
        # A container alone runs its own.
        is_more = len(run) > 1 or any(type(one) in (Residual, Gated) for one in run.values())
        if is_more and reader.pays:
            pieces.append(Chain(run))
        else:
            pieces.extend(run)
            for name, module in run.items():
                if isinstance(module, nn.Linear):
                    reasons[name] = "a linear layer without an activation gains nothing"
        run, reader = {}, Reader(as_trained=True)

    for name, module in modules.items():
        reason = reader.read({name: module})
        if reason is not None and run:
            close()
            reason = reader.read({name: module})
        if reason is None and module is not None:
            run[name] = module
            continue
        pieces.append(name)
        reasons[name] = str(reason)
        reader = Reader(as_trained=True)
    close()
    return Cut(pieces, reasons)
