"""Making the multilayer perceptrons in any model run fused, and undoing it."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from fastmlp import functional
from fastmlp._chain import Chain, Cut, cut, linear_layers
from fastmlp._source import Untraceable
from fastmlp._trace import Plan, plan_of, required_inputs, set_class
from fastmlp.modules import (
    MODULE_HOOKS,
    READ_AS,
    FusedLinear,
    FusedMLP,
    Gated,
    Residual,
    is_called_as_usual,
    is_linear,
    is_sequential,
    read_modules,
    runs,
    unfused,
)

__all__ = ["fuse", "unfuse"]


def fuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The same model, whose linear layers run fused with what stands between them.

    In every module of the model, chains of linear layers, activations, dropout and residual sums
    are found: in `nn.Sequential` and classes that keep its forward, and in a module's own forward,
    which `torch.fx` reads once where its source does no more than compute: one that writes, enters
    a context, branches on data, draws random numbers or calls what is not known stays as it is.
    Modules in which there are chains are given a class derived from their own, under the name
    "Fused" and theirs; all else stays: parameters, buffers, names, hooks, `state_dict`. A chain
    runs as `FusedMLP` does, on the plain path where that would. :func:`explain` tells what runs
    fused, and why the rest does not.

    Modules, layers, and values that a forward reads can be changed afterwards: each call compares
    them with what they were, and the forward is read again where one has changed.

    Args:
        model: any module.
        inplace: whether the model itself is changed, so that whoever holds it or a part of it has
            the fused one; otherwise the modules are new, with the very same parameters, buffers
            and other attributes. (A hook's handle removes it from the modules it was made for.)

    Returns:
        the model, in training or evaluation mode as it was.

    Raises:
        TypeError: no module.
        ValueError: a lazy module that has not been called.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> model = fastmlp.fuse(model)
    """
    model = _checked("fuse", model, inplace)
    analyse(model)
    return model


def unfuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model with the classes that its modules had before :func:`fuse`.

    Args:
        model: any module.
        inplace: as of :func:`fuse`.

    Raises:
        TypeError: no module.
    """
    model = _checked("unfuse", model, inplace)
    for module in model.modules():
        if isinstance(module, _Fused):
            set_class(module, unfused(type(module)))
            module.__dict__.pop(_KEPT, None)
    return model


def _checked(function: str, model: Any, inplace: bool) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"fastmlp.{function}: expected a torch.nn.Module, got {type(model).__name__}"
        )
    return model if inplace else twin(model)


# --- A model of new modules


def twin(model: nn.Module) -> nn.Module:
    """New modules with the very same parameters, buffers and other attributes."""
    twins: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if any(nn.parameter.is_lazy(one) for one in module._parameters.values() if one is not None):
            raise ValueError(
                "fastmlp: expected a model whose parameters are there, got a "
                f"{type(module).__name__} that has not been called. Call the model once before"
            )
        twins[id(module)] = object.__new__(type(module))
    copies: dict[int, Any] = {}

    def of(value: Any) -> Any:
        """A value in which modules are the new ones; itself where there are none in it."""
        if isinstance(value, nn.Module):
            return twins.get(id(value), value)
        if isinstance(value, types.MethodType):
            new = of(value.__self__)
            return value if new is value.__self__ else types.MethodType(value.__func__, new)
        if isinstance(value, functools.partial):
            parts = of((value.func, *value.args)), of(value.keywords)
            if parts[0] == (value.func, *value.args) and parts[1] is value.keywords:
                return value
            return functools.partial(*parts[0], **parts[1])
        if not isinstance(value, (list, tuple, set, dict)):
            return value
        if id(value) in copies:
            return copies[id(value)]
        copies[id(value)] = value  # where it holds itself
        old = list(value.values()) if isinstance(value, dict) else list(value)
        new = list(map(of, old))
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        made = copy.copy(value)
        if isinstance(made, dict):
            made.update(zip(value, new, strict=True))
        elif isinstance(made, list):
            made[:] = new
        elif isinstance(made, set):
            made = type(made)(new)
        else:
            made = type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
        copies[id(value)] = made
        return made

    for module in model.modules():
        if id(module) not in twins:
            continue
        new = twins[id(module)]
        for name, value in module.__dict__.items():
            if name in _OWN_DICTS or name.endswith("_hooks") or "_hooks_" in name:
                value = copy.copy(value)
                if isinstance(value, dict):
                    value.update((key, of(one)) for key, one in list(value.items()))
            elif name != _KEPT:
                value = of(value)
            if name != _KEPT:
                new.__dict__[name] = value
        for kind in type(module).__mro__:
            for slot in (kind.__dict__.get("__slots__") or ()) if kind is not object else ():
                if slot != "__dict__" and slot != "__weakref__" and hasattr(module, slot):
                    object.__setattr__(new, slot, getattr(module, slot))
    return twins.get(id(model), model)


_OWN_DICTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")

# --- Classes

_KEPT = "_fastmlp"  # where a module keeps what has been found in it; never saved
_MOST_PLANS = 8  # of a forward, for the states in which it has been called


class _Fused(nn.Module):
    """What all fused classes are derived from; their attribute `unfused` is the class before."""

    unfused: type[nn.Module]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing: a class that keeps a list of those derived from it has no use for ours."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self)
        made: Any = super().__reduce_ex__(protocol)
        maker, arguments, *rest = made
        maker = kind.unfused if maker is kind else maker
        arguments = tuple(kind.unfused if one is kind else one for one in arguments)
        if rest and isinstance(rest[0], dict) and _KEPT in rest[0]:
            rest[0] = {name: value for name, value in rest[0].items() if name != _KEPT}
        return (_remade, (maker, arguments, issubclass(kind, _FusedForward)), *rest)


def _remade(maker: Any, arguments: tuple[Any, ...], reads: bool) -> nn.Module:
    """A module of a fused class, as pickle and copy make it; its attributes come after."""
    module: nn.Module = maker(*arguments)
    with suppress(Untraceable):  # the class may have changed since
        set_class(module, _class_of(type(module), reads))
    return module


class _FusedSequential(_Fused):
    """A Sequential whose forward runs its chains."""

    def forward(self, input: Any) -> Any:
        modules = self._modules
        if not is_compiling():
            children = tuple(modules.values())
            kept = self.__dict__.get(_KEPT)
            if kept is None or kept[0] != children:
                kept = self.__dict__[_KEPT] = children, _pieces(modules)
            for piece in kept[1]:
                input = piece(input)
            return input
        network = read_modules(modules)
        if not isinstance(network, str) and runs(network, input):
            return functional.run(input, network)
        return super().forward(input)


def _pieces(modules: dict[str, Any]) -> tuple[Callable[[Any], Any], ...]:
    """A Sequential's chains, and its modules between them."""
    pieces = cut(modules).pieces
    return tuple(modules[one] if isinstance(one, str) else one for one in pieces)


