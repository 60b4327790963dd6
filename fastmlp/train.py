"""Where scripts find what `fastmlp train` runs: `fastmlp.train.train`."""

from fastmlp.app.train import Interrupted, Training, train

__all__ = ["Interrupted", "Training", "train"]
