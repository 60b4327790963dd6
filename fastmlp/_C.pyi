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
# csrc/cpu/resample.h and augment.h
MOST_PIXELS: int
MOST_NOISE: float
NOISE_VARIANCE: float
MOST_HALF: int

def run(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    dropouts: Sequence[float],
    skips: Sequence[bool],
    /,
) -> Tensor | None: ...
def why_plain(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[int],
    slopes: Sequence[float],
    dropouts: Sequence[float],
    skips: Sequence[bool],
    /,
) -> str | None: ...
def run_modules(modules: dict[str, Module], input: Tensor, /) -> Tensor | None: ...

# weights, biases, activations, slopes, dropouts, skips
_Network = tuple[list[Tensor], list[Tensor | None], list[int], list[float], list[float], list[bool]]
# kind, mean, ignore_index, label_smoothing, weight, pos_weight
_Loss = tuple[int, bool, int, float, Tensor | None, Tensor | None]
# kind, param_groups, state, dicts of hooks that have to be empty
_Optimizer = tuple[int, list[dict[str, Any]], dict[Tensor, Any], tuple[dict[Any, Any], ...]]

def train_step(
    network: dict[str, Module] | _Network,
    input: Tensor,
    target: Tensor,
    loss: _Loss,
    optimizer: _Optimizer,
    max_grad_norm: float | None,
    /,
) -> tuple[Tensor, int] | None: ...
def train_steps(
    network: dict[str, Module] | _Network,
    buffer: Tensor,
    inputs: Tensor,
    targets: Tensor,
    order: Tensor,
    batch_size: int,
    scale: float,
    shift: float,
    loss: _Loss,
    optimizer: _Optimizer,
    max_grad_norm: float | None,
    /,
) -> tuple[Tensor, Tensor] | None: ...
def know_modules(
    linear: type[Module],
    dropout: type[Module],
    residual: type[Module],
    device_context: type[Any],
    activations: dict[type[Module], int],
    global_hooks: list[dict[int, Any]],
    hooks: list[str],
) -> None: ...
def saves_sums(activation: int) -> bool: ...
def saves_output(activation: int) -> bool: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def get_isa() -> str: ...
def second_level_cache_bytes() -> int: ...
def set_second_level_cache_bytes(bytes: int, /) -> None: ...
def tiles(dtype: str, /) -> dict[str, Any]: ...
def set_isa(name: str) -> None: ...
def deskew(images: Tensor) -> Tensor: ...
def distort(
    images: Tensor,
    rotation: float,
    scale: float,
    shear: float,
    translation: float,
    elastic: tuple[Tensor, Tensor, float] | None,
    key: int,
) -> Tensor: ...
def cached_bytes() -> int: ...
def empty_cache() -> None: ...
def record_kernels(on: bool) -> None: ...
def recorded_kernels() -> list[str]: ...
def fma_peak(seconds: float, threads: int, dtype: str = "float32") -> float: ...
def build_info() -> BuildInfo: ...
