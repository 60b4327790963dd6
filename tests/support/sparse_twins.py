"""Trainings on such inputs, in pairs."""

from __future__ import annotations

import torch
from sparse_inputs import sparse
from torch import Tensor, nn
from twins import (
    EXACT,
    LOSSES,
    OPTIMIZERS,
    LossCase,
    MakeOptimizer,
    Twins,
    assert_close,
    float32_bound,
)

from fastmlp import _C, FusedMLP

SIZES = [90, 200, 17, 5]  # where leaving steps out pays in both products
ROWS = 100


def forms() -> set[str]:
    return {name.split("_")[0] for name in _C.recorded_kernels()}


class SparseTwins(Twins):
    """A network and its plain twin, on batches that are mostly one value."""

    def __init__(
        self,
        loss: LossCase = LOSSES["ce"],
        make_optimizer: MakeOptimizer = OPTIMIZERS["sgd"],
        dtype: torch.dtype = torch.float64,
        sizes: list[int] = SIZES,
        max_grad_norm: float | None = None,
        value: float = 0.0,
        activation: str = "gelu",
        model: nn.Sequential | None = None,
    ) -> None:
        model = model or FusedMLP(sizes, activation=activation, dtype=dtype)
        super().__init__(loss._replace(size=1), make_optimizer, dtype, model, max_grad_norm)
        self.sizes, self.value = sizes, value

    def batch(self, *rows: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(*(rows or (ROWS,)))
        return sparse(*x.shape, 0.02, self.value, self.dtype), y

    def check(self, steps: int = 3, relative: float | None = None, *rows: int) -> None:
        """… and steps were left out in each."""
        if relative is None:
            bound = float32_bound(steps, self.sizes, rows[0] if rows else ROWS)
            relative = EXACT if self.dtype == torch.float64 else bound
        # In float32 the state may hold a single number whose terms cancel.
        compare = self.compare if self.dtype == torch.float64 else self.compare_parameters
        for number in range(steps):
            _C.record_kernels(True)
            actual, expected = self.train(*self.batch(*rows))
            assert "listed" in forms()
            _C.record_kernels(False)
            assert_close(actual, expected, relative, f"loss of step {number}")
        compare(relative)
