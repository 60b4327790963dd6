"""DistributedDataParallel: two processes over gloo find one process's gradients."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from reference import assert_within, exact, per_layer
from torch import Tensor, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from fastmlp import FusedMLP

SIZES = [20, 30, 25, 10]
BATCH = 16  # of both processes together


def data() -> tuple[FusedMLP, Tensor, Tensor]:
    torch.manual_seed(0)
    model = FusedMLP(SIZES)
    return model, torch.randn(BATCH, SIZES[0]), torch.randn(BATCH, SIZES[-1])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model, x, g = data()
        # Buckets so small that there are several, filled in backward's order.
        ddp = DistributedDataParallel(model, bucket_cap_mb=0.001, gradient_as_bucket_view=True)
        half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        for _ in range(2):  # buckets are rebuilt after the first
            ddp.zero_grad()
            ddp(x[half]).backward(g[half])
        assert model.why_plain(x) is None
        torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model, x, g = data()
    parameters = list(model.parameters())
    # The mean over the processes is half of one process's gradient of everything.
    expected = exact(x, parameters[::2], parameters[1::2], per_layer(3), g / 2)
    for got, want in zip(first[::2], expected.weights, strict=True):
        assert want is not None
        assert_within(got, want)
    for got, want in zip(first[1::2], expected.biases, strict=True):
        assert want is not None
        assert_within(got, want)
