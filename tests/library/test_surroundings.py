"""What lies around a model: torch's modes and settings, what made its input, who waits for its
gradients, and blocks that hold themselves."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from processes import output
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from fastmlp import FusedMLP, Residual, TrainStep

# Modes and settings that change nothing here ------------------------------------------------------


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def two_devices() -> Iterator[None]:
    with default_device("cpu"), torch.device("meta"), torch.device("cpu"):
        yield


NEUTRAL: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "set_default_device": lambda: default_device("cpu"),
    "with torch.device": lambda: torch.device("cpu"),
    "another default device": lambda: torch.device("meta"),
    "nested devices": two_devices,
    "default dtype": lambda: default_dtype(torch.float64),
    "deterministic algorithms": deterministic,
    "anomaly detection": torch.autograd.detect_anomaly,
    "profiler": lambda: profile(activities=[ProfilerActivity.CPU]),
    "saved tensors on the CPU": lambda: torch.autograd.graph.save_on_cpu(),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("mode", NEUTRAL)
def test_neutral_modes(mode: str) -> None:
    """The fused path, the same bits, and a training step."""
    results = []
    for context in (contextlib.nullcontext(), NEUTRAL[mode]()):
        torch.manual_seed(0)
        model = FusedMLP([6, 8, 3], activation="gelu")
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        with context:
            assert model.why_plain(x) is None
            z = model(x)
            z.square().sum().backward()
            loss = step(x, y)
            if mode != "another default device":  # on which loaders shuffle
                step.fit((x, y), 8, shuffle=False, progress=False)
        gradients = [p.grad for p in model.parameters()]
        results.append([z.detach(), *gradients, loss, *(p.detach() for p in model.parameters())])
        assert all(s["step"].device.type == "cpu" for s in optimizer.state.values())
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class Counting(TorchFunctionMode):
    """A mode that wants to see torch's functions."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counting.calls += func is nn.functional.linear
        return func(*args, **(kwargs or {}))


def test_a_mode_that_looks_at_functions_sees_them() -> None:
    model, x = FusedMLP([6, 8, 3]), torch.randn(4, 6)
    expected = model(x)
    with torch.device("cpu"), Counting():
        why = model.why_plain(x)
        actual = model(x)
    assert why is not None
    assert "TorchFunctionMode" in why
    assert Counting.calls == 2
    torch.testing.assert_close(actual, expected)


# What computed an operand -------------------------------------------------------------------------


def made() -> tuple[FusedMLP, TrainStep, Tensor, Tensor]:
    model = FusedMLP([4, 8, 2])
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    return model, step, torch.randn(5, 4), torch.randn(5, 2)


@pytest.mark.parametrize("what", ["input", "target"])
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("fit", [True, False])
def test_an_operand_that_requires_a_gradient_is_refused(what: str, leaf: bool, fit: bool) -> None:
    model, step, x, y = made()
    before = copy.deepcopy(model.state_dict())
    operand = (x if what == "input" else y).requires_grad_()
    operand = operand if leaf else operand * 1
    given = (operand, y) if what == "input" else (x, operand)
    with pytest.raises(RuntimeError, match=f"the {what}s? requires a gradient.*detach"):
        step.fit(given, 5, progress=False) if fit else step(*given)
    assert not step.optimizer.state
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    step(x.detach(), y.detach())


def test_weights_of_the_loss_that_require_a_gradient_are_refused() -> None:
    model, _, x, _ = made()
    for loss in (
        nn.CrossEntropyLoss(torch.ones(2, requires_grad=True)),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(2, requires_grad=True)),
    ):
        step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1))
        with pytest.raises(RuntimeError, match=r"the loss's (pos_)?weight requires a gradient"):
            step(x, torch.rand(5, 2))


def test_without_gradients_it_is_a_number_like_others() -> None:
    model, step, x, y = made()
    twin, other, _, _ = made()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(step(x.requires_grad_(), y), other(x.detach(), y))


# Who waits for gradients --------------------------------------------------------------------------


def test_a_hook_on_a_gradient_accumulator_is_refused() -> None:
    model, step, x, y = made()
    weight = model[2].weight
    accumulator = weight.expand_as(weight).grad_fn.next_functions[0][0]
    handle = accumulator.register_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    for attempt in (lambda: step(x, y), lambda: step.fit((x, y), 5, progress=False)):
        with pytest.raises(RuntimeError, match="a hook waits for the gradient of a parameter"):
            attempt()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not step.optimizer.state
    handle.remove()
    del accumulator  # and with it the place for hooks
    step(x, y)


def test_distributed_data_parallel_is_refused() -> None:
    program = """
import os, tempfile, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from fastmlp import FusedMLP, TrainStep
with tempfile.TemporaryDirectory() as folder:
    distributed.init_process_group("gloo", store=distributed.FileStore(folder + "/s", 1), rank=0,
                                   world_size=1)
    model = FusedMLP([4, 8, 2])
    before = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    replica = DistributedDataParallel(model)
    after = TrainStep(replica.module, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    x, y = torch.randn(5, 4), torch.randn(5, 2)
    for attempt in (lambda: before(x, y), lambda: after(x, y),
                    lambda: before.fit((x, y), 5, progress=False)):
        try:
            attempt()
        except RuntimeError as error:
            print("DistributedDataParallel" in str(error))
    distributed.destroy_process_group()
"""
    assert output(program).split() == ["True"] * 3


# Blocks without end -------------------------------------------------------------------------------


def test_a_block_that_holds_itself() -> None:
    block = Residual(nn.Linear(4, 4))
    block.append(block)
    x = torch.randn(2, 4)
    for model in (nn.Sequential(block), FusedMLP.from_sequential(nn.Sequential(block))):
        with pytest.raises(RecursionError):
            model(x)


def test_blocks_in_blocks() -> None:
    """As deep as the plain model runs, and beyond."""
    program = """
import sys, torch
from torch import nn
from fastmlp import FusedMLP, Residual
for depth, right in ((50, True), (30_000, False)):
    block = nn.Linear(4, 4)
    for _ in range(depth):
        block = Residual(block)
    x, outcomes = torch.randn(2, 4), []
    for model in (nn.Sequential(block), FusedMLP.from_sequential(nn.Sequential(block))):
        try:
            outcomes.append(model(x))
        except RecursionError:
            outcomes.append(None)
    assert (outcomes[0] is not None) == right
    assert torch.equal(*outcomes) if right else outcomes == [None, None]
    print("right", flush=True)
import os
os._exit(0)  # freeing thousands of blocks within one another is the interpreter's affair
"""
    assert output(program).split() == ["right"] * 2