class _FusedForward(_Fused):
    """A module with a forward of its own, which runs its chains."""


def _run_own_forward(base: type[nn.Module]) -> Callable[..., Any]:
    count, plain = len(required_inputs(base.forward)), base.forward

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if (
            len(args) != count
            or kwargs
            or base.forward is not plain
            or is_compiling()
            or forward_ad._current_level >= 0
            or any(type(one) is not Tensor for one in args)
        ):
            return base.forward(self, *args, **kwargs)
        plans = self.__dict__.setdefault(_KEPT, [])
        for plan in plans:
            if plan.holds():
                return plan.run(self, *args)
        plan = Plan.of_nothing(plain)
        if len(plans) < _MOST_PLANS:
            with suppress(Untraceable):
                plan = plan_of(self, base, _is_leaf)
            plans.append(plan)
        return plan.run(self, *args)

    return forward


def _class_of(base: type[nn.Module], reads: bool) -> type[nn.Module]:
    """The class of fused modules of a class, whose forward is read, or is a Sequential's."""
    if (base, reads) in _CLASSES:
        return _CLASSES[base, reads]
    parts: dict[str, Any] = {
        "unfused": base,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    mixin: type[_Fused] = _FusedForward if reads else _FusedSequential
    if reads:
        parts["forward"] = _run_own_forward(base)
    kind: type[nn.Module]
    kind = types.new_class(
        f"Fused{base.__name__}", (mixin, base), {}, lambda all: all.update(parts)
    )
    if is_sequential(base):
        READ_AS[kind] = nn.Sequential, kind.forward
    _CLASSES[base, reads] = kind
    return kind


_CLASSES: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}


# --- Finding

_OWN = (FusedMLP, FusedLinear, Gated, Residual)


