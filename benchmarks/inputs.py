"""What the rows of an input hold: random numbers, images of digits, or one-hot features."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from shapes import Shape
from torch import Tensor

if TYPE_CHECKING:
    from fastmlp.data import ImageDataset

IMAGES = ("mnist", "mnist-raw")
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, as the lecture has them
VALUES = 50  # of one feature before it is one-hot


@lru_cache(maxsize=2)
def images(kind: str, data_dir: str | None) -> ImageDataset:
    """The training images with the transform of their kind.

    Args:
        kind: "mnist" is normalised as in the lecture, so that the background is a constant;
            "mnist-raw" is in [0, 1], with a background of 0.
        data_dir: the folder of MNIST, as IDX files or PNG tree; None: :func:`strokes`.
    """
    # Not above: earlier versions, which compare.py runs, do not have it.
    from fastmlp.data import Compose, DataError, ImageDataset, MNISTDataset, Normalize, ToTensor

    normalize = [Normalize((MEAN,), (DEVIATION,))] if kind == "mnist" else []
    transform = Compose([ToTensor(), *normalize])
    if data_dir is None:
        return ImageDataset(*strokes(10_000), transform)
    try:
        return MNISTDataset(data_dir, train=True, transform=transform)
    except DataError as error:
        raise SystemExit(str(error)) from None


def strokes(count: int) -> tuple[Tensor, Tensor]:
    """What stands in for MNIST: as large, as sparse and in as long runs, the same in every run.

    Each class has three curves of its own, which every image bends a little. 19.5 % of the pixels
    are drawn on, of MNIST 19.1 %; in a batch of 50, 65 and 61 % are drawn on in some image; runs of
    such pixels are 6.9 and 5.9 long.

    Returns:
        images uint8 (count, 28, 28) and labels int64 (count,).
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    control = 5 + 17 * torch.rand(10, 3, 3, 2, generator=generator)  # class, curve, point, y and x
    t = torch.linspace(0, 1, 13)
    bezier = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
    pixels = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0))
    drawn = []
    for part in labels.split(1000):
        bent = control[part] + 1.5 * torch.randn(len(part), 3, 3, 2, generator=generator)
        points = (bezier @ bent).flatten(1, 2)
        distance = torch.cdist(pixels.expand(len(part), -1, -1), points).amin(2)
        drawn.append(((2.1 - distance) / 1.5).clamp(0, 1).mul(255).to(torch.uint8))
    return torch.cat(drawn).view(count, 28, 28), labels


def draw(shape: Shape, generator: torch.Generator, data_dir: str | None) -> Tensor:
    """A batch of the shape's input, float32 (batch, in).

    Args:
        generator: what it is drawn from.
        data_dir: as of :func:`images`.
    """
    size = (shape.batch, shape.sizes[0])
    if shape.input == "random":
        return torch.randn(size, generator=generator)
    if shape.input == "onehot":
        fields = (shape.batch, shape.sizes[0] // VALUES)
        chosen = torch.randint(VALUES, fields, generator=generator)
        return torch.nn.functional.one_hot(chosen, VALUES).flatten(1).float()
    data = images(shape.input, data_dir)
    if data.images[0].numel() != shape.sizes[0]:
        height, width = data.images.shape[1:]
        raise SystemExit(f"{data_dir}: images of {height}×{width} pixels, not of {shape.sizes[0]}")
    rows = torch.randint(len(data), (shape.batch,), generator=generator)
    assert data.transform is not None
    x: Tensor = data.transform(data.images[rows].unsqueeze(1)).flatten(1)
    return x


@lru_cache
def note(shape: Shape, data_dir: str | None) -> str:
    """What the shape's input is, in a few words."""
    if shape.input == "random":
        return "random"
    if shape.input == "onehot":
        return f"one-hot features, {1 / VALUES:.0%} are not 0"
    data = images(shape.input, data_dir)
    what = "strokes in the place of MNIST" if data_dir is None else "images of --data-dir"
    scale = "normalised" if shape.input == "mnist" else "in [0, 1]"
    return f"{what}, {scale}, {(data.images > 0).float().mean():.1%} drawn on"
