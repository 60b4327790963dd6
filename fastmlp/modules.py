"""The modules: a Sequential and a Linear of torch.nn whose forward runs fused."""

from __future__ import annotations

import copy
import logging
import operator
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.modules import module as _module
from torch.nn.utils.fusion import fuse_linear_bn_eval
from torch.utils._device import DeviceContext

from fastmlp import _activations, functional
from fastmlp._network import Layer, Network, Norm, why_plain_when_compiled
from fastmlp._ops import _C

__all__ = ["FusedLinear", "FusedMLP", "Gated", "Residual"]

_log = logging.getLogger("fastmlp")

Activation: TypeAlias = "str | nn.Module | type[nn.Module] | None"
# Looked up in every call.
_call_model, _Module = _C.call_model, nn.Module
_MODULE_CALL, _MISSING = nn.Module.__call__, object()
_FOLDS_BATCH_NORM = fuse_linear_bn_eval.__code__

GLOBAL_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
# A module's dicts of hooks.
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Residual(nn.Sequential):
    """A `torch.nn.Sequential` whose input is added to its output: x + f(x).

    Inside a :class:`FusedMLP` it runs fused where its modules do and none is such a block itself.
    The form is that of K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image
    Recognition, CVPR 2016, with the block's activation inside.

    Shapes:
        input and output `(...)`, the same.

    Raises:
        RuntimeError: when called, where the output's shape is not the input's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input + f(input)`."""
        output: Tensor = super().forward(input)
        if isinstance(output, Tensor) and output.shape != input.shape:  # torch would broadcast
            raise RuntimeError(
                "fastmlp.Residual: expected the modules' output to have the input's shape "
                f"{tuple(input.shape)}, to which it is added, got {tuple(output.shape)}"
            )
        return input + output


