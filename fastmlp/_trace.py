"""A module's own forward, read by torch.fx and written anew with its chains as one operation each.

Only a forward that does nothing else than what torch.fx sees is read (_source.py). What it depends
on beside its inputs is compared in each call, and where that has changed it is read again.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any

from fastmlp import _activations
from fastmlp._chain import OWNER, Chain, cut
from fastmlp._source import Dependencies, Untraceable
from fastmlp.modules import GLOBAL_HOOKS, MODULE_HOOKS, Gated, Reader, Residual, Rows, unfused


class Plan:
    """A forward as it is run.

    Attributes:
        chains: what runs as one operation.
        whole: modules that, one after the other, are all that the forward does to its only input;
            None: it is more.
        reasons: why linear layers are in no chain, by their names.
        inner: the modules whose forwards were read with it.
        holds: whether all is as it was when the forward was read.
        run: the forward, of the module and its inputs.
    """

    def __init__(
        self,
        chains: list[Chain],
        whole: dict[str, nn.Module] | None,
        reasons: dict[str, str],
        inner: list[nn.Module],
        holds: Callable[[], bool],
        run: Callable[..., Any],
    ) -> None:
        self.chains, self.whole, self.reasons, self.inner = chains, whole, reasons, inner
        self.holds, self.run = holds, run

    @classmethod
    def of_nothing(cls, forward: Callable[..., Any]) -> Plan:
        """A forward as it is, whatever comes."""
        return cls([], None, {}, [], lambda: True, forward)


def plan_of(module: nn.Module, base: type[nn.Module], is_leaf: Callable[[nn.Module], bool]) -> Plan:
    """The forward of a module, with chains.

    Args:
        module: whose forward takes tensors, and is asked for with its defaults alone.
        base: the class whose forward it is.
        is_leaf: whether a module in it is called as it is, and not read.

    Raises:
        Untraceable: why it cannot be.
    """
    required_inputs(base.forward)
    depends, bases = Dependencies(), {module: base}
    with _LOCK:
        _depend(depends, module, base)
        _collect(module, is_leaf, bases, depends)
        graph = _Tracer(bases).read(module)
        paths = _paths(graph, module)
        whole = _whole(graph, paths)
        chains, reasons = _join(graph, module, paths)
        code = graph.python_code("self")
        names: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, f"<fastmlp: forward of {base.__name__}>", "exec"), names)
        _, *inner = bases
        return Plan(chains, whole, reasons, inner, depends.holds(), names["forward"])


def _depend(depends: Dependencies, module: nn.Module, base: type[nn.Module]) -> None:
    depends.check(base.forward, module, base)
    kind = depends.name(base)
    depends.add(f"{kind}.forward is {depends.name(base.forward)}")
    depends.add(f"{kind}.__call__ is {depends.name(nn.Module.__call__)}")
    depends.hold_module(module)


def _collect(
    module: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    bases: dict[nn.Module, type[nn.Module]],
    depends: Dependencies,
) -> None:
    """Finds the modules in a module whose forward can be read, too."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            depends.hold_module(child)
        elif child in bases or is_leaf(child):
            continue
        else:
            base = unfused(type(child))
            try:  # apart: what a forward that cannot be read depends on is of no interest
                _depend(Dependencies(), child, base)
            except Untraceable:
                continue
            _depend(depends, child, base)
            values = child.__dict__
            for hooks in MODULE_HOOKS:
                depends.add(f"not {depends.name(values[hooks])}")
            depends.add(f"'forward' not in {depends.name(values)}")
            depends.add(f"{depends.name(child)}.__class__ is {depends.name(type(child))}")
            for every in GLOBAL_HOOKS:
                depends.add(f"not {depends.name(every)}")
            bases[child] = base
        _collect(child, is_leaf, bases, depends)


def required_inputs(forward: Callable[..., Any]) -> list[str]:
    """The names of a forward's inputs beside those with a default."""
    names = []
    for name, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise Untraceable(f"its forward takes {parameter}, any number of arguments")
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise Untraceable(f"its forward has to be given {name} by name")
        names.append(name)
    if not names:
        raise Untraceable("its forward takes no input")
    return names


_LOCK = threading.RLock()


# --- Reading


class _Proxy(fx.Proxy):
    """Stands for a tensor. What would tell the one from the other ends the reading."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        caller = inspect.currentframe().f_back  # type: ignore[union-attr]
        if caller is not None and str(caller.f_globals.get("__name__", "")).startswith("torch."):
            return _Proxy
        raise self.tracer.refused("its forward asks for the type of a value")  # type: ignore[attr-defined]


class _OfInputsAlone(TorchFunctionMode):
    """Refuses what torch would compute while the forward is read, and never again."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not tree_any(lambda one: isinstance(one, fx.Proxy), (args, kwargs)):
            name = getattr(func, "__name__", str(func))
            raise self.tracer.refused(f"its forward calls {name} on none of its inputs")
        return func(*args, **(kwargs or {}))


