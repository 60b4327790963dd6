"""What a checkpoint of `fastmlp train` has to hold, looked at before any of it is used.

The file may be anybody's: each value is of the very type, and in the range, that a training saves,
or the checkpoint is refused as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._options import KEPT, LOOPS

_MOST = 2**31 - 1


class Unfit(Exception):
    """A value is missing, or is none that a training saves."""


def check_network(state: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Of what options tells of: they are in force from then on, and parameters are allocated by
    them.

    Args:
        state: the checkpoint.
        options: its options, by name.

    Raises:
        Unfit: one is not as it should be, or the parameters are not of these sizes.
    """
    sizes = options["sizes"]
    _need(type(sizes) is tuple and len(sizes) >= 2)
    _need(all(_whole(size, 1, _MOST) for size in sizes))
    _need(_whole(options["epochs"], 1, _MOST) and _whole(options["batch_size"], 1, _MOST))
    _need(_whole(options["seed"], 0, 2**63 - 1))
    _need(_number(options["lr"]) and options["lr"] > 0)
    _need(type(options["loop"]) is str and options["loop"] in LOOPS)
    _need(type(options["compare"]) is bool)
    _need(options["data_dir"] is None or type(options["data_dir"]) is str)
    _need(set(options) == set(KEPT))
    _check_model(state["model"], sizes)


def check_progress(
    state: Mapping[str, Any], names: Mapping[str, Mapping[str, Any]], rows: int, line: int
) -> None:
    """How far the training has come, and each network's state.

    Args:
        state: the checkpoint, whose options have been checked.
        names: of the networks, each with its optimizer's state_dict as it is at the beginning. The
            last is the training's own.
        rows: of the training data.
        line: batches whose sums are kept at most.

    Raises:
        Unfit: something is missing or not as it should be.
    """
    batch_size = state["options"]["batch_size"]
    epoch, batch = state["epoch"], state["batch"]
    _need(_whole(epoch, 0, _MOST) and _whole(batch, 0, -(-rows // batch_size)))
    _need(_number(state["seconds"]))
    for name, optimizer in names.items():
        own = state if name == list(names)[-1] else state[name]
        _need(isinstance(own, dict))
        _check_model(own["model"], state["options"]["sizes"])
        _check_optimizer(own["optimizer"], optimizer)
        _check_tally(own["window"], 0, line * batch_size)
        done = min(batch * batch_size, rows)
        _check_tally(own["tally"], done, done)
        _need(type(own["curve"]) is list and type(own["test_errors"]) is list)
        for point in own["curve"]:
            _need(type(point) is tuple and len(point) == 3 and all(map(_number, point)))
        _need(len(own["test_errors"]) == epoch and all(map(_number, own["test_errors"])))
        _need(_number(own.get("loss_difference", 0.0)))


def _check_model(model: Any, sizes: tuple[int, ...]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        shapes[f"{2 * layer}.weight"] = (outputs, inputs)  # an activation lies between two layers
        shapes[f"{2 * layer}.bias"] = (outputs,)
    _need(isinstance(model, dict) and set(model) == set(shapes))
    for name, shape in shapes.items():
        tensor = model[name]
        _need(type(tensor) is Tensor and tensor.layout == torch.strided)
        _need(tensor.dtype == torch.get_default_dtype() and tensor.shape == shape)
        # Dense: a view of one element could have any shape. Finite: others are never saved.
        _need(tensor.is_contiguous() and tensor.device.type == "cpu" and _finite(tensor))


def _check_optimizer(saved: Any, fresh: Mapping[str, Any]) -> None:
    """SGD keeps nothing but its options, which are the training's."""
    _need(isinstance(saved, dict) and isinstance(saved["state"], dict))
    for kept in saved["state"].values():
        _need(isinstance(kept, dict) and all(value is None for value in kept.values()))
    _need(type(saved["param_groups"]) is list)
    _need(len(saved["param_groups"]) == len(fresh["param_groups"]))
    for group, wanted in zip(saved["param_groups"], fresh["param_groups"], strict=True):
        _need(isinstance(group, dict) and "params" in group)
        for key in group.keys() & wanted.keys():  # other versions of torch have others
            _need(type(group[key]) is type(wanted[key]) and group[key] == wanted[key])


def _check_tally(tally: Any, least: int, most: int) -> None:
    """Sums over least to most rows."""
    _need(type(tally) is tuple and len(tally) == 3)
    losses, wrong, rows = tally
    _need(_number(losses) and _whole(rows, least, most) and _whole(wrong, 0, rows))


def _need(fit: bool) -> None:
    if not fit:
        raise Unfit


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
