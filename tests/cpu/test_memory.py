"""Kernels read nothing outside of their inputs and write nothing outside of their outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fused import ISAS
from processes import output, run

SUPPORT = str(Path(__file__).parents[1] / "support")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

# Operands end, or begin, where an unreadable page does: a number too far is a segmentation fault.
GUARDED = """
import ctypes, faulthandler, math, mmap, sys
import torch
from torch import nn
from fastmlp import _C, FusedMLP, TrainStep, functional
sys.path.insert(0, SUPPORT)
from fused import encode

faulthandler.enable()
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE

class Arena:
    def __init__(self, pages=40):
        self.size = pages * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for guard in (address, address + PAGE + self.size):
            assert libc.mprotect(guard, PAGE, 0) == 0

    def tensor(self, shape, dtype, at_end):
        count = math.prod(shape)
        offset = PAGE + (self.size - count * dtype.itemsize if at_end else 0)
        flat = torch.frombuffer(self.map, dtype=dtype, count=count, offset=offset)
        return flat.view(shape).normal_()

arenas = [Arena() for _ in range(11)]

def run(batch, sizes, dtype, at_end, hidden, background=None, blocks=False):
    free = iter(arenas)
    make = lambda *shape: next(free).tensor(shape, dtype, at_end)
    network = lambda x, weights, biases: functional.mlp(x, weights, biases, hidden)
    if blocks:  # dropout and the layer's input after each activation
        noises = [make(batch, n) for n in sizes[1:]]
        network = lambda x, weights, biases: torch.ops.fastmlp.mlp(
            x, *encode(weights, biases, [hidden] * len(noises), noises, [True] * len(noises))
        )
    layers = list(zip(sizes, sizes[1:]))
    x, g = make(batch, sizes[0]), make(batch, sizes[-1])
    if background is not None:
        x[torch.rand(x.shape) > 0.04] = background
    weights = [make(n, m) for m, n in layers]
    biases = [make(n) for _, n in layers]
    given = [x, *weights, *biases]
    before = [t.clone() for t in given + [g]]
    for t in given:
        t.requires_grad_()
    with torch.no_grad():
        network(x, weights, biases)
    y = network(x, weights, biases)
    grads = torch.autograd.grad(y, given, g)
    assert all(torch.equal(a, b) for a, b in zip(before, given + [g]))
    return [y, *grads]
"""

READS = (
    GUARDED
    + """
_C.set_isa(ISA)
EDGES = [1, 2, 3, 15, 16, 17, 31, 33, 64, 65]
for dtype in (torch.float32, torch.float64):
    for at_end in (True, False):
        for i, batch in enumerate(EDGES):
            for j, m in enumerate(EDGES):
                n = EDGES[(i + j) % len(EDGES)]
                run(batch, [m, n], dtype, at_end, "relu")
                run(batch, [m, n, m], dtype, at_end, "gelu")
                run(batch, [m, m, m], dtype, at_end, ("relu", "gelu")[j % 2], blocks=True)
print("done")
"""
)

# Products that leave steps out, alone and in training, whose weight they turn and turn back.
SPARSE = (
    GUARDED
    + """
_C.set_isa(ISA)
torch.manual_seed(0)
arenas = [Arena(110) for _ in range(8)]
left_out = lambda: any(name.startswith("listed_") for name in _C.recorded_kernels())

def train(batch, sizes, dtype, at_end, background, make_optimizer):
    free = iter(arenas)
    model = FusedMLP(sizes, dtype=dtype)
    for p in model.parameters():
        p.data = next(free).tensor(p.shape, dtype, at_end).div_(9)
    x = next(free).tensor((3 * batch, sizes[0]), dtype, at_end)
    x[torch.rand(x.shape) > 0.04] = background
    y = torch.randint(sizes[-1], (len(x),))
    step = TrainStep(model, nn.CrossEntropyLoss(), make_optimizer(model.parameters()))
    step(x[:batch], y[:batch])
    step(x[2 * batch :], y[2 * batch :])
    x[batch : 2 * batch].normal_()  # dense between sparse ones: what is kept is written back
    step.fit((x, y), batch, shuffle=False)
    assert all(p.isfinite().all() for p in model.parameters())

for dtype in (torch.float32, torch.float64):
    for at_end in (True, False):
        for background in (0.0, -0.3):
            _C.record_kernels(True)
            for batch, m, n in (
                (32, 64, 300), (50, 65, 129), (64, 97, 144), (100, 111, 97), (101, 130, 113),
            ):
                run(batch, [m, n], dtype, at_end, "relu", background)
                run(batch, [m, n, 5], dtype, at_end, "gelu", background)
            assert left_out()
            for make_optimizer in (
                lambda p: torch.optim.SGD(p, 0.01),
                lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
            ):
                for batch, m, n in ((50, 65, 129), (64, 97, 144), (100, 111, 97)):
                    _C.record_kernels(True)
                    train(batch, [m, n], dtype, at_end, background, make_optimizer)
                    assert left_out()
                    train(batch, [m, n, 5], dtype, at_end, background, make_optimizer)