class _Tracer(fx.Tracer):
    """Reads a forward once, and what it depends on."""

    proxy_buffer_attributes = True

    def __init__(self, bases: dict[nn.Module, type[nn.Module]]) -> None:
        super().__init__()
        self.bases = bases  # the modules whose forward is read, the outermost first
        self.thread = threading.get_ident()
        self.refusal: Untraceable | None = None

    def refused(self, reason: str) -> Untraceable:
        if self.refusal is None:
            self.refusal = Untraceable(reason)
        return self.refusal

    def read(self, root: nn.Module) -> fx.Graph:
        """The graph of a module's forward."""
        kinds = {module: type(module) for module in self.bases}
        try:
            for module, base in self.bases.items():
                set_class(module, base)
            with _OfInputsAlone(self):
                return self.trace(root)
        except Exception as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            raise self.refusal or Untraceable(f"torch.fx cannot trace it: {text}") from None
        finally:
            for module, kind in kinds.items():
                set_class(module, kind)

    # What torch.fx asks of a tracer

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = required_inputs(type(self.root).forward)
        return root_fn, [
            self.root,
            *(self.create_proxy("placeholder", name, (), {}) for name in names),
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.bases

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:  # torch.fx traces all threads' calls
            return forward(*args, **kwargs)
        if m not in self.submodule_paths:  # type: ignore[operator]
            raise self.refused(f"its forward calls a {type(m).__name__} that is no child of it")
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def get_fresh_qualname(self, prefix: str) -> str:
        raise self.refused("its forward uses a tensor that is no parameter and no buffer")


def set_class(module: nn.Module, kind: type) -> None:
    object.__setattr__(module, "__class__", kind)


# --- Joining


def _whole(graph: fx.Graph, paths: list[list[_Step]]) -> dict[str, nn.Module] | None:
    """The modules of a path that is all of a graph."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    for path in paths:
        own = {node for step in path for node in step.nodes} | {output, *inputs}
        read = {node for node in graph.nodes if node.op == "get_attr" and set(node.users) <= own}
        ends = path[0].input, *output.args
        if own | read == set(graph.nodes) and ends == (*inputs, path[-1].nodes[-1]):
            return {step.name: step.module for step in path}
    return None


def _join(
    graph: fx.Graph, root: nn.Module, paths: list[list[_Step]]
) -> tuple[list[Chain], dict[str, str]]:
    """Makes each chain in a graph one call; returns the chains, and why others are none."""
    chains: list[Chain] = []
    reasons: dict[str, str] = {}
    places = {node: i for i, node in enumerate(graph.nodes)}
    for path in paths:
        found = cut({step.name: step.module for step in path})
        reasons |= found.reasons
        by_name = {step.name: step for step in path}
        for chain in found.chains:
            steps = [by_name[name] for name in chain.names]
            own = [node for step in steps for node in step.nodes]
            first, last = min(map(places.__getitem__, own)), max(map(places.__getitem__, own))
            between = [n for n in graph.nodes if first < places[n] < last and n not in own]
            if not all(_is_pure(node, root) for node in between):
                for step in steps:
                    reasons[step.name] = "something between its layers may change their values"
                continue
            end = steps[-1].nodes[-1]
            with graph.inserting_after(end):
                call = graph.call_function(chain, (steps[0].input,))
            end.replace_all_uses_with(call)
            for node in sorted(own, key=places.__getitem__, reverse=True):
                graph.erase_node(node)
            places[call] = places[end]
            chains.append(chain)
            # Paths above that begin where this one ends.
            for other in paths:
                for step in other:
                    if step.input is end:
                        step.input = call
    graph.lint()
    return chains, reasons


class _Step:
    """What a node, or the nodes of a residual block, do to one value.

    Attributes:
        input: the node whose value it takes.
        module: that does the same.
        name: of the module, or of the node.
        nodes: in the order of the graph.
    """

    def __init__(self, input: fx.Node, module: nn.Module, name: str, nodes: list[fx.Node]) -> None:
        self.input, self.module, self.name, self.nodes = input, module, name, nodes


def _paths(graph: fx.Graph, root: nn.Module) -> list[list[_Step]]:
    """Steps whose values nothing else reads but the next one, as many in a row as there are."""
    ends: dict[fx.Node, list[_Step]] = {}  # paths by their last node
    for node in graph.nodes:
        step = _residual(node, ends) or _gated(node, ends) or _rows(node) or _step(node, root)
        if step is None:
            continue
        users = {user for user in step.input.users if user not in step.nodes}
        path = [] if users else ends.pop(step.input, [])
        if any(step.name == other.name for other in path):  # a layer that is used again
            step.name = f"{step.name}@{node.name}"
        ends[node] = [*path, step]
    return list(ends.values())


def _is_of_two(node: fx.Node, functions: tuple[Any, ...], method: str) -> bool:
    """Whether a node is one of some functions, or a method, of two values and no more."""
    is_function = node.op == "call_function" and node.target in functions
    is_one = is_function or (node.op == "call_method" and node.target == method)
    return is_one and not node.kwargs and len(node.args) == 2


def _residual(node: fx.Node, ends: dict[fx.Node, list[_Step]]) -> _Step | None:
    """x + f(x), where f is a path from x that the reader knows as a block."""
    if not _is_of_two(node, (operator.add, torch.add), "add"):
        return None
    for input, end in (node.args, reversed(node.args)):
        if not isinstance(input, fx.Node) or not isinstance(end, fx.Node) or input is end:
            continue
        path = ends.get(end)
        if path is None or path[0].input is not input or len(end.users) != 1:
            continue
        block = Residual()
        for i, step in enumerate(path):
            block.add_module(str(i), step.module)
        if Reader(as_trained=True).read({"block": block}) is None:
            del ends[end]
            names = "+".join(step.name for step in path)
            return _Step(input, block, names, [*(n for s in path for n in s.nodes), node])
    return None


def _gated(node: fx.Node, ends: dict[fx.Node, list[_Step]]) -> _Step | None:
    """f(x) * g(x), where both are paths from x that the reader knows as halves of a gate."""
    if not _is_of_two(node, (operator.mul, torch.mul), "mul"):
        return None
    halves = [ends.get(end) if isinstance(end, fx.Node) else None for end in node.args]
    first, second = halves
    if first is None or second is None or first is second:
        return None
    if first[0].input is not second[0].input or any(
        set(end.users) != {node}  # type: ignore[union-attr]
        for end in node.args
    ):
        return None
    block = Gated(*(nn.Sequential(*(step.module for step in half)) for half in (first, second)))
    if Reader(as_trained=True).read({"block": block}) is not None:
        return None
    for end in node.args:
        del ends[end]  # type: ignore[arg-type]
    steps = [*first, *second]
    names = "+".join(step.name for step in steps)
    return _Step(first[0].input, block, names, [*(n for s in steps for n in s.nodes), node])


def _rows(node: fx.Node) -> _Step | None:
    """x.view(-1, n) or x.view(x.size(0), -1), or by reshape."""
    if node.op != "call_method" or node.target not in ("view", "reshape") or node.kwargs:
        return None
    if len(node.args) != 3 or not isinstance(node.args[0], fx.Node):
        return None
    input, (rows, features) = node.args[0], node.args[1:]
    reshapes = node.target == "reshape"
    if rows == -1 and type(features) is int and features > 0:
        return _Step(input, Rows(features, reshapes), node.name, [node])
    size = _size(rows, input, node)
    if features != -1 or size is None:
        return None
    return _Step(input, Rows(-1, reshapes), node.name, [*size, node])


def _size(value: Any, input: fx.Node, user: fx.Node) -> list[fx.Node] | None:
    """The nodes of x.size(0) or x.shape[0] that only one node reads."""
    if not isinstance(value, fx.Node) or set(value.users) != {user} or value.kwargs:
        return None
    if value.op == "call_method" and value.target == "size" and value.args == (input, 0):
        return [value]
    shape = value.args[0]
    if value.target is not operator.getitem or value.args[1] != 0 or not isinstance(shape, fx.Node):
        return None
    is_shape = shape.target is getattr and shape.args == (input, "shape")
    return [shape, value] if is_shape and set(shape.users) == {value} else None


def _step(node: fx.Node, root: nn.Module) -> _Step | None:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    input = node.args[0]
    if node.op == "call_module":
        if len(node.args) > 1 or node.kwargs:
            return None
        name = str(node.target)
        return _Step(input, root.get_submodule(name), name, [node])
    if node.target is F.linear:
        layer = _linear(node, root)
        return None if layer is None else _Step(input, layer[1], layer[0], [node])
    if len(node.all_input_nodes) != 1:
        return None
    module = _module_of(node, tuple(node.args[1:]), dict(node.kwargs))
    return None if module is None else _Step(input, module, node.name, [node])


def _linear(node: fx.Node, root: nn.Module) -> tuple[str, nn.Module] | None:
    """The linear layer whose weight and bias F.linear is given, in a forward of another class; as
    one that shares its parameters, whatever they may be later."""
    weight, bias = (
        node.args[i] if len(node.args) > i else node.kwargs.get(name)
        for i, name in ((1, "weight"), (2, "bias"))
    )
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    owner, _, name = str(weight.target).rpartition(".")
    module = root.get_submodule(owner)
    expected = module._parameters.get("bias") is not None
    is_bias = isinstance(bias, fx.Node) and bias.target == f"{owner}.bias".lstrip(".")
    if not isinstance(module, nn.Linear) or name != "weight" or is_bias != expected:
        return None
    if bias is not None and not is_bias:
        return None
    layer = nn.Linear(1, 1, device="meta")
    layer.__dict__.update({"_parameters": module._parameters, OWNER: module})
    layer.in_features, layer.out_features = module.in_features, module.out_features
    return owner, layer


def _module_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """A module that does the same as a function or a method."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        spaces: tuple[Any, ...] = (F, torch)
        if not any(getattr(space, name, None) is node.target for space in spaces):
            return None
    elif node.op == "call_method":
        name = str(node.target)
    else:
        return None
    if name == "dropout" and node.op == "call_function":
        return _dropout(*args, **kwargs)
    if name == "flatten":
        dims = dict(zip(("start_dim", "end_dim"), args, strict=False)) | kwargs
        return nn.Flatten() if dims in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}) else None
    if name in ("softmax", "log_softmax"):
        kwargs = {key: value for key, value in kwargs.items() if key != "_stacklevel"}
        if kwargs.get("dtype", 0) is None:
            del kwargs["dtype"]
        dim = args[0] if len(args) == 1 else kwargs.get("dim")
        if len(args) + len(kwargs) != 1 or type(dim) is not int:
            return None
        return nn.Softmax(dim) if name == "softmax" else nn.LogSoftmax(dim)
    for activation in _activations.ALL:
        mode_name = activation.mode_name  # gelu's, which is one function of two kinds
        if mode_name is None and activation.name == name:
            break
        if mode_name and activation.op == name and kwargs.get(mode_name, "none") == activation.mode:
            break
    else:
        return None
    inplace = kwargs.pop(
        "inplace", False
    )  # the reader sees to it that nothing else reads the value
    if activation.mode_name is not None:
        kwargs.pop(activation.mode_name, None)
        if args or kwargs:
            return None
        return _in_place(activation.make(), inplace)
    names = list(activation.parameters)
    if len(args) > len(names) or not kwargs.keys() <= set(names):
        return None
    given = dict(zip(names, args, strict=False)) | kwargs
    if not all(isinstance(value, (int, float)) for value in given.values()):
        return None
    module = activation.kind(**given)
    return _in_place(module, inplace) if _activations.read(module) is not None else None


