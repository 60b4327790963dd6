"""Ctrl-C at any moment: parameters and optimizer state belong to the same number of steps."""

from __future__ import annotations

import copy

import pytest
import torch
from processes import output
from torch import Tensor, nn
from torch.optim import SGD, Adam, NAdam, Optimizer

from fastmlp import FusedMLP, TrainStep

OPTIMIZERS = {
    "momentum": lambda model: SGD(model.parameters(), 0.1, momentum=0.9),
    "adam": lambda model: Adam(model.parameters(), 0.01, amsgrad=True),
    "nadam": lambda model: NAdam(model.parameters(), 0.01),
}


class Interrupt:
    """Stands for a signal that comes when a tensor is hashed: each time that a step runs Python."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.hashed = 0

    def hash(self, tensor: Tensor) -> int:
        self.hashed += 1
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        self.left -= 1
        return id(tensor)


@pytest.fixture(params=OPTIMIZERS)
def made(request: pytest.FixtureRequest) -> tuple[FusedMLP, Optimizer]:
    model = FusedMLP([5, 6, 3], dtype=torch.float64)
    return model, OPTIMIZERS[request.param](model)


def everything(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    kept = [v for p in sorted(state) for v in state[p].values()]
    return [p.detach().clone() for p in model.parameters()] + [t.clone() for t in kept]


@pytest.mark.parametrize("fit", [False, True])
def test_an_interrupt_in_the_first_step(
    made: tuple[FusedMLP, Optimizer], fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = made
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3

    def step_of(model: FusedMLP, optimizer: Optimizer) -> None:
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        step.fit((x, y), 7, shuffle=False, progress=False) if fit else step(x, y)

    before = everything(model, optimizer)
    whole = copy.deepcopy((model, optimizer))
    step_of(*whole)
    after = everything(*whole)
    interrupted = 0
    for places in range(100):
        model, optimizer = copy.deepcopy(made)
        interrupt = Interrupt(places)
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "__hash__", lambda tensor, hash=interrupt.hash: hash(tensor))
            try:
                step_of(model, optimizer)
            except KeyboardInterrupt:
                interrupted += 1
        found = everything(model, optimizer)
        # All of the step, or nothing: states that are empty are none.
        expected = after if len(found) == len(after) else before
        assert len(found) == len(expected), f"half a state after {places} looks"
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), places
        if interrupt.left >= 0:  # never came to it: done
            break
    assert interrupted == interrupt.hashed > 0


@pytest.mark.parametrize("wrong", ["class", "state"])
def test_a_refused_first_step_leaves_no_state(made: tuple[FusedMLP, Optimizer], wrong: str) -> None:
    model, optimizer = made
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    if wrong == "class":
        y[3] = 3
    else:  # of the last parameter, after the others' have been read
        optimizer.state[model[2].bias]["momentum_buffer"] = 1.0
        optimizer.state[model[2].bias]["step"] = 1.0
    with pytest.raises((IndexError, RuntimeError)):
        step(x, y)
    assert list(optimizer.state) == ([model[2].bias] if wrong == "state" else [])


PROGRAM = """
import os, random, signal, threading, time
import torch
from torch import nn
from fastmlp import FusedMLP, TrainStep

random.seed({seed})
torch.set_num_threads(1)
x, y = torch.randn(64, 200), torch.arange(64) % 10

def make():
    torch.manual_seed(0)
    model = FusedMLP([200, 400, 400, 10])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return model, optimizer, TrainStep(model, nn.CrossEntropyLoss(), optimizer)

def everything(model, optimizer):
    state = optimizer.state_dict()["state"]
    return [*(p.detach().clone() for p in model.parameters()),
            *(state[p]["momentum_buffer"].clone() for p in sorted(state) if state[p])]

model, optimizer, step = make()
steps, seconds = [everything(model, optimizer)], []
for _ in range(4):
    began = time.perf_counter()
    step(x, y)
    seconds.append(time.perf_counter() - began)
    steps.append(everything(model, optimizer))
whole = sorted(seconds)[1]

struck = 0
for trial in range({count}):
    model, optimizer, step = make()
    wait = random.random() * 3 * whole
    try:
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            for _ in range(4):
                step(x, y)
        finally:
            timer.join()
            time.sleep(0)
    except KeyboardInterrupt:
        struck += 1
    found = everything(model, optimizer)
    assert any(len(found) == len(s) and all(map(torch.equal, found, s)) for s in steps), trial
    step(x, y)  # and it goes on
print("trials", {count}, "struck", struck)
"""


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.sweep)])
def test_signals_at_random_moments(count: int) -> None:
    told = output(PROGRAM.format(seed=count, count=count)).split()
    assert told[:2] == ["trials", str(count)]
    assert int(told[3]) > 0, "no signal came in time"
