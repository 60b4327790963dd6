"""How time is taken: contestants interleaved in one process, samples paired by round.

Machines are shared and drift: an absolute time says little, a ratio within one round much. So
every round times each contestant once, in shuffled order, and a ratio is the median of the rounds'.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ISOLATED_CALL_S = 0.02  # above this, one untimed call to warm up costs more than it steadies


class Spread(NamedTuple):
    """A sample's median between its 10th and 90th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(*(float(q) for q in np.percentile(samples, (10, 50, 90))))


def speedup(base: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times faster than ``base`` the ``other`` is: base/other, round by round."""
    return Spread.of([b / o for b, o in zip(base, other, strict=True)])


class Effort(NamedTuple):
    """How much time a measurement may take."""

    rounds: int = 21
    block_s: float = 0.004  # one sample repeats a call until it lasts this long
    budget_s: float = 6.0  # of all samples of one measurement; slow calls get fewer rounds
    least_rounds: int = 7

    def rounds_for(self, round_s: float) -> int:
        """As many rounds as the budget allows, where one takes ``round_s``, within the limits."""
        return min(self.rounds, max(self.least_rounds, int(self.budget_s / round_s)))


QUICK = Effort(rounds=3, block_s=0.0005, budget_s=1.0, least_rounds=2)


def _other_threads_run() -> bool:
    """Whether a thread of this process besides the calling one is running or ready to."""
    me = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # ended meanwhile
            if task.name != me and (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def settle(limit_s: float = 0.5) -> None:
    """Wait until all other threads of this process sleep.

    A thread pool's workers spin after their last task, OpenMP's for 4 ms, ONNX Runtime's for 30.
    That makes their own next task start sooner, but takes a core from the next contestant: it
    doubled the time of whoever came after ONNX Runtime. (The process's CPU time cannot tell when
    they stop: what other threads consumed is brought up to date at the kernel's ticks only.)
    """
    if not Path("/proc/self/task").exists():
        time.sleep(0.05)
        return
    deadline = time.perf_counter() + limit_s
    while _other_threads_run() and time.perf_counter() < deadline:
        time.sleep(0.0005)


class Block:
    """Timed repetitions of one call."""

    def __init__(self, call: Callable[[], object], block_s: float) -> None:
        self.call = call
        self._run(2)  # first calls allocate, compile, start threads
        elapsed = self._run(1)
        if elapsed < block_s:  # one call is too short to time well
            count = max(1, int(block_s / 4 / elapsed))
            elapsed = min(elapsed, self._run(count) / count)
        self.call_s = elapsed
        self.inner = max(1, round(block_s / elapsed))
        self.lead_in = max(self.inner // 4, int(elapsed < ISOLATED_CALL_S))

    def _run(self, count: int) -> float:
        call = self.call
        start = time.perf_counter()
        for _ in repeat(None, count):
            call()
        return time.perf_counter() - start

    def sample(self) -> float:
        """Seconds of one call, the mean over a block; threads and caches are warmed up first."""
        settle()
        self._run(self.lead_in)
        return self._run(self.inner) / self.inner


def measure(
    calls: dict[str, Callable[[], object]], effort: Effort, *, grad: bool = True, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of one call of each, a sample per round; the n-th samples of all belong together.

    Args:
        calls: the contestants by name.
        effort: rounds, block length, budget.
        grad: whether autograd records (else the calls run under ``torch.no_grad()``).
        seed: of the order within the rounds.
    """
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.set_grad_enabled(grad):
            blocks = {name: Block(call, effort.block_s) for name, call in calls.items()}
            round_s = sum(b.call_s * (b.inner + b.lead_in) for b in blocks.values())
            for _ in range(effort.rounds_for(round_s)):
                for name in order.sample(list(blocks), len(blocks)):
                    samples[name].append(blocks[name].sample())
    finally:
        if was_enabled:
            gc.enable()
    return samples
