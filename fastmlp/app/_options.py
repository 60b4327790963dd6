"""What `fastmlp train` is asked to do; apart from train.py, which --help need not import."""

from __future__ import annotations

from dataclasses import dataclass

# The loops of `fastmlp train`, from torch's own to the fastest. --compare shows them in this order.
LOOPS = PLAIN, FUSED, STEP = "plain", "fused", "step"


@dataclass(frozen=True)
class Options:
    """One field an option of the command line; the defaults are the lecture's."""

    data_dir: str | None = None  # None: the embedded digits
    download: bool = False
    sizes: tuple[int, ...] | None = (
        None  # None: pixels, 300, as many classes as labels need, at least 10
    )
    epochs: int = 30
    batch_size: int = 50
    lr: float = 0.01
    seed: int = 0
    loop: str | None = None  # None: the fastest that the device allows
    compare: bool = False  # all loops up to that one, side by side
    device: str = "cpu"
    threads: int | None = None  # None: torch's own choice
    plot: str | None = None
    checkpoint: str | None = None
    checkpoint_every: int = 500  # batches
    resume: bool = False
    overwrite: bool = False


# The options that determine a training's numbers. A checkpoint keeps them, and a resumed training
# must agree; only the epochs may grow.
KEPT = ("data_dir", "sizes", "epochs", "batch_size", "lr", "seed", "loop", "compare")
