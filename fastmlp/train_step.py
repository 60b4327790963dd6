"""A whole training step in one call: forward, loss, backward and update."""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_module

from fastmlp._network import Network
from fastmlp._ops import _C
from fastmlp.functional import why_plain
from fastmlp.modules import MODULE_HOOKS, FusedMLP, read_modules, runs_its_modules

if TYPE_CHECKING:
    from fastmlp._fit import Report, Table
    from fastmlp._trace import Plan

__all__ = ["TrainStep"]

# torch's classes, in the order of the extension's lists; a loss whose targets may be of two kinds
# stands there twice.
_LOSSES = [getattr(nn, name) for name in _C.LOSSES]
_CLASS_LOSSES = {getattr(nn, name) for name in _C.CLASS_LOSSES}
_VARIANCE_LOSSES = {getattr(nn, name) for name in _C.VARIANCE_LOSSES}
_OPTIMIZERS = [getattr(torch.optim, name) for name in _C.OPTIMIZERS]
_C.know_training(_LOSSES, _OPTIMIZERS)
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_OPTIMIZER_HOOKS = (
    optimizer_module._global_optimizer_pre_hooks,
    optimizer_module._global_optimizer_post_hooks,
)


class TrainStep:
    """One training step of a plain multilayer perceptron, as one operation on the CPU.

    ``step(x, y)`` does what the plain loop does ::

        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)  # where it is given
        optimizer.step()

    with the same numbers up to rounding. The model, the loss and the optimizer stay the truth: they
    are read anew in each step, so that learning rates, schedulers, frozen parameters and loaded
    checkpoints act at once, and the optimizer's state lies in ``optimizer.state`` under torch's own
    keys. Steps and plain loops may alternate. Two differences: ``.grad`` is left as it is, and the
    loss returned is not part of an autograd graph.

    Args:
        model: a :class:`FusedMLP`, or a ``torch.nn.Sequential`` (nested or not) of ``nn.Linear``
            and activations that :mod:`fastmlp.functional` knows, of ``nn.Dropout``, norms,
            softmaxes, ``nn.PReLU``, :class:`Residual` and :class:`Gated`, float32 or float64, on
            the CPU; or a module of whose own forward :func:`fastmlp.fuse` makes one chain of these.
        loss: of ``torch.nn``, ``CrossEntropyLoss``, ``NLLLoss``, ``BCEWithLogitsLoss``,
            ``KLDivLoss``, ``MSELoss``, ``L1Loss``, ``SmoothL1Loss``, ``HuberLoss``,
            ``PoissonNLLLoss`` or ``GaussianNLLLoss``, with all of their options; reduction "mean"
            or "sum", of KLDivLoss also "batchmean".
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW``, ``RMSprop``, ``Adagrad``, ``NAdam``,
            ``RAdam``, ``Adamax`` or ``Adadelta`` (the extension's list) over the model's
            parameters, or some of them.
        max_grad_norm: clips the norm of the gradients of all the optimizer's trainable parameters
            together, as ``torch.nn.utils.clip_grad_norm_`` does.

    Raises:
        TypeError: a model, loss or optimizer of another kind.
        ValueError: an option, hook or parameter that the step cannot honour; the message names it
            and what to use instead.

    Example:
        >>> model = FusedMLP([784, 300, 10])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        >>> loss = step(torch.rand(50, 784), torch.randint(10, (50,)))
    """

    #: Right predictions among the last step's, for class targets; None for others.
    correct: int | None = None
    # Of a model with a forward of its own: its class, how its forward was read, the modules that it
    # runs, and the model's parameters that it does not use.
    _kind: type
    _plan: Plan | None
    _chain: tuple[nn.Module, ...] | None
    _others: tuple[nn.Parameter, ...]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(
                f"fastmlp.TrainStep: expected max_grad_norm above 0, got {max_grad_norm}"
            )
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.max_grad_norm = max_grad_norm
        self._hooks = self._hook_dicts()
        try:
            if not _C.check_train_step(self):
                raise self._unreadable()
        except RecursionError:
            raise
        except RuntimeError as error:
            raise self._of_an_argument(error) from None

    def __setattr__(self, name: str, value: object) -> None:
        if name == "model":
            self._take(_forward_of(value))  # which may raise
        super().__setattr__(name, value)
        if name in ("model", "loss", "optimizer") and "_hooks" in self.__dict__:
            self._hooks = self._hook_dicts()  # those of the new one

    def __getstate__(self) -> dict[str, Any]:
        made = ("_kind", "_plan", "_chain", "_others", "_hooks")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read_forward()
        self._hooks = self._hook_dicts()  # a copied optimizer makes its own anew

    def _read_forward(self) -> None:
        """Reads the model's own forward anew, or raises and leaves all as it was."""
        self._take(_forward_of(self.model))

    def _take(self, forward: Forward) -> None:
        self._kind, self._plan, self._chain, self._others = forward

    def _follow_forward(self) -> None:
        """Reads the model's own forward anew, where what it depends on has changed."""
        plan = self._plan
        if type(self.model) is not self._kind or not (plan is None or plan.holds()):
            self._read_forward()

    def _hook_dicts(self) -> tuple[dict[Any, Any], ...]:
        """The very dicts, which have to stay empty; those of the layers are read with the model."""
        return (
            *(
                getattr(module, hooks, {})
                for module in (self.model, self.loss)
                for hooks in MODULE_HOOKS
            ),
            *(getattr(self.optimizer, hooks, {}) for hooks in _OPTIMIZER_HOOKS),
            *_GLOBAL_OPTIMIZER_HOOKS,
        )

    def __call__(self, x: Tensor, y: Tensor | tuple[Tensor, Tensor | float]) -> Tensor:
        """Trains on one batch.

        Args:
            x: input `(..., in_features)` of the parameters' dtype.
            y: CrossEntropyLoss and NLLLoss: classes `(...)`, int64 or uint8, or of CrossEntropyLoss
                probabilities of the output's shape; PoissonNLLLoss: floating point or whole
                numbers, of the others floating point, of the output's shape. GaussianNLLLoss: a
                pair `(y, var)` with var as in torch, a tensor or a float, which gets no gradient.

        Returns:
            The loss before the update, without dimensions, of the parameters' dtype. A loss that is
            not finite is returned as such (and the parameters updated with what follows from it, as
            torch would).

        Raises:
            RuntimeError: the model, the loss or the optimizer has become one that the step cannot
                honour, or x or y is of a kind of tensor (dtype, device, layout) that it does not
                take. Nothing has been modified then.
            TypeError, ValueError: x and y do not fit together.
            IndexError: a class out of bounds.
        """
        if self._plan is not None or type(self.model) is not self._kind:
            self._follow_forward()
        loss = _C.train_step(self, x, y)
        if loss is None:  # a module may have become one that is read in another way
            self._read_forward()
            loss = _C.train_step(self, x, y)
        if loss is None:
            raise self._unreadable(x)
        return loss

    def fit(
        self,
        dataset: Any,
        batch_size: int,
        *,
        epochs: int = 1,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        normalize: tuple[float, float] | None = None,
        progress: bool | None = None,
        callback: Callable[[Report], object] | None = None,
        callback_every: int = 100,
    ) -> list[Report]:
        """Trains for whole epochs on data in memory, batch after batch without Python in between.

        The rows are visited in the order of ``DataLoader(dataset, batch_size, shuffle,
        drop_last=drop_last, generator=generator)`` for the same state of the generator, and the
        data set is not copied if its rows are contiguous and of that dtype (then batches are read
        as it is at their time). Ctrl-C takes effect
        between two batches and leaves the model and the optimizer's state as after the last of
        them. They are complete whenever the callback runs, and not in between: another thread had
        better not read them meanwhile.

        Args:
            dataset: ``(inputs, targets)``, tensors or arrays; a ``TensorDataset`` of two tensors; a
                data set of :mod:`fastmlp.data`; or a ``Subset`` of these. Inputs `[rows, ...]`,
                flattened to the model's in_features, of uint8, or of float32 or float64, which is
                brought to the parameters' dtype; targets `[rows, ...]` as ``step(x, y)`` takes
                them, or classes of any whole type, or `[rows]` for a model of one output. For
                GaussianNLLLoss ``(inputs, (targets, variances))``, with variances `[rows, ...]` or
                a float.
            batch_size: rows of a batch.
            epochs: how many.
            shuffle, generator, drop_last: as of ``torch.utils.data.DataLoader``.
            normalize: ``(mean, std)`` of uint8 inputs: they are read as
                ``(x / 255 - mean) / std``; None: as ``x / 255``. A data set of fastmlp.data brings
                its own.
            progress: whether to show a bar (needs tqdm); None: in a notebook, and where stderr is a
                terminal.
            callback: called with a :class:`Report` every callback_every batches and at the end of
                each epoch, between two batches: to log, to save, to change the learning rate.
            callback_every: batches between two calls.

        Returns:
            One report for each epoch, over all of its batches.

        Raises:
            TypeError, ValueError: data or arguments that do not fit; what ``step(x, y)`` raises.
        """
        # It imports torch's data tools.
        from fastmlp._fit import (
            Fit,
            TableSteps,
            as_columns,
            as_table,
            epoch_order,
            without_variances,
        )

        batch_size = _positive("batch_size", batch_size)
        epochs = _positive("epochs", epochs)
        callback_every = _positive("callback_every", callback_every)
        last = self._read_model().weights[-1]
        takes_classes = type(self.loss) in _CLASS_LOSSES
        variances = None
        if type(self.loss) in _VARIANCE_LOSSES:
            dataset, variances = without_variances(dataset)
        table = as_table(dataset, normalize, last.dtype, classes=takes_classes)
        targets = as_columns(table.targets, len(last), takes_classes)
        table = table._replace(targets=targets, variances=variances)
        rows, features = table.size, table.inputs.shape[1]
        used = rows - rows % batch_size if drop_last else rows
        if used == 0:
            raise ValueError(
                f"fastmlp.TrainStep.fit: {rows} rows fill no batch of {batch_size}, and drop_last "
                "leaves out what does not"
            )
        batch_size = min(batch_size, rows)
        batches = math.ceil(used / batch_size)
        buffer = torch.empty(batch_size, features, dtype=last.dtype, device=last.device)
        classes = takes_classes and not table.targets.is_floating_point()

        def order() -> Tensor:
            chosen = epoch_order(rows, shuffle, generator)[:used]
            return chosen if table.rows is None else table.rows[chosen]

        steps = TableSteps(self, table, buffer)
        loop = Fit(steps, order, classes, epochs, batches, callback, callback_every)
        loop.run_epochs(progress)
        return loop.reports

    def _ignored(self, targets: Tensor, rows: Tensor) -> int:
        """How many of some rows are of the class that the loss ignores."""
        return int((targets.index_select(0, rows) == self.loss.__dict__["ignore_index"]).sum())

    def __repr__(self) -> str:
        parts = [repr(part) for part in (self.model, self.loss, self.optimizer)]
        if self.max_grad_norm is not None:
            parts.append(f"max_grad_norm={self.max_grad_norm}")
        return "TrainStep(\n" + textwrap.indent(",\n".join(parts), "  ") + "\n)"

    def _steps(self, buffer: Tensor, table: Table, order: Tensor) -> tuple[Tensor, Tensor]:
        """Each batch's loss and right predictions, float64 and int64, `[batches]`."""
        self._follow_forward()
        targets: Any = table.targets
        if table.variances is not None:
            targets = targets, table.variances
        arguments = buffer, table.inputs, targets, order, len(buffer), table.scale, table.shift
        result = _C.train_steps(self, *arguments)
        if result is None:  # as in a call
            self._read_forward()
            result = _C.train_steps(self, *arguments)
        if result is None:
            raise self._unreadable(buffer)
        return result

    def _read_model(self) -> Network:
        self._follow_forward()
        modules: Any = self.model._modules if self._plan is None else self._plan.whole
        network = read_modules(modules)
        if isinstance(network, str):
            raise _refusal(network)
        return network

    def _unreadable(self, x: Tensor | None = None) -> RuntimeError:
        """Why the model's modules are no network, beside this input or any."""
        network = self._read_model()
        if x is not None:
            return _refusal(why_plain(x, network))
        found = dict.fromkeys(f"{one.dtype} on {one.device}" for one in network.operands)
        if len(found) > 1 or not found.keys() <= _KINDS:
            return _refusal(
                "expected parameters on the CPU, of dtype float32 or float64 and all of one, got "
                + " and ".join(found)
            )
        return _refusal(why_plain(torch.empty(1, dtype=network.weights[0].dtype), network))

    def _of_an_argument(self, error: RuntimeError) -> TypeError | ValueError:
        """What a step would raise, as an error of the constructor's arguments."""
        if type(self.loss) not in _LOSSES:
            return TypeError(
                f"fastmlp.TrainStep: expected a loss among {_names('nn', _LOSSES)}, got "
                f"{type(self.loss).__name__}"
            )
        if type(self.optimizer) not in _OPTIMIZERS:
            inner = getattr(self.optimizer, "optimizer", None)  # of Lightning's, of accelerate's
            hint = ", which is another's wrapper: pass its .optimizer" if inner is not None else ""
            return TypeError(
                "fastmlp.TrainStep: expected an optimizer among "
                f"{_names('torch.optim', _OPTIMIZERS)}, got {type(self.optimizer).__name__}{hint}"
            )
        return ValueError(str(error))