class Gated(nn.Module):
    """A linear layer that another one gates: `first(x) * second(x)`.

    Inside a :class:`FusedMLP` it runs fused where each of the two is an `nn.Linear`, alone or in an
    `nn.Sequential` with an activation, of the same shape: GLU with a sigmoid, SwiGLU with SiLU,
    GEGLU with GELU, ReGLU with ReLU (Y. N. Dauphin, A. Fan, M. Auli, D. Grangier, Language Modeling
    with Gated Convolutional Networks, ICML 2017; N. Shazeer, GLU Variants Improve Transformer,
    2020).

    Args:
        first, second: the modules, which take the same input.

    Shapes:
        input `(..., in_features)`, output `(..., out_features)` of both.

    Example:
        >>> up = Gated(nn.Sequential(nn.Linear(32, 64), nn.SiLU()), nn.Linear(32, 64))
        >>> model = FusedMLP.from_sequential(nn.Sequential(up, nn.Linear(64, 32)))
        >>> model(torch.rand(8, 32)).shape
        torch.Size([8, 32])
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input: Tensor) -> Tensor:
        """`first(input) * second(input)`."""
        output: Tensor = self.first(input) * self.second(input)
        return output


class Rows(nn.Module):
    """What `view` and `reshape` do before a linear layer, in a forward that is read.

    Args:
        features: of a row, `x.view(-1, features)`; -1: `x.view(x.size(0), -1)`.
        reshapes: whether by `reshape`.
    """

    def __init__(self, features: int, reshapes: bool) -> None:
        super().__init__()
        self.features, self.reshapes = features, reshapes

    def forward(self, input: Tensor) -> Tensor:
        """The rows."""
        to = input.reshape if self.reshapes else input.view
        return to(input.size(0), -1) if self.features < 0 else to(-1, self.features)


def read_modules(modules: Mapping[str, nn.Module | None]) -> Network | str:
    """The network that these modules are, or why they are none that the operators know.

    Read anew in each call: modules, parameters and hooks can be exchanged at any time.

    Args:
        modules: by their names, in the order in which they run.
    """
    for hooks in GLOBAL_HOOKS:
        if hooks:
            return "a global module hook is registered"
    reader = Reader()
    reason = reader.read(modules)
    if reason is None and all(layer.norm is not Norm.NONE for layer in reader.network.layers):
        return "there is no linear layer"
    return reason or reader.network


class Reader:
    """As Reader of csrc/python/read_network.cpp, which knows no reasons.

    Args:
        as_trained: whether dropout counts in evaluation mode, too.
    """

    def __init__(self, as_trained: bool = False) -> None:
        self.network, self.as_trained = Network(), as_trained
        # What may still belong to the last layer: its activation, and then its dropout.
        self.takes_activation = self.takes_dropout = False
        self.residuals = 0  # that are open
        self.begin = 0  # the first layer of the innermost one

    @property
    def layer(self) -> Layer:
        return self.network.layers[-1]

    @property
    def pays(self) -> bool:
        """Whether there is more than one linear layer alone, which torch runs as fast."""
        layers = self.network.layers
        is_linear = any(layer.norm is Norm.NONE for layer in layers)
        is_more = any(layer.activation or layer.dropout or layer.skip for layer in layers)
        return is_linear and (is_more or len(layers) > 1)

    def read(self, modules: Mapping[str, nn.Module | None], prefix: str = "") -> str | None:
        """Appends the modules' layers to the network; returns why it cannot."""
        for name, module in modules.items():
            if module is None:
                return f"module {prefix}{name} is None"
            if any(getattr(module, hooks) for hooks in MODULE_HOOKS):
                return f"module {prefix}{name} has a hook"
            reason = self.read_module(f"{prefix}{name}", module)
            if reason is not None:
                return reason
            if "forward" in module.__dict__:
                return f"module {prefix}{name} has a forward of its own"
        return None

    def read_module(self, name: str, module: nn.Module) -> str | None:
        kind = type(module)
        if kind in READ_AS:
            like, forward = READ_AS[kind]
            kind = like if kind.forward is forward else kind
        if kind is nn.Linear or kind is FusedLinear:
            return self.read_linear(name, module)
        if kind is nn.Dropout:
            return self.read_dropout(name, module)  # type: ignore[arg-type]
        if kind is Residual:
            return self.read_residual(name, module)
        if kind is Gated:
            return self.read_gated(name, module)
        if kind in _NORMS:
            return self.read_norm(name, module, _NORMS[kind])
        if kind is nn.BatchNorm1d:
            return self.read_batch_norm(name, module)
        if kind is nn.PReLU:
            return self.read_prelu(name, module)
        if kind in _SOFTMAXES:
            return self.read_softmax(name, module, _SOFTMAXES[kind])
        if kind is nn.Flatten or kind is Rows:
            return self.read_flatten(name, module)
        if kind in _CONTAINERS:
            return self.read(module._modules, f"{name}.")
        found = _activations.read(module)
        if found is None:
            what = module._get_name() if module._modules else module
            return f"module {name}, {what}, is not fused"
        is_first = not self.takes_activation and self.begin == len(self.network.layers)
        if found[0] and is_first and getattr(module, "inplace", False):  # which others read, too
            return f"module {name} works in place on its input"
        return self.take_activation(name, *found)

    def take_activation(self, name: str, number: int, parameters: tuple[float, ...]) -> str | None:
        if number == 0:
            return None
        if not self.takes_activation:
            self.add_pass()
        self.layer.activation, self.layer.parameters = number, parameters
        self.takes_activation = False
        return None

    def read_flatten(self, name: str, module: nn.Module) -> str | None:
        if self.residuals or self.network.layers or self.network.flatten is not None:
            return f"module {name} does not lie before all linear layers"
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
            return f"module {name} leaves other dimensions than the first"
        self.network.flatten = module
        return None

    def read_linear(self, name: str, module: nn.Module) -> str | None:
        weight = module._parameters.get("weight")
        if weight is None or "bias" not in module._parameters:
            return f"the parameters of module {name} are computed"
        self.append(Layer(weight, module._parameters["bias"]))
        if type(module) is not FusedLinear:
            return None
        number = _activations.NUMBERS.get(module.activation)
        if number is None:
            return f"module {name} has the unknown activation {module.activation!r}"
        return self.take_activation(name, number, _activations.defaults(number))

    def read_norm(self, name: str, module: Any, norm: Norm) -> str | None:
        if len(module.normalized_shape) != 1:
            return f"module {name} is a norm over several dimensions"
        parameters = module._parameters
        weight = parameters.get("weight")
        if "weight" not in parameters or ("bias" not in parameters and norm is Norm.LAYER):
            return f"the parameters of module {name} are computed"
        if module.eps is None and weight is None:
            return f"module {name} is a norm without a weight and without an eps"
        eps = torch.finfo(weight.dtype).eps if module.eps is None else module.eps
        layer = Layer(weight, parameters.get("bias"), norm=norm, eps=float(eps))
        return self.append_norm(name, layer, module.normalized_shape[0])

    def read_batch_norm(self, name: str, module: Any) -> str | None:
        parameters, buffers = module._parameters, module._buffers
        if not {"weight", "bias"} <= parameters.keys() or not buffers.keys() >= _AVERAGES:
            return f"the parameters or the averages of module {name} are computed"
        mean, variance = buffers["running_mean"], buffers["running_var"]
        weight, bias = parameters["weight"], parameters["bias"]
        if (mean is None) != (variance is None) or (weight is None and bias is not None):
            return f"module {name} has one of two parameters or averages"
        finds = module.training or mean is None
        eps, momentum = module.eps, module.momentum
        if not isinstance(eps, (int, float)) or not (eps > 0 if finds else eps >= 0):
            return f"module {name} has the eps {eps}"
        if momentum is not None and not (isinstance(momentum, (int, float)) and momentum >= 0):
            return f"module {name} has the momentum {momentum}"
        count = buffers["num_batches_tracked"]
        if module.training and module.track_running_stats and mean is None and count is not None:
            return f"module {name} counts batches without averages of them"
        layer = Layer(weight, bias, norm=Norm.BATCH, eps=float(module.eps))
        if module.training and module.track_running_stats and count is not None:
            layer.averages = module
        if not finds:
            layer.norm, layer.mean, layer.variance = Norm.FIXED, mean, variance
        self.network.takes_rows = True
        return self.append_norm(name, layer, module.num_features)

    def read_prelu(self, name: str, module: nn.Module) -> str | None:
        weight = module._parameters.get("weight")
        if weight is None:
            return f"the parameters of module {name} are computed"
        if weight.dim() != 1:
            return f"the weight of module {name} is not one-dimensional"
        layer = Layer(weight, None, norm=Norm.PRELU)
        if weight.size(0) != 1:
            self.network.takes_rows = True
            return self.append_norm(name, layer, weight.size(0))
        self.append(layer)
        return None

    def append(self, layer: Layer) -> None:
        self.network.layers.append(layer)
        self.takes_activation = self.takes_dropout = True

    def append_norm(self, name: str, layer: Layer, features: int) -> str | None:
        weights = self.network.weights
        before = weights[-1].size(0) if weights else self.network.in_features
        if before is None:
            self.network.in_features = before = features
        if before != features:
            return f"module {name} is a norm of {features} features, and is given {before}"
        self.append(layer)
        return None

    def read_softmax(self, name: str, module: Any, norm: Norm) -> str | None:
        if module.dim not in (-1, 1):
            return f"module {name} is over dimension {module.dim}, not over the last one"
        if module.dim == 1:
            self.network.takes_rows = True
        self.append(Layer(None, None, norm=norm))
        return None

    def add_pass(self) -> None:
        """What follows a layer begins another where that has its own already."""
        self.network.layers.append(Layer(None, None, norm=Norm.PASS))

    def read_dropout(self, name: str, module: nn.Dropout) -> str | None:
        if module.inplace:
            return f"module {name} works in place"
        if not 0 <= module.p <= 1:
            return f"module {name} has no probability, but {module.p}"
        if (module.training or self.as_trained) and module.p > 0:
            if not self.takes_dropout:
                self.add_pass()
            self.layer.dropout = float(module.p)
            self.takes_activation = self.takes_dropout = False
        return None

    def read_gated(self, name: str, gated: nn.Module) -> str | None:
        halves: list[list[Layer]] = []
        outer, reason = self.begin, None
        self.residuals += 1
        for half, module in gated._modules.items():
            self.begin = len(self.network.layers)
            self.takes_activation = self.takes_dropout = False
            reason = reason or self.read({half: module}, f"{name}.")
            halves.append(self.network.layers[self.begin :])
        self.residuals -= 1
        self.begin = outer
        if reason is not None:
            return reason
        layers = [half[0] for half in halves if len(half) == 1 and half[0].is_half_of_gate]
        if len(halves) != 2 or len(layers) != 2:
            return f"module {name} is not of two linear layers with their activations alone"
        if layers[0].weight.shape != layers[1].weight.shape:  # type: ignore[union-attr]
            return f"module {name} is of two linear layers of different shapes"
        self.layer.gates = True
        self.takes_activation = self.takes_dropout = False
        return None

    def read_residual(self, name: str, block: nn.Module) -> str | None:
        before = len(self.network.layers)
        self.takes_activation = self.takes_dropout = False
        self.residuals += 1
        outer, self.begin = self.begin, before
        reason = self.read(block._modules)
        self.residuals -= 1
        self.begin = outer
        if reason is not None:
            return f"module {name}: {reason}"
        if len(self.network.layers) > before and self.layer.gates:
            self.add_pass()
        layers = self.network.layers[before:]
        if all(layer.norm is not Norm.NONE for layer in layers):
            return f"module {name}: there is no linear layer"
        if any(layer.skip for layer in layers):
            return f"module {name}: it holds another block"
        if len(layers) > _MOST_SKIPPED:
            return f"module {name}: it holds more than {_MOST_SKIPPED} layers"
        weights = Network(layers).weights
        if weights[0].size(-1) != weights[-1].size(0):
            return f"module {name}: its output is not as wide as its input"
        self.layer.skip = len(layers)
        self.takes_activation = self.takes_dropout = False
        return None


