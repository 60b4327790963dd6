"""Files of images for the tests: IDX, PNG trees, and where MNIST lies, if it does."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

PARTS = {True: "train", False: "t10k"}
TREES = {True: "training", False: "testing"}


def random_images(count: int, height: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    """Images of all byte values and labels 0 … 9, each of which occurs if there are ten."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


def idx_bytes(array: Tensor) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


def write_idx(folder: Path, images: Tensor, labels: Tensor, train: bool, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(array)
        path = folder / f"{PARTS[train]}-{name}-ubyte{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)


def write_png_tree(folder: Path, images: Tensor, labels: Tensor) -> None:
    pil = pytest.importorskip("PIL.Image")
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / str(label) / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pil.fromarray(image.numpy()).save(path)


def mnist_folder() -> Path | None:
    """The folder of the MNIST files, None where there is none."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("FASTMLP_MNIST", beside))
    return folder if folder.is_dir() else None


needs_mnist = pytest.mark.skipif(mnist_folder() is None, reason="the MNIST files are not here")
