"""The compiled extension: csrc/bindings.cpp."""

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

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
def saves_input(activation: int) -> bool: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def record_kernels(on: bool) -> None: ...
def recorded_kernels() -> list[str]: ...
def fma_peak(seconds: float, threads: int, dtype: str = "float32") -> float: ...
def build_info() -> BuildInfo: ...