Forward: TypeAlias = (
    "tuple[type, Plan | None, tuple[nn.Module, ...] | None, tuple[nn.Parameter, ...]]"
)


def _forward_of(model: Any) -> Forward:
    """How a model's forward is read; TypeError: it is more than a chain."""
    plain: Forward = type(model), None, None, ()
    runs = runs_its_modules(model)
    if runs and not isinstance(read_modules(model._modules), str):
        return plain
    from fastmlp._source import Untraceable
    from fastmlp.fusion import read_forward

    reason = ""
    if isinstance(model, nn.Module):
        try:
            plan = read_forward(model)
        except Untraceable as error:
            reason = f": {error}"
        else:
            if plan.whole is not None:
                chain = tuple(plan.whole.values())
                used = {id(one) for module in chain for one in module.parameters()}
                others = tuple(one for one in model.parameters() if id(one) not in used)
                return type(model), plan, chain, others
            reason = ", which is more than one chain of these"
    if runs:  # whose modules tell why
        return plain
    raise TypeError(
        "fastmlp.TrainStep: expected a FusedMLP or an nn.Sequential of nn.Linear and "
        f"activations, got {type(model).__name__} with a forward of its own{reason}"
        f"{_hint(model)}"
    )


_KINDS = {"torch.float32 on cpu", "torch.float64 on cpu"}


def _refusal(reason: str | None) -> RuntimeError:
    return RuntimeError(
        f"fastmlp.TrainStep: {reason}. Use the model's own forward and backward instead"
    )


def _names(module: str, classes: list[type]) -> str:
    return ", ".join(f"{module}.{name}" for name in dict.fromkeys(c.__name__ for c in classes))


def _hint(model: Any) -> str:
    """What to pass in place of a module that holds the network."""
    for name in ("module", "_orig_mod"):  # DataParallel's, torch.compile's
        if isinstance(getattr(model, name, None), nn.Module):
            return f". Pass the model that it wraps: its .{name}"
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if isinstance(module, FusedMLP) and name:
                return (
                    f". Pass the FusedMLP in it, its .{name}, if that is all that it computes, or "
                    "use the model's own forward and backward"
                )
    return ""


def _positive(name: str, value: Any) -> int:
    """An int of a whole number above 0, Python's or NumPy's."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(
            f"fastmlp.TrainStep.fit: expected {name} to be a positive integer, got {value}"
        )
    return number
