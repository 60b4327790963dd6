"""The caller's floating-point state: the same bits on any number of threads, and nothing left."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fastmlp import FusedMLP, TrainStep

THREADS = (1, 2, 3, 4)
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(autouse=True)
def _pool(threads: int) -> None:
    """torch's threads are there, with the flags of the moment when they were started."""
    torch.set_num_threads(max(THREADS))
    FusedMLP([256, 256])(torch.randn(512, 256))


@pytest.fixture
def flush() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such flag")
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=[0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def rounding(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Rounds in another way than to the nearest, until it is called."""
    if not X86:
        pytest.skip("the numbers of the modes are those of x86")
    library = ctypes.CDLL(None)
    library.fesetround(request.param)
    yield lambda: library.fesetround(0)
    library.fesetround(0)


def dense(rows: int, features: int) -> Tensor:
    return torch.randn(rows, features)


def zeros_and_subnormal(rows: int, features: int) -> Tensor:
    """Mostly one value; which of them counts as zero is a matter of the flag."""
    x = torch.full((rows, features), 1e-39)
    x[torch.rand(rows, features) < 0.1] = 1.0
    return x


def all_subnormal(rows: int, features: int) -> Tensor:
    return torch.randn(rows, features).double().mul(1e-39).float()


def results(inputs: Callable[[int, int], Tensor], steps: int) -> list[Tensor]:
    """Of forward and backward, and of training, large enough to be divided among four."""
    torch.manual_seed(0)
    model = FusedMLP([256, 256, 64], activation="gelu")
    x = inputs(512, 256)
    # Subnormal gradients and moments as well.
    y = model(x)
    gradients = torch.autograd.grad((y * 1e-36).sum(), list(model.parameters()))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-30)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=1e-20)
    losses = [step(x, torch.arange(512) % 64) for _ in range(steps)]
    state = [v for s in optimizer.state.values() for v in s.values()]
    plain = FusedMLP([256, 256, 64])
    TrainStep(plain, nn.CrossEntropyLoss(), torch.optim.SGD(plain.parameters(), 0.1)).fit(
        (x, torch.arange(512) % 64), 256, shuffle=False, progress=False
    )
    return [y.detach(), *gradients, *losses, *state, *model.parameters(), *plain.parameters()]


def same_bits(inputs: Callable[[int, int], Tensor]) -> list[Tensor]:
    first: list[Tensor] = []
    for count in THREADS:
        torch.set_num_threads(count)
        found = [t.detach().reshape(-1).view(torch.int32) for t in results(inputs, 2)]
        first = first or found
        for i, (a, b) in enumerate(zip(first, found, strict=True)):
            assert torch.equal(a, b), f"result {i} differs between 1 and {count} threads"
    return first


INPUTS = [dense, zeros_and_subnormal, all_subnormal]


@pytest.mark.parametrize("inputs", INPUTS)
def test_flushed_subnormals_on_any_number_of_threads(
    isa: str, flush: None, inputs: Callable[[int, int], Tensor]
) -> None:
    flushed = same_bits(inputs)
    torch.set_flush_denormal(False)
    kept = same_bits(inputs)
    if inputs is not dense:
        assert not all(torch.equal(a, b) for a, b in zip(flushed, kept, strict=True))


@pytest.mark.parametrize("inputs", [dense])
def test_any_rounding_on_any_number_of_threads(
    isa: str, rounding: Callable[[], None], inputs: Callable[[int, int], Tensor]
) -> None:
    rounded = same_bits(inputs)
    rounding()
    nearest = same_bits(inputs)
    assert not all(torch.equal(a, b) for a, b in zip(rounded, nearest, strict=True))


def test_the_pool_s_own_state_is_put_back(flush: None) -> None:
    torch.set_num_threads(4)
    FusedMLP([256, 256])(all_subnormal(512, 256))
    torch.set_flush_denormal(False)
    subnormal = torch.full((1 << 20,), 1e-39)  # enough to be divided
    assert bool((subnormal * 0.5 > 0).all())
