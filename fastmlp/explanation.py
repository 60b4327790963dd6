"""What of a model runs fused, and why the rest does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fastmlp import _chain, functional
from fastmlp._chain import Chain, linear_layers
from fastmlp.fusion import analyse, twin, unfuse
from fastmlp.modules import FusedLinear, FusedMLP, read_modules

__all__ = ["Explanation", "explain"]


class Explanation:
    """What :func:`explain` found; `print` it.

    Attributes:
        fused: the names of the linear layers that run fused, in the model's order.
        plain: why others do not, by name: of linear layers, and of modules whose forward cannot be
            read ("" is the model itself).
        share: of all multiply-adds, 0 … 1, those that run fused.
    """

    def __init__(
        self, fused: list[str], plain: dict[str, str], share: float, counted: bool
    ) -> None:
        self.fused, self.plain, self.share = fused, plain, share
        self._counted = counted

    def __str__(self) -> str:
        of = "multiply-adds" if self._counted else "weights of linear layers and convolutions"
        lines = [f"{100 * self.share:.0f} % of the {of} run fused"]
        lines += [f"  fused  {name or '(the model)'}" for name in self.fused]
        lines += [f"  plain  {name or '(the model)'}: {why}" for name, why in self.plain.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Explanation(share={self.share:.3f}, fused={self.fused!r}, plain={self.plain!r})"


def explain(model: nn.Module, *inputs: Any) -> Explanation:
    """What of a model runs fused, or would after :func:`fastmlp.fuse`, and why the rest does not.

    The model stays as it is.

    Args:
        model: any module, fused or not.
        inputs: what the model is called with. It is called twice, without gradients and on copies
            of its buffers, and what its dtype, device or shape keep from running fused is told.
            Without any, the model is not called, and `share` is that of the weights.

    Raises:
        TypeError: no module; and whatever the model raises for these inputs.
        ValueError: a lazy module that has not been called.
    """
    plain = _alone(unfuse(model))
    fused = _alone(plain)
    findings = analyse(fused)
    reasons = dict(findings.reasons)
    names = {module: name for name, module in fused.named_modules()}
    ours: list[nn.Module] = [
        module for module in names if isinstance(module, (FusedMLP, FusedLinear))
    ]
    in_chains = {id(m) for chain in findings.chains for m in linear_layers(chain.modules)}
    alone: list[nn.Module] = []
    for module in ours:
        network = read_modules({"": module})
        if isinstance(network, str):
            reasons[names[module]] = network
        elif not in_chains.issuperset(layers := {id(m) for m in linear_layers([module])}):
            in_chains |= layers
            alone.append(module)
    work: dict[str, float]
    if inputs:
        whys = _run(fused, inputs, alone)
        by_module = {id(module): name for module, name in names.items()}
        for layer, why in whys.items():
            if why is not None:
                in_chains.discard(layer)
                reasons[by_module[layer]] = why
        in_chains &= whys.keys()
        work, total = _multiply_adds(plain, inputs)
    else:
        work = {
            name: float(module.weight.numel())
            for name, module in plain.named_modules()
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
            and isinstance(module.weight, Tensor)
        }
        total = sum(work.values())
    run = [name for module, name in names.items() if id(module) in in_chains]
    left = {}
    for module, name in names.items():
        if name in run or not (isinstance(module, nn.Linear) or name in reasons):
            continue
        left[name] = reasons.get(name) or _of_what_it_is_in(name, reasons)
    share = sum(work.get(name, 0) for name in run) / total if total else 0.0
    return Explanation(run, left, min(share, 1.0), bool(inputs))


def _of_what_it_is_in(name: str, reasons: dict[str, str]) -> str:
    """Why a linear layer without a reason of its own is in no chain."""
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if parent in reasons:
            return f"in {parent or 'the model'}: {reasons[parent]}"
    return "no forward that can be read runs it beside another layer or an activation"


def _run(
    model: nn.Module, inputs: tuple[Any, ...], alone: list[nn.Module]
) -> dict[int, str | None]:
    """Calls a fused model; why each linear layer in a chain that ran has run plain, None: fused.

    Args:
        alone: modules of ours that are in no chain.
    """
    whys: dict[int, str | None] = {}

    def note(modules: Any, why: str | None) -> None:
        for layer in linear_layers(modules):
            whys[id(layer)] = whys.get(id(layer)) or why

    def watch(chain: Chain, input: Any) -> None:
        network = chain.read()
        note(
            chain.modules,
            network if isinstance(network, str) else functional.why_plain(input, network),
        )

    def ask(module: nn.Module, args: tuple[Any, ...]) -> None:
        network = read_modules({"": module})
        assert not isinstance(network, str)
        note([module], functional.why_plain(args[0], network))

    hooks = [module.register_forward_pre_hook(ask) for module in alone]
    _chain.watchers.append(watch)
    try:
        with _without_traces():
            model(*_copied(inputs))
    finally:
        _chain.watchers.remove(watch)
        for hook in hooks:
            hook.remove()
    return whys


def _multiply_adds(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[dict[str, float], float]:
    """Of each linear layer of a plain model, by name, and of all that it computes."""
    work: dict[str, float] = {}

    def count(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                work[name] = work.get(name, 0.0) + output.numel() * module.in_features

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with _without_traces(), FlopCounterMode(display=False) as counter:
            model(*_copied(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return work, max(counter.get_total_flops() / 2, sum(work.values()))


def _alone(model: nn.Module) -> nn.Module:
    """The model with copies of its buffers, which a call may write."""
    model = twin(model)
    for module in model.modules():
        buffers = module._buffers
        buffers.update(
            (name, one.clone()) for name, one in list(buffers.items()) if one is not None
        )
    return model


@contextmanager
def _without_traces() -> Iterator[None]:
    """Without gradients; random numbers are afterwards as they were."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call may write into."""
    return tuple(tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, inputs))
