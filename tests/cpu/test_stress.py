"""Many threads of Python at once, each with work of its own: every one gets its own bits."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import FusedMLP, TrainStep

SHAPES = [(1, [64, 64, 4]), (50, [784, 300, 10]), (200, [65, 129, 33]), (16, [100, 1])]


def forward(seed: int) -> list[Tensor]:
    torch_generator = torch.Generator().manual_seed(seed)
    rows, sizes = SHAPES[seed % len(SHAPES)]
    model = copy.deepcopy(MODELS[seed % len(SHAPES)])
    x = torch.randn(rows, sizes[0], generator=torch_generator)
    if seed % 3 == 0:
        x = x * (x > 1.5)  # mostly zeros
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.sum(), list(model.parameters()))]


def train(seed: int) -> list[Tensor]:
    torch_generator = torch.Generator().manual_seed(seed)
    rows, sizes = SHAPES[seed % len(SHAPES)]
    model = copy.deepcopy(MODELS[seed % len(SHAPES)])
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    if seed % 2:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=1.0)
    x = torch.randn(rows, sizes[0], generator=torch_generator)
    y = torch.randint(sizes[-1], (rows,), generator=torch_generator)
    losses = [step(x, y) for _ in range(3)]
    step.fit((x, y), 7, shuffle=False, progress=False)
    return [*losses, *(p.detach() for p in model.parameters())]


def flushing(seed: int) -> list[Tensor]:
    """The flag is this thread's; what it makes of subnormal numbers as well."""
    torch.set_flush_denormal(True)
    x = torch.full((64, 65), 1e-39)
    results = [MODELS[2](x).detach()]
    torch.set_flush_denormal(False)
    return [*results, MODELS[2](x).detach()]


def emptying(seed: int) -> list[Tensor]:
    fastmlp.empty_cache()
    return []


MODELS = [FusedMLP(sizes, activation="tanh") for _, sizes in SHAPES]
WORK: list[Callable[[int], list[Tensor]]] = [forward, train, flushing, emptying]


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.sweep)])
def test_everything_at_once(threads: int, count: int) -> None:
    torch.set_num_threads(2)
    draw = random.Random(0)
    tasks = [(draw.choice(WORK), draw.randrange(12)) for _ in range(count)]
    expected = {(work, seed): work(seed) for work, seed in sorted(set(tasks), key=str)}
    together = threading.Barrier(4)

    def start() -> None:
        torch.set_num_threads(2)
        together.wait()

    with ThreadPoolExecutor(4, initializer=start) as pool:
        found = list(pool.map(lambda task: task[0](task[1]), tasks))
    for task, results in zip(tasks, found, strict=True):
        for a, b in zip(results, expected[task], strict=True):
            assert torch.equal(a, b), task
