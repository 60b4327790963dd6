"""PyTorch's multilayer perceptron, with the same numbers, in fewer and faster steps."""

from fastmlp import functional
from fastmlp._ops import empty_cache, get_isa
from fastmlp._version import __version__
from fastmlp.explanation import Explanation, explain
from fastmlp.fusion import fuse, unfuse
from fastmlp.modules import FusedLinear, FusedMLP, Gated, Residual
from fastmlp.train_step import TrainStep

__all__ = [
    "Explanation",
    "FusedLinear",
    "FusedMLP",
    "Gated",
    "Residual",
    "TrainStep",
    "__version__",
    "empty_cache",
    "explain",
    "functional",
    "fuse",
    "get_isa",
    "unfuse",
]