def runs(network: Network, input: Tensor) -> bool:
    """Whether the network of some modules does all that they do to an input."""
    if input.dim() == 0 or network.why_modules(input) is not None:
        return False
    if not network.finds_statistics:
        return True
    # Where no average is written, torch.func's transforms take torch's BatchNorm, and not ours.
    writes = all(one.averages is not None for one in network.layers if one.norm is Norm.BATCH)
    return (
        writes and is_compiling() and why_plain_when_compiled(network.flat(input), network) is None
    )


def runs_its_modules(module: Any) -> bool:
    """Whether a module's class makes it call its modules, one after the other, and no more."""
    return is_sequential(unfused(type(module)))


def unfused(kind: type) -> type:
    """The class that a fused one was made of (fusion.py); any other itself."""
    return kind.__dict__.get("unfused", kind)  # type: ignore[no-any-return]


def is_sequential(kind: type) -> bool:
    """Whether a class makes its modules call theirs, one after the other, and no more."""
    return issubclass(kind, nn.Sequential) and _keeps(
        kind, ("forward", *_CALLED, "__iter__"), nn.Sequential, FusedMLP
    )


def is_linear(kind: type) -> bool:
    """Whether a class makes its modules compute what nn.Linear does, and no more."""
    return issubclass(kind, nn.Linear) and _keeps(kind, ("forward", *_CALLED), nn.Linear)