print("done")
"""
)

# The proof that the pages are guarded.
FAULTY = (
    GUARDED
    + """
t = arenas[0].tensor((5,), torch.float32, AT_END)
print(ctypes.c_float.from_address(t.data_ptr() + (20 if AT_END else -4)).value)
"""
)


@pytest.mark.parametrize("isa", ISAS)
def test_reads_nothing_outside(isa: str) -> None:
    assert output(f"ISA = {isa!r}\nSUPPORT = {SUPPORT!r}\n{READS}").strip() == "done"


@pytest.mark.parametrize("isa", ISAS)
def test_sparse_inputs_are_read_inside(isa: str) -> None:
    assert output(f"ISA = {isa!r}\nSUPPORT = {SUPPORT!r}\n{SPARSE}").strip() == "done"


@pytest.mark.parametrize("at_end", [True, False])
def test_guards_are_there(at_end: bool) -> None:
    assert run(f"AT_END = {at_end}\nSUPPORT = {SUPPORT!r}\n{FAULTY}").returncode < 0


# glibc's checking allocator puts a mark after each block and stops the process that changed one.
CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"}
MAPPED = "any('libc_malloc_debug' in line for line in open('/proc/self/maps'))"

WRITES = """
import torch
from torch import nn
from fastmlp import _C, FusedMLP, TrainStep, empty_cache, functional
_C.set_isa(ISA)
EDGES = [1, 2, 3, 15, 16, 17, 31, 33, 64, 65]
for dtype in (torch.float32, torch.float64):
    for i, batch in enumerate(EDGES):
        for j, m in enumerate(EDGES):
            n = EDGES[(i + j) % len(EDGES)]
            for sizes, hidden in (([m, n], "relu"), ([m, n, m], "gelu"), ([m, n, n, m], "tanh")):
                make = lambda *shape: torch.randn(shape, dtype=dtype, requires_grad=True)
                weights = [make(b, a) for a, b in zip(sizes, sizes[1:])]
                biases = [make(b) for b in sizes[1:]]
                x = make(batch, m)
                functional.mlp(x, weights, biases, hidden).sum().backward()
                with torch.no_grad():
                    functional.mlp(x, weights, biases, hidden)
            model = FusedMLP([m, n, n, m], dropout=0.5, residual=True, dtype=dtype)
            model(x).sum().backward()
            with torch.no_grad():
                model(x)

# Inputs that are mostly one value, and what training on them keeps.
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for background in (0.0, -0.3):
        for batch, m, n in (
            (32, 64, 300), (50, 65, 129), (64, 97, 144), (101, 130, 113), (400, 385, 97),
        ):
            x = torch.randn(3 * batch, m, dtype=dtype)
            x[torch.rand(x.shape) > 0.04] = background
            x[batch : 2 * batch].normal_()
            y = torch.randint(5, (len(x),))
            for options in ({}, {"momentum": 0.9}):
                model = FusedMLP([m, n, n, 5], dropout=0.2, residual=True, dtype=dtype)
                optimizer = torch.optim.SGD(model.parameters(), 0.01, **options)
                step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
                _C.record_kernels(True)
                step(x[:batch], y[:batch])
                assert any(name.startswith("listed_") for name in _C.recorded_kernels())
                step.fit((x, y), batch, shuffle=False)
                model(x[:batch]).sum().backward()
                with torch.no_grad():
                    model(x[:batch])
            empty_cache()  # what has been written past is found when memory is given back
print("done")
"""


@pytest.fixture(scope="module")
def _checked_allocator() -> None:
    if output(f"print({MAPPED})", **CHECKED).strip() != "True":
        pytest.skip("glibc's libc_malloc_debug is not installed")


@pytest.mark.usefixtures("_checked_allocator")
@pytest.mark.parametrize("isa", ISAS)
def test_writes_nothing_outside(isa: str) -> None:
    assert output(f"ISA = {isa!r}\n{WRITES}", **CHECKED).strip() == "done"


@pytest.mark.usefixtures("_checked_allocator")
def test_allocator_checks() -> None:
    fault = """
import ctypes, torch
t = torch.empty(5)
ctypes.c_ubyte.from_address(t.data_ptr() + 20).value ^= 1  # the mark may be any number
del t
print("done")
"""
    done = run(fault, **CHECKED)
    assert done.returncode < 0
    assert "done" not in done.stdout
