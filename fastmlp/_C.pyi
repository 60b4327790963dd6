"""The compiled extension: csrc/python/module.cpp."""

from typing import Any, TypedDict

from torch import Tensor
from torch.nn import Module

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    torch: str
    openmp: bool

# csrc/network: names, in the order of their numbers
ACTIVATIONS: tuple[str, ...]
LOSSES: tuple[str, ...]
# … of which targets may be classes, and which take variances beside them
CLASS_LOSSES: tuple[str, ...]
VARIANCE_LOSSES: tuple[str, ...]
OPTIMIZERS: tuple[str, ...]
# name, torch.nn's class, ATen's operator, parameters, a rule for each of them (Parameter::Rule of
# csrc/network/activations.h), and an attribute of the class and its value
ACTIVATION_INFOS: tuple[
    tuple[str, str, str, dict[str, float], tuple[int, ...], str | None, str | None], ...
]
# csrc/images
MOST_PIXELS: int
MOST_NOISE: float
NOISE_VARIANCE: float
MOST_HALF: int

def run(
    input: Tensor, operands: list[Tensor], program: list[int], constants: list[float], /
) -> Tensor | None: ...
def why_plain(
    input: Tensor, operands: list[Tensor], program: list[int], constants: list[float], /
) -> str | None: ...
def run_modules(modules: dict[str, Module], input: Tensor, /) -> Tensor | None: ...
def call_model(model: Module, input: Any, /) -> Any: ...  # or None, or NotImplemented
def train_step(step: Any, input: Tensor, target: Any, /) -> Tensor | None: ...
def train_steps(
    step: Any,
    buffer: Tensor,
    inputs: Tensor,
    targets: Any,
    order: Tensor,
    batch_size: int,
    scale: float,
    shift: float,
    /,
) -> tuple[Tensor, Tensor] | None: ...
def know_training(
    loss_classes: list[type[Module]], optimizer_classes: list[type[Any]], /
) -> None: ...
def check_train_step(step: Any, /) -> bool: ...
def know_modules(
    classes: dict[str, Any],
    activation_classes: list[type[Module]],
    activation_names: dict[str, int],
    global_hooks: list[dict[int, Any]],
    hooks: list[str],
) -> None: ...
def weights(program: list[int], constants: list[float], /) -> list[int]: ...
def saved_weights(
    program: list[int], constants: list[float], needs: list[bool], /
) -> list[int]: ...
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