def is_called_as_usual(kind: type) -> bool:
    """Whether calling a class's modules runs their hooks and their forward, as torch has it."""
    return _keeps(kind, _CALLED, nn.Module)


def _keeps(kind: type, names: Sequence[str], *bases: type) -> bool:
    return all(any(getattr(kind, name) is getattr(base, name) for base in bases) for name in names)


_CALLED = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")


class FusedMLP(nn.Sequential):
    """A multilayer perceptron: `torch.nn.Sequential` of linear layers and activations, run as one.

    Names, `state_dict`, initial values under a seed, and results are those of the plain
    `nn.Sequential`; forward is one operation, and backward another. What the fused operations do
    not cover (other dtypes and devices, hooks on the layers, replaced layers, autocast, torch.func
    transforms, …) runs as the plain `nn.Sequential` would; :meth:`why_plain` and the debug messages
    of the logger "fastmlp" tell.

    Hidden layers are reached by slices, which share the modules and run fused themselves:
    ``lower, upper = model[:2], model[2:]`` and ``hidden = lower(x); y = upper(hidden)``.

    Args:
        sizes: features of the input, of each hidden layer, and of the output; at least two.
        activation: after each layer but the last: a name of `fastmlp.functional.ACTIVATIONS` or of
            a class of torch.nn ("ReLU"), an activation module of torch.nn (copied for each layer)
            or its class, or None for no module at all.
        output_activation: after the last layer, likewise.
        bias: whether the layers have one.
        dropout: probability with which an `nn.Dropout` after each activation but the output's sets
            an element to zero in training mode; None for no such modules. Under a seed, the
            elements are those that the plain `nn.Sequential` would set to zero (N. Srivastava et
            al., Dropout, JMLR 2014).
        residual: whether each hidden layer with as many out_features as in_features is a
            :class:`Residual` of its linear layer, norm, activation and dropout.
        norm: after each linear layer but the output's, before its activation, as torchvision's MLP
            has it: "layer" (`nn.LayerNorm`), "rms" (`nn.RMSNorm`), "batch" (`nn.BatchNorm1d`, for
            inputs of two dimensions) or None.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Shapes:
        input `(..., sizes[0])`, output `(..., sizes[-1])`.

    Raises:
        ValueError: fewer than two sizes, an unknown activation or norm, or a dropout outside of
            [0, 1].
        TypeError: modules in place of sizes; :meth:`from_sequential` takes these.

    Example:
        >>> model = FusedMLP([784, 300, 10])
        >>> model(torch.rand(50, 784)).shape
        torch.Size([50, 10])
    """

    def __init__(
        self,
        sizes: Sequence[int] | OrderedDict[str, nn.Module],
        *modules: nn.Module,
        activation: Activation = "relu",
        output_activation: Activation = None,
        bias: bool = True,
        dropout: float | None = None,
        residual: bool = False,
        norm: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(sizes, OrderedDict):  # how nn.Sequential makes its slices
            super().__init__(sizes)
            return
        given = (sizes, *modules)
        if any(isinstance(one, nn.Module) for one in (*given, *_items(sizes))):
            raise TypeError(
                "fastmlp.FusedMLP: expected sizes, such as [784, 300, 10], got modules. For a "
                "FusedMLP of these: FusedMLP.from_sequential(nn.Sequential(…))"
            )
        if modules:
            raise TypeError(
                "fastmlp.FusedMLP: expected the sizes in one list, such as [784, 300, 10], and all "
                f"else by name, got {', '.join(map(repr, given))}"
            )
        super().__init__()
        if dropout is not None and not 0 <= dropout <= 1:
            raise ValueError(
                f"fastmlp: expected a dropout probability between 0 and 1, got {dropout}"
            )
        if norm is not None and norm not in _NORM_KINDS:
            raise ValueError(
                f"fastmlp: expected a norm of {', '.join(map(repr, _NORM_KINDS))} or None, got "
                f"{norm!r}"
            )
        try:
            sizes = [operator.index(size) for size in sizes]
        except TypeError:
            raise TypeError(
                f"fastmlp.FusedMLP: expected sizes, such as [784, 300, 10], got {sizes!r}"
            ) from None
        if len(sizes) < 2:
            raise ValueError(f"fastmlp: expected at least two sizes (input, output), got {sizes}")
        for i, (in_features, out_features) in enumerate(pairwise(sizes)):
            layer: list[nn.Module]
            layer = [nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)]
            hidden = i + 2 < len(sizes)
            if hidden and norm is not None:
                layer.append(_NORM_KINDS[norm](out_features, device=device, dtype=dtype))
            after = activation if hidden else output_activation
            if after is not None:
                layer.append(_make_activation(after))
            if hidden and dropout is not None:
                layer.append(nn.Dropout(dropout))
            if hidden and residual and in_features == out_features:
                layer = [Residual(*layer)]
            self.extend(layer)

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential) -> FusedMLP:
        """A FusedMLP of the very modules of a Sequential, so that both share their parameters.

        Raises:
            TypeError: another module than a Sequential, or one with a forward of its own.
            ValueError: the Sequential has hooks, parameters or buffers of its own, beside those of
                its modules.
        """
        if not runs_its_modules(sequential) or "forward" in vars(sequential):
            own = " with a forward of its own" if isinstance(sequential, nn.Sequential) else ""
            raise TypeError(
                "fastmlp.FusedMLP.from_sequential: expected an nn.Sequential, got "
                f"{type(sequential).__name__}{own}, whose modules do not tell what it computes"
            )
        if any(getattr(sequential, hooks) for hooks in MODULE_HOOKS):
            raise ValueError(
                "fastmlp.FusedMLP.from_sequential: the Sequential has a hook, which would stay "
                "behind. Remove it, and register it on the FusedMLP"
            )
        if sequential._parameters or sequential._buffers:
            names = ", ".join([*sequential._parameters, *sequential._buffers])
            raise ValueError(
                "fastmlp.FusedMLP.from_sequential: expected a Sequential without parameters and "
                f"buffers of its own, got one with {names}"
            )
        model = cls(OrderedDict(sequential._modules.items()))
        model.training = sequential.training
        return model

    def as_sequential(self) -> nn.Sequential:
        """The plain `nn.Sequential` of the very same modules.

        Hooks on this model itself, and what a derived class adds, stay behind.
        """
        sequential = nn.Sequential(OrderedDict(self._modules.items()))
        sequential.training = self.training
        return sequential

    def __call__(self, input: Any = _MISSING, /, *args: Any, **kwargs: Any) -> Any:
        """As of `torch.nn.Module`, whose own call and a frame for `forward` would take a quarter of
        a small network's time."""
        # Tracers put another function in the place of nn.Module's.
        is_one_input = input is not _MISSING and not args and not kwargs
        if (
            is_one_input
            and _Module.__call__ is _MODULE_CALL
            and not is_compiling()
            and forward_ad._current_level < 0
        ):
            output = _call_model(self, input)
            if output is NotImplemented:
                return self._run_plain(input)
            if output is not None:
                return output
        if input is _MISSING:
            return super().__call__(**kwargs)
        return super().__call__(input, *args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """`(..., sizes[0])` to `(..., sizes[-1])`."""
        if not is_compiling() and forward_ad._current_level < 0:
            output = _C.run_modules(self._modules, input)
            if output is not None:
                return output
            return self._run_plain(input)
        network = self._network()
        if not isinstance(network, str) and runs(network, input):
            return functional.run(input, network)
        plain: Tensor = super().forward(input)
        return plain

    def _run_plain(self, input: Tensor) -> Tensor:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("plain path: %s", self.why_plain(input))
        plain: Tensor = super().forward(input)
        return plain

    def why_plain(self, input: Tensor) -> str | None:
        """Why `model(input)` runs as the plain Sequential would, None where it runs fused."""
        network = self._network()
        return network if isinstance(network, str) else functional.why_plain(input, network)

    def _network(self) -> Network | str:
        return read_modules(self._modules)


class FusedLinear(nn.Linear):
    """A `torch.nn.Linear` with its activation: `activation(input @ weight.T + bias)` in one step.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        activation: a name of `fastmlp.functional.ACTIVATIONS` or of a class of torch.nn ("ReLU"),
            or such a class; None is "identity".

    Shapes:
        input `(..., in_features)`, output `(..., out_features)`.

    Raises:
        ValueError: an unknown activation.
        TypeError: from `torch.nn.utils.fusion.fuse_linear_bn_eval`, where there is an activation:
            a BatchNorm after it cannot be folded into what comes before.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | type[nn.Module] | None = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        number = _activations.number_of(activation)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = _activations.ALL[number].name

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedLinear:
        # torch's function asks no more of what it takes than a weight and a bias; others look for
        # the very type nn.Linear.
        caller = sys._getframe(1).f_back
        if self.activation != "identity" and caller and caller.f_code is _FOLDS_BATCH_NORM:
            raise TypeError(
                f"fastmlp.FusedLinear: a BatchNorm after the activation {self.activation!r} cannot "
                "be folded into the linear layer before it"
            )
        # What copy.deepcopy does where there is no __deepcopy__.
        twin: FusedLinear = copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
        return twin

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        return functional.linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        """As of `torch.nn.Linear`, with the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


def _items(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes) if isinstance(sizes, (list, tuple)) else ()


def _make_activation(activation: str | nn.Module | type[nn.Module]) -> nn.Module:
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        try:
            return activation()
        except TypeError as error:
            raise TypeError(
                f"fastmlp.FusedMLP: the activation {activation.__name__} cannot be made without "
                f"arguments ({error}). Pass a module instead of its class"
            ) from None
    return _activations.ALL[_activations.number_of(activation)].make()


_CONTAINERS = (nn.Sequential, FusedMLP)  # which run their modules one after the other
_MOST_SKIPPED = 255  # kMostSkipped of csrc/network/program.h
_NORM_KINDS: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d}
_NORMS: dict[type, Norm] = {nn.LayerNorm: Norm.LAYER, nn.RMSNorm: Norm.RMS}
_SOFTMAXES: dict[type, Norm] = {nn.Softmax: Norm.SOFTMAX, nn.LogSoftmax: Norm.LOG_SOFTMAX}
_AVERAGES = {"running_mean", "running_var", "num_batches_tracked"}
# Derived classes that keep what the reader goes by: which of those it knows they work like, and
# their forward, which may not become another.
READ_AS: dict[type, tuple[type, Any]] = {}

_C.know_modules(
    {
        "linear": nn.Linear,
        "fused_linear": FusedLinear,
        "fused_mlp": FusedMLP,
        "dropout": nn.Dropout,
        "residual": Residual,
        "gated": Gated,
        "flatten": nn.Flatten,
        "rows": Rows,
        "layer_norm": nn.LayerNorm,
        "rms_norm": nn.RMSNorm,
        "batch_norm": nn.BatchNorm1d,
        "softmax": nn.Softmax,
        "log_softmax": nn.LogSoftmax,
        "prelu": nn.PReLU,
        "read_as": READ_AS,
        "device_context": DeviceContext,
        "containers": list(_CONTAINERS),
    },
    [activation.kind for activation in _activations.ALL],
    _activations.NUMBERS,
    list(GLOBAL_HOOKS),
    list(MODULE_HOOKS),
)