def _in_place(module: nn.Module, inplace: Any) -> nn.Module:
    if inplace:
        module.inplace = True  # type: ignore[assignment]
    return module


def _dropout(p: Any = 0.5, training: Any = True, inplace: Any = False) -> nn.Module | None:
    if not isinstance(p, (int, float)) or not 0 <= p <= 1 or inplace:
        return None
    return nn.Dropout(p).train(bool(training))


# By their very types: one derived from them may have another forward.
_QUIET_MODULES = frozenset(
    (
        nn.Linear, nn.Identity, nn.Flatten, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d,
        nn.BatchNorm2d, nn.Conv1d, nn.Conv2d, nn.PReLU,
    )
)  # fmt: skip
_OF_CHANCE = ("dropout",)  # what _source.py lets through


def _is_pure(node: fx.Node, root: nn.Module) -> bool:
    """Whether it makes no difference if a node comes before or after others: it neither writes
    anything nor draws random numbers. (Functions and methods are those that _source.py takes.)"""
    if node.kwargs.get("inplace") or any(one is True for one in node.args):  # as F.relu takes it
        return False
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        is_activation = _activations.read(module) is not None
        is_quiet = type(module) in _QUIET_MODULES or is_activation
        return is_quiet and not getattr(module, "inplace", False)
    if isinstance(node.target, Chain):
        inside = (one for module in node.target.modules for one in module.modules())
        return not any(isinstance(one, nn.modules.dropout._DropoutNd) for one in inside)
    name = str(getattr(node.target, "__name__", node.target))
    return not any(part in name for part in _OF_CHANCE)
