"""Memory that freed tensors leave for the next ones: used again, never twice at the same time."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import itertools
import pickle
import queue
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import output
from torch import Tensor
from torch.utils import dlpack

import fastmlp
from fastmlp import _C, FusedMLP, functional

SMALLEST = 16 << 10  # bytes; smaller tensors are not kept
LINE = 64  # sizes are rounded up to it
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    gc.collect()
    fastmlp.empty_cache()
    yield
    fastmlp.empty_cache()


def fresh(numbers: int) -> Tensor:
    """An output of float32, for which nothing else is allocated: one row needs no scratch."""
    with torch.no_grad():
        return functional.linear(torch.ones(1, 1), torch.ones(numbers, 1))[0]


def span(tensor: Tensor) -> range:
    """The addresses of a tensor's storage."""
    storage = tensor.untyped_storage()
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def assert_disjoint(tensors: list[Tensor]) -> None:
    spans = sorted((span(t) for t in tensors), key=lambda one: one.start)
    for lower, upper in itertools.pairwise(spans):
        assert lower.stop <= upper.start


# Used again


@pytest.mark.parametrize("numbers", [SMALLEST // 4, SMALLEST // 4 + 1, 100_000])
def test_a_block_is_used_again(numbers: int) -> None:
    one = fresh(numbers)
    address = one.data_ptr()
    assert _C.cached_bytes() == 0
    del one
    assert _C.cached_bytes() == -(-numbers * 4 // LINE) * LINE
    again = fresh(numbers)
    assert again.data_ptr() == address
    assert _C.cached_bytes() == 0


def test_small_ones_are_not_kept() -> None:
    fresh(SMALLEST // 4 - 1)  # and freed at once
    assert _C.cached_bytes() == 0


def test_a_much_larger_block_is_not_used() -> None:
    """A small tensor would hold much memory for as long as it lives."""
    large = fresh(100_000)
    memory = span(large)
    del large
    assert fresh(100_000).data_ptr() in memory  # and is freed again
    small = fresh(50_000)
    assert small.data_ptr() not in memory


def test_gradients_are_used_again() -> None:
    """What the training step after zero_grad writes is what the step before it wrote."""
    model = FusedMLP([200, 300, 100])
    x, g = torch.randn(5, 200), torch.randn(5, 100)

    def step() -> list[int]:
        model(x).backward(g)
        addresses = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return addresses

    step()
    first, second = step(), step()
    large = [i for i, p in enumerate(model.parameters()) if 4 * p.numel() >= SMALLEST]
    assert large == [0, 2]
    assert [first[i] for i in large] == [second[i] for i in large]
    kept = _C.cached_bytes()
    for _ in range(10):
        step()
    assert _C.cached_bytes() == kept


# Never while in use

KEEPERS: dict[str, Callable[[Tensor], object]] = {
    "tensor": lambda t: t,
    "view": lambda t: t[5:6],
    "alias": lambda t: t.detach(),
    "storage": lambda t: t.untyped_storage(),
    "numpy": lambda t: t.numpy(),
    "part of a numpy array": lambda t: t.numpy()[3:].reshape(-1, 1),
    "buffer": lambda t: memoryview(t.numpy()),
    "dlpack": lambda t: dlpack.to_dlpack(t),
    "imported dlpack": lambda t: dlpack.from_dlpack(t),
    "graph": lambda t: torch.ones(len(t), requires_grad=True) * t,
    "cycle": lambda t: (cycle := [t], cycle.append(cycle)),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_not_while_it_is_held(keep: Callable[[Tensor], object]) -> None:
    numbers = 12_345
    tensor = fresh(numbers).fill_(7)
    memory = span(tensor)
    held = keep(tensor)
    del tensor
    assert _C.cached_bytes() == 0
    others = [fresh(numbers).fill_(1) for _ in range(3)]
    fastmlp.empty_cache()
    assert all(t.data_ptr() not in memory for t in others)
    content = (ctypes.c_float * numbers).from_address(memory.start)
    assert set(content) == {7}
    del held
    gc.collect()
    assert fresh(numbers).data_ptr() == memory.start


def test_what_lives_at_one_time_is_disjoint() -> None:
    models = [FusedMLP([100, 200, 300, 50], activation=a) for a in ("relu", "gelu", "tanh")]
    x = torch.randn(64, 100, requires_grad=True)
    for _ in range(3):  # blocks of the rounds before are used again
        alive: list[Tensor] = []
        for model in models:
            y = model(x)
            y.sum().backward(retain_graph=True)
            parts = torch.autograd.grad(y.sum(), [x, *model.parameters()], retain_graph=True)
            alive += [y, *parts, *(p for q in model.parameters() if (p := q.grad) is not None)]
        assert_disjoint(alive)
        for model in models:
            model.zero_grad()


def test_saved_activations_stay() -> None:
    """Backward, late and twice, of a graph whose neighbours were freed and written over."""
    torch.manual_seed(1)
    model, x = FusedMLP([50, 200, 300, 10], activation="gelu"), torch.randn(70, 50)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    graphs = [model(x).square().sum() for _ in range(6)]
    del graphs[::2]
    for shape in ((70, 50), (35, 50), (140, 50)):
        model(torch.full(shape, 1e9)).sum().backward()
    for graph in graphs:
        for _ in range(2):
            actual = torch.autograd.grad(graph, parameters, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# Bounds


BOUNDS = """
import torch, fastmlp
from fastmlp import _C, functional

SMALLEST, LINE = 16 << 10, 64

def fresh(size):
    with torch.no_grad():
        return functional.linear(torch.ones(1, 1), torch.ones(size // 4, 1))

sizes = [int(SMALLEST * 1.3**i) for i in range(20)]
for size in (*sizes, *reversed(sizes), *sizes):
    fresh(size)
    assert _C.cached_bytes() <= 2 * (max(sizes) + LINE)
together = [fresh(size) for size in sizes]
del together
assert max(sizes) < _C.cached_bytes() <= 2 * (sum(sizes) + LINE * len(sizes))
fastmlp.empty_cache()
for size in sizes:
    fresh(size)
    assert _C.cached_bytes() <= 2 * (size + LINE)
print("bounded")
"""


def test_what_is_kept_is_bounded() -> None:
    """By twice what has been in use at one time since empty_cache, however many sizes there were.

    In a process of its own: what other tests still hold is in use as well.
    """
    assert output(BOUNDS).strip() == "bounded"


def test_empty_cache_gives_all_back() -> None:
    held = fresh(100_000).fill_(3)
    waiting = [fresh(n) for n in (5_000, 50_000, 500_000)]
    del waiting
    assert _C.cached_bytes() >= 4 * 555_000
    assert fastmlp.empty_cache() is None  # type: ignore[func-returns-value]
    assert _C.cached_bytes() == 0
    assert (held == 3).all()
    del held  # past empty_cache: kept again
    assert _C.cached_bytes() >= 4 * 100_000


RESIDENT = """
import torch, fastmlp
from fastmlp import functional

def resident():  # MiB
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

with torch.no_grad():
    x, weight = torch.ones(1, 1), torch.ones(25 << 20, 1)
    base = resident()
    y = functional.linear(x, weight)
    used = resident()
    del y
    kept = resident()
    fastmlp.empty_cache()
    print(used - base, kept - base, resident() - base)
"""


@LINUX
def test_the_system_gets_it() -> None:
    used, kept, left = map(int, output(RESIDENT).split())
    assert used >= 100
    assert kept >= 100
    assert left < 20


def test_the_profiler_sees_what_is_in_use() -> None:
    model, x = FusedMLP([300, 400, 500]), torch.randn(60, 300)
    with torch.no_grad():
        model(x)  # so that the next call's block comes from the cache
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            y = model(x)
            del y
    memory = [e for e in profile.events() if e.name == "[memory]"]
    sizes = [e.cpu_memory_usage for e in memory]
    assert 60 * 500 * 4 in sizes
    assert sum(sizes) == 0  # all that was taken was left


# Whatever may be done with a tensor


def test_resizing() -> None:
    t = fresh(10_000).fill_(3)
    t.resize_(40_000)
    assert (t[:10_000] == 3).all()
    t[10_000:] = 4
    others = [fresh(n).fill_(1) for n in (10_000, 40_000)]
    t.resize_(100).resize_(40_000)
    assert (t == torch.tensor([3.0] * 10_000 + [4.0] * 30_000)).all()
    t.untyped_storage().resize_(0)  # as sharded training does between steps
    others.append(fresh(40_000).fill_(1))
    t.untyped_storage().resize_(160_000)
    t.fill_(5)
    assert all((o == 1).all() for o in others)
    assert_disjoint([t, *others])


def test_sharing() -> None:
    t = fresh(10_000).fill_(3)
    t.share_memory_()
    assert t.is_shared()
    others = [fresh(10_000).fill_(1) for _ in range(2)]
    assert (t == 3).all()
    assert_disjoint([t, *others])


def test_changing_places() -> None:
    """set_, .data and swap_tensors move storages from tensor to tensor."""
    a, b, c = (fresh(10_000).fill_(i) for i in range(3))
    a.set_(b)
    b.data = c
    torch.utils.swap_tensors(b, d := fresh(10_000).fill_(3))
    del c
    others = [fresh(10_000).fill_(9) for _ in range(4)]
    assert [t.unique().tolist() for t in (a, b, d)] == [[1], [3], [2]]
    assert_disjoint([a, b, d, *others])


def copied_by_torch(t: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    result: Tensor = torch.load(file)
    return result


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t)), copied_by_torch, torch.clone],
    ids=["deepcopy", "pickle", "torch.save", "clone"],
)
def test_copies(copied: Callable[[Tensor], Tensor]) -> None:
    t = fresh(10_000).fill_(3)
    other = copied(t)
    assert span(other).stop - span(other).start == 40_000
    assert_disjoint([t, other])
    del t
    fresh(10_000).fill_(1)
    assert (other == 3).all()


def test_inference_mode() -> None:
    model, x = FusedMLP([100, 400]), torch.randn(50, 100)
    with torch.inference_mode():
        y = model(x)
        assert y.is_inference()
        address = y.data_ptr()
        del y
    assert not (y := model(x)).is_inference()
    assert y.data_ptr() == address


# Threads


def test_freed_in_another_thread() -> None:
    tensors: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
    t = fresh(10_000)
    address = t.data_ptr()
    tensors.put(t)
    del t
    thread = threading.Thread(target=tensors.get)
    thread.start()
    thread.join()
    assert _C.cached_bytes() >= 40_000
    assert fresh(10_000).data_ptr() == address


def test_many_threads() -> None:
    """Tensors hold what was written to them while others come and go, in every thread."""
    sizes = [4_096, 5_000, 5_100, 20_000]
    waiting = [fresh(4_096) for _ in range(4_000)]  # to look through, which takes its time
    del waiting
    passed: queue.SimpleQueue[tuple[Tensor, float]] = queue.SimpleQueue()

    def work(worker: int) -> None:
        choose = random.Random(worker)
        held: list[tuple[Tensor, float]] = []
        for i in range(2_000):
            mark = float(worker * 10_000 + i)
            held.append((fresh(choose.choice(sizes)).fill_(mark), mark))
            if len(held) > 6:
                t, mark = held.pop(choose.randrange(len(held)))
                assert (t == mark).all()
                passed.put((t, mark))  # somebody else frees it
                del t
                t, mark = passed.get()
                assert (t == mark).all()
                del t
        assert all((t == mark).all() for t, mark in held)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_gradients_of_many_threads() -> None:
    """Backward takes and leaves blocks without the GIL: all threads are at the cache at once."""
    waiting = [fresh(4_096) for _ in range(4_000)]
    del waiting
    models = [FusedMLP([64] * 9, activation="tanh") for _ in range(4)]
    x = torch.randn(2, 64)

    def gradients(model: FusedMLP) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x).sum(), list(model.parameters()))

    expected = [gradients(model) for model in models]

    def work(worker: int) -> None:
        for _ in range(500):
            for a, b in zip(gradients(models[worker]), expected[worker], strict=True):
                assert torch.equal(a, b)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# Processes

FORK = """
import os, signal, threading, torch
import fastmlp
from fastmlp import FusedMLP

torch.manual_seed(0)
torch.set_num_threads(1)
model, x = FusedMLP([64, 300, 200]), torch.randn(40, 64)
parameters = list(model.parameters())

def work():
    return torch.autograd.grad(model(x).square().sum(), parameters)

expected = work()
held = work()  # the child, too, frees it
ended = False

def in_the_background():
    with torch.no_grad():
        while not ended:
            model(x)

threads = [threading.Thread(target=in_the_background) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(12):  # some are forked while another thread is at the cache
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        del held
        fastmlp.empty_cache()
        same = all(
            torch.equal(a, b) for _ in range(5) for a, b in zip(work(), expected, strict=True)
        )
        os._exit(0 if same else 3)
    children.append(child)
    assert all(torch.equal(a, b) for a, b in zip(work(), expected, strict=True))
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
ended = True
for thread in threads:
    thread.join()
assert all(torch.equal(a, b) for a, b in zip(held, expected, strict=True))
assert statuses == [0] * len(children), statuses
print("equal")
"""


@LINUX
def test_fork() -> None:
    """A child and its parent each use and free what both know of."""
    assert output(FORK).strip() == "equal"


SENT = """
import torch
import torch.multiprocessing as mp
from fastmlp import FusedMLP

def work(model, x):
    torch.set_num_threads(1)
    y = model(x)
    y.sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]

def child(model, x, results, done):
    results.put(work(model, x))
    done.wait()  # what it sent are files of its own

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, x = FusedMLP([64, 300, 200]), torch.randn(40, 64)
    context = mp.get_context("fork")
    results, done = context.SimpleQueue(), context.Event()
    process = context.Process(target=child, args=(model, x, results, done))
    process.start()
    got = results.get()
    for a, b in zip(got, work(model, x), strict=True):
        assert a.is_shared()
        assert torch.equal(a, b)
    done.set()
    process.join()
    assert process.exitcode == 0
    print("equal")
"""


@LINUX
def test_sent_to_another_process() -> None:
    assert output(SENT).strip() == "equal"