class Findings(NamedTuple):
    """What has been found in a model.

    Attributes:
        chains: that run as one operation.
        reasons: why others are in none: linear layers, and modules whose forward stays as it is,
            by their names.
    """

    chains: list[Chain]
    reasons: dict[str, str]


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is called as it is by the forward that it is in."""
    kind = unfused(type(module))
    return (
        _is_torchs(kind)
        or isinstance(module, (*_OWN, torch.jit.ScriptModule, fx.GraphModule))
        or is_sequential(kind)
        or is_linear(kind)
        or "forward" in module.__dict__
        or any(getattr(module, hooks) for hooks in MODULE_HOOKS)
        or not is_called_as_usual(kind)
    )


def _is_torchs(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "torch"


def analyse(model: nn.Module) -> Findings:
    """Gives each module of a model that has chains its fused class."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[tuple[int, ...], Chain] = {}  # by their linear layers
    keys: dict[nn.Module, set[tuple[int, ...]]] = {}
    reasons: dict[str, str] = {}
    for module in reversed(list(names)):  # what is in a module comes before it
        base: type[nn.Module] = unfused(type(module))
        if isinstance(module, _Fused):
            set_class(module, base)
            module.__dict__.pop(_KEPT, None)
        if is_linear(base) and base not in (nn.Linear, FusedLinear):
            READ_AS[base] = nn.Linear, base.forward
        if is_sequential(base) and base not in (nn.Sequential, FusedMLP):
            READ_AS[base] = nn.Sequential, base.forward
        if isinstance(module, _OWN) or "forward" in module.__dict__:
            continue
        kept: Any = None
        if is_sequential(base):
            plans: list[Any] = [cut(module._modules)]
            kept = _joined(module, base, plans[0])
            if kept is not None:
                plans = kept
        elif _is_torchs(base) or isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
            continue
        else:
            try:
                kept = plans = _read_forward(module, base)
            except Untraceable as error:
                reasons[names[module]] = str(error)
                continue
        prefix = names[module] + "." if names[module] else ""
        for plan in plans:
            reasons.update((prefix + name, reason) for name, reason in plan.reasons.items())
        new = {_layers_of(chain): chain for plan in plans for chain in plan.chains}
        # What was read with it has its chains already.
        inner = {one for plan in plans for one in getattr(plan, "inner", ())}
        has = {key for one in inner for key in keys.get(one, ())}
        keys[module] = set(new) | has
        if not new.keys() <= has:
            found |= new
            try:
                set_class(module, _class_of(base, kept is not None))
            except Exception as error:  # of a metaclass, too
                reasons[names[module]] = f"its class takes no derived one: {error}"
                continue
            if kept is not None:
                module.__dict__[_KEPT] = kept
    return Findings(list(found.values()), reasons)


def read_forward(module: nn.Module) -> Plan:
    """The plan of a module's own forward, in its present mode.

    Raises:
        Untraceable: why there is none.
    """
    base = unfused(type(module))
    if not is_called_as_usual(base) or "forward" in module.__dict__:
        raise Untraceable("its class has a call of its own")
    return plan_of(module, base, _is_leaf)


def _joined(module: nn.Module, base: type[nn.Module], found: Cut) -> list[Plan] | None:
    """Plans of a Sequential in which there are forwards to be read, where they join more."""
    if all(map(_is_leaf, module.children())):
        return None
    try:
        plans = _read_forward(module, base)
    except Untraceable:
        return None
    layers = {id for chain in found.chains for id in _layers_of(chain)}
    more = {id for plan in plans for chain in plan.chains for id in _layers_of(chain)}
    return plans if more > layers else None


def _layers_of(chain: Chain) -> tuple[int, ...]:
    return tuple(map(id, linear_layers(chain.modules)))


def _read_forward(module: nn.Module, base: type[nn.Module]) -> list[Plan]:
    """Plans of a forward in the module's present mode, in training and in evaluation mode."""
    if not is_called_as_usual(base):
        raise Untraceable("its class has a call of its own")
    plans: list[Plan] = []
    refusal = None
    for mode in (None, not module.training, module.training):
        with _in_mode(module, mode):
            if any(plan.holds() for plan in plans):
                continue
            try:
                plans.append(plan_of(module, base, _is_leaf))
            except Untraceable as error:
                refusal = error
    if not plans and refusal is not None:
        raise refusal
    return plans


@contextmanager
def _in_mode(module: nn.Module, training: bool | None) -> Iterator[None]:
    """All modules in a module in training or evaluation mode for a while; None: as they are."""
    before = [(one.__dict__, one.training) for one in module.modules()]
    try:
        for values, was in before:
            values["training"] = was if training is None else training
        yield
    finally:
        for values, was in before:
            values["training"] = was
