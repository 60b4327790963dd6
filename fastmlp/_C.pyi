"""The compiled extension: csrc/bindings.cpp."""

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor
from torch.nn import Module

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    torch: str
    openmp: bool

ACTIVATIONS: tuple[str, ...]

def run(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    /,
) -> Tensor | None: ...
def why_plain(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    /,
) -> str | None: ...
def run_modules(modules: dict[str, Module], input: Tensor, /) -> Tensor | None: ...
def know_modules(
    linear: type[Module],
    activations: dict[type[Module], int],
    global_hooks: list[dict[int, Any]],
    hooks: list[str],
) -> None: ...
def saves_sums(activation: int) -> bool: ...
def saves_output(activation: int) -> bool: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def record_kernels(on: bool) -> None: ...
def recorded_kernels() -> list[str]: ...
def fma_peak(seconds: float, threads: int, dtype: str = "float32") -> float: ...
def build_info() -> BuildInfo: ...
