"""Threads: the same bits whatever their number, torch's pool, the GIL, forks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fused import check_threads, mlp
from processes import lets_others_run, output
from reference import Problem

from fastmlp import FusedMLP

SHAPES = [
    (1, [64, 64, 64, 4]),
    (1, [784, 300, 10]),
    (1, [2048, 2048]),
    (7, [100, 200, 50]),
    (32, [64, 256, 256, 8]),
    (50, [784, 300, 10]),
    (65, [513, 257, 129]),
    (512, [512, 512, 512]),
    (4096, [16, 8]),
    (1100, [256, 1500, 800]),  # several blocks of rows in every product: panels are shared
    (3000, [33, 65, 17]),
    (2, [5, 3]),
]


@pytest.mark.parametrize(
    ("batch", "sizes"),
    # The large ones are for a sweep.
    [
        (b, s) if b * sum(s) < 150_000 else pytest.param(b, s, marks=pytest.mark.sweep)
        for b, s in SHAPES
    ],
)
@pytest.mark.parametrize("hidden", ["relu", pytest.param("gelu", marks=pytest.mark.sweep)])
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, threads: int, batch: int, sizes: list[int], hidden: str
) -> None:
    problem = Problem.random(batch, sizes, dtype, hidden=hidden)
    # More than there are processors, on many machines.
    check_threads(problem, 1, 2, 3, 4, runs=2)


def test_bits_do_not_depend_on_the_run() -> None:
    program = """
import hashlib, torch
from fastmlp import FusedMLP
torch.manual_seed(0)
for sizes, batch in (([784, 300, 10], 50), ([64, 64, 4], 1), ([300, 300, 300], 300)):
    model = FusedMLP(sizes, activation="gelu")
    x = torch.randn(batch, sizes[0], requires_grad=True)
    y = model(x)
    y.sum().backward()
    for t in (y, x.grad, *(p.grad for p in model.parameters())):
        print(hashlib.sha256(t.detach().numpy().tobytes()).hexdigest())
"""
    runs = {output(program, OMP_NUM_THREADS=n) for n in ("1", "2", "3", None)}
    assert len(runs) == 1


def test_runs_inside_of_a_parallel_region(threads: int) -> None:
    """Backward of two models on threads of their own, each with the pool's size."""
    torch.set_num_threads(2)
    problems = [Problem.random(128, [256, 256, 64]) for _ in range(4)]
    expected = [p.run(mlp(p)).named() for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(
                pool.map(lambda p: p.run(mlp(p)).named(), problems), expected, strict=True
            ):
                assert all(torch.equal(got[k], want[k]) for k in want)


def test_two_threads_run_one_model(threads: int) -> None:
    torch.set_num_threads(2)
    model = FusedMLP([100, 200, 50])
    inputs = [torch.randn(64, 100) for _ in range(4)]
    parameters = list(model.parameters())

    def work(x: torch.Tensor) -> list[torch.Tensor]:
        y = model(x)
        return [y.detach(), *torch.autograd.grad(y.sum(), parameters)]

    expected = [work(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, want in zip(pool.map(work, inputs), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backward", [False, True])
def test_gil_is_released(threads: int, backward: bool) -> None:
    torch.set_num_threads(1)
    model = FusedMLP([1024] * 9)
    x = torch.randn(1024, 1024)
    y = model(x)

    @torch.no_grad()
    def forward() -> None:
        model(x)

    assert lets_others_run(y.sum().backward if backward else forward)


def test_a_gil_that_is_kept_is_noticed() -> None:
    assert not lets_others_run(lambda: sum(range(10**6)))


def test_one_openmp_runtime() -> None:
    program = """
import torch, fastmlp
from fastmlp import FusedMLP
from threadpoolctl import threadpool_info
torch.set_num_threads(2)
model = FusedMLP([300, 300, 300])
model(torch.randn(300, 300)).sum().backward()
print(len([pool for pool in threadpool_info() if pool["user_api"] == "openmp"]))
"""
    pytest.importorskip("threadpoolctl")
    assert int(output(program)) <= 1


def test_uses_torchs_threads() -> None:
    """The work of two threads is torch's pool's: no other threads come to be."""
    program = """
import os, torch
from fastmlp import FusedMLP
torch.set_num_threads(2)
a = torch.randn(1000, 1000)
(a @ a, torch.nn.functional.gelu(a), a.requires_grad_().sum().backward())
before = len(os.listdir("/proc/self/task"))
model = FusedMLP([500, 500, 500])
for _ in range(3):
    model(torch.randn(500, 500)).sum().backward()
print(before, len(os.listdir("/proc/self/task")))
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc")
    before, after = map(int, output(program).split())
    assert after == before


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
from fastmlp import FusedMLP

class Features(Dataset):
    def __init__(self, model, x):
        self.model, self.x = model, x
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(self.x[i : i + 1])[0]

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = FusedMLP([300, 400, 200])
    x = torch.randn(16, 300)
    big = torch.randn(600, 300)
    model(big).sum().backward()  # the pool has threads now, which no fork takes along
    expected = torch.cat([model(row[None]) for row in x]).detach()
    for _ in range(2):
        loader = DataLoader(Features(model, x), 4, num_workers=2, multiprocessing_context="fork")
        got = torch.cat(list(loader))
        assert torch.equal(got, expected)
    model(big).sum().backward()
    print("equal")
"""


def test_in_forked_workers_of_a_loader() -> None:
    assert output(LOADER).strip() == "equal"


FORK = """
import os, sys, torch
from fastmlp import FusedMLP
torch.manual_seed(0)
torch.set_num_threads(2)
model = FusedMLP([300, 400, 200])
x = torch.randn(300, 300)
def work():
    model.zero_grad()
    y = model(x)
    y.sum().backward()
    return [y.detach()] + [p.grad.clone() for p in model.parameters()]
if {before}:
    expected = work()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as torch.multiprocessing asks for in children
    got = work()
    ok = not {before} or all(torch.equal(a, b) for a, b in zip(got, expected))
    os._exit(0 if ok else 3)
status = os.waitpid(child, 0)[1]
work()
print("waited")
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("before", [False, True])
def test_after_fork(before: bool) -> None:
    assert output(FORK.format(before=before)).strip() == "waited"
