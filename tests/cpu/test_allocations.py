"""What a planned call asks the system for: its result, and at most one block beside it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support import native, processes

# count(work): how many requests for memory `work` makes once it has been done before.
PROGRAM = """
import ctypes, json, torch, fastmlp
from torch import nn

system = ctypes.CDLL(None)
torch.manual_seed(0)
torch.set_num_threads(THREADS)

def count(work):
    for _ in range(3): work()
    before = system.count_requests()
    work()
    return system.count_requests() - before

def training(sizes, batch, optimizer, **options):
    model = fastmlp.FusedMLP(sizes)
    step = fastmlp.TrainStep(
        model, nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=0.01), **options
    )
    return model, step, torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))
"""

COUNTS = """
told = {"tensor": count(lambda: torch.empty(()))}
for name, sizes, batch in (("small", [8, 16, 4], 5), ("large", [64, 256, 256, 8], 100)):
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        for clip in (None, 1.0):
            model, step, x, y = training(sizes, batch, optimizer, max_grad_norm=clip)
            told[f"{name} {optimizer.__name__} {clip}"] = count(lambda: step(x, y))
    with torch.no_grad():
        told[f"{name} forward"] = count(lambda: model(x))
print(json.dumps(told))
"""

FAILURES = """
import copy

faults = 0
for sizes, batch in (([8, 16, 4], 5), ([64, 256, 256, 8], 100)):
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        model, step, x, y = training(sizes, batch, optimizer)
        step(x, y)
        for at in range(count(lambda: step(x, y)) + 1):
            twin = copy.deepcopy(model)
            state = copy.deepcopy(step.optimizer.state_dict())
            system.fail_request(at)
            try:
                step(x, y)
                failed = False
            except (MemoryError, RuntimeError):
                failed = True
            system.fail_request(-1)
            if failed:
                faults += 1
                for ours, before in zip(model.parameters(), twin.parameters(), strict=True):
                    assert torch.equal(ours, before), (sizes, optimizer, at)
                step(x, y)
            again = optimizer(twin.parameters(), lr=0.01)
            again.load_state_dict(state)
            fastmlp.TrainStep(twin, nn.CrossEntropyLoss(), again)(x, y)
            for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
                assert torch.equal(ours, theirs), (sizes, optimizer, at)
print(json.dumps(faults))
"""

# In fit, whatever request fails: the state of the last whole step. The weight is so large that the
# parts of its norm ask for memory, too.
FIT_FAILURES = """
import copy

batch, steps = 2, 3
model, step, x, y = training([1100, 1000, 4], batch * steps, torch.optim.Adam, max_grad_norm=1.0)
data = torch.utils.data.TensorDataset(x, y)
step(x[:batch], y[:batch])
begun = copy.deepcopy(model.state_dict()), copy.deepcopy(step.optimizer.state_dict())

def restart():
    model.load_state_dict(begun[0])
    step.optimizer.load_state_dict(copy.deepcopy(begun[1]))

def weights():
    return [parameter.detach().clone() for parameter in model.parameters()]

after = [weights()]
for i in range(steps):
    step(x[i * batch : (i + 1) * batch], y[i * batch : (i + 1) * batch])
    after.append(weights())

def fit():
    step.fit(data, batch_size=batch, shuffle=False, progress=False)

faults = 0
for at in range(count(lambda: (restart(), fit())) + 1):
    restart()
    system.fail_request(at)
    try:
        fit()
    except (MemoryError, RuntimeError, ValueError):  # the last of a trial of the data set
        faults += 1
    system.fail_request(-1)
    done = int(step.optimizer.state[next(model.parameters())]["step"].item()) - 1
    assert all(map(torch.equal, weights(), after[done])), (at, done)
print(json.dumps(faults))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of allocations.cpp."""
    if not sys.platform.startswith("linux") or "LD_PRELOAD" in os.environ:
        pytest.skip("cannot be loaded before the C library here")
    source = Path(__file__).with_name("allocations.cpp")
    folder = tmp_path_factory.mktemp("allocations")
    return native.compiled(source, folder, "-shared", "-fPIC", "-ldl")


def told(library: Path, program: str, threads: int) -> object:
    whole = PROGRAM.replace("THREADS", str(threads)) + program
    return json.loads(processes.output(whole, LD_PRELOAD=str(library)))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_planned_call_asks_for_one_block_at_most(library: Path, threads: int) -> None:
    counts = told(library, COUNTS, threads)
    assert isinstance(counts, dict)
    tensor = counts.pop("tensor")
    assert tensor > 0
    small = {name: count for name, count in counts.items() if name.startswith("small")}
    assert max(small.values()) == tensor, small  # the loss, or the output
    # … and a block, which is a tensor, too.
    assert max(counts.values()) <= 2 * tensor, counts


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_without_memory_changes_nothing(library: Path, threads: int) -> None:
    faults = told(library, FAILURES, threads)
    assert isinstance(faults, int)
    assert faults >= 8


def test_a_fit_without_memory_ends_after_a_whole_step(library: Path) -> None:
    faults = told(library, FIT_FAILURES, 1)
    assert isinstance(faults, int)
    assert faults >= 8
