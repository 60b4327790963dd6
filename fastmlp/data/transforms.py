"""The lecture's transforms, for one image or for a whole batch at once.

They take and give what torchvision's of the same name do, bit for bit, and accept tensors of bytes
too: `[1, H, W]` for one image, `[n, 1, H, W]` for a batch. A transform that treats a batch as it
treats each image says so with a true attribute `on_batches`; datasets then hand it whole batches.
A class that inherits it, and has a `__call__` of its own, has not said so: it gets one tensor at a
time. Any other transform gets one PIL image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .augment import check_amounts, deskew, distort


class Deskew:
    """`fastmlp.data.deskew` of uint8 tensors `[n, 1, H, W]`; stands before ToTensor()."""

    on_batches = True

    def __call__(self, images: Tensor) -> Tensor:
        return deskew(images)

    def __repr__(self) -> str:
        return "Deskew()"


class Distort:
    """`fastmlp.data.distort` of uint8 tensors `[n, 1, H, W]`; stands before ToTensor().

    Args:
        rotation, scale, shear, translation, alpha, sigma: as of distort.
        generator: likewise. Leave it None where a DataLoader has workers: torch seeds the default
            generator of each, while of this one each would have the same copy.
    """

    on_batches = True

    def __init__(
        self,
        *,
        rotation: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        translation: float = 0.0,
        alpha: float = 0.0,
        sigma: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_amounts(rotation, scale, shear, translation, alpha, sigma)
        self.amounts = {
            "rotation": rotation,
            "scale": scale,
            "shear": shear,
            "translation": translation,
            "alpha": alpha,
            "sigma": sigma,
        }
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        return distort(images, **self.amounts, generator=self.generator)

    def __repr__(self) -> str:
        return f"Distort({', '.join(f'{name}={value}' for name, value in self.amounts.items())})"


class ToTensor:
    """Bytes to floats in [0, 1] of torch's default dtype.

    A PIL image of C channels gives `[C, H, W]`; a uint8 tensor keeps its shape.

    Raises:
        TypeError: the image is neither of bytes.
    """

    on_batches = True

    def __call__(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            image = _from_pil(image)
        if image.dtype != torch.uint8:
            raise TypeError(f"ToTensor takes images of bytes, not of {image.dtype}")
        result: Tensor = image.to(torch.get_default_dtype()).div_(255)
        return result

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """`(image - mean) / std`, channel by channel.

    Args:
        mean: one number a channel, in units of the image's values.
        std: likewise; not zero.
    """

    on_batches = True

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if not all(self.std):
            raise ValueError(f"Normalize divides by std, which has a zero: {self.std}")

    def __call__(self, image: Tensor) -> Tensor:
        """image: floats `[..., C, H, W]`; so is the result, in new memory."""
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise TypeError("Normalize takes a tensor of floats: put ToTensor() before it")
        return image.sub(_by_channel(self.mean, image)).div_(_by_channel(self.std, image))

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    @property
    def on_batches(self) -> bool:
        return all(getattr(transform, "on_batches", False) for transform in self.transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return f"Compose({self.transforms})"


def takes_batches(transform: Any) -> bool:
    """Whether a transform treats a batch as it treats each image.

    `on_batches` speaks for the code of the class that sets it, not for a `__call__` that a derived
    class has put in its place: reshaping one image, say, is something else on a batch.
    """
    if not getattr(transform, "on_batches", False):
        return False
    if "on_batches" in getattr(transform, "__dict__", ()):
        return True
    for each in type(transform).__mro__:
        if each is Compose:
            return all(takes_batches(part) for part in transform.transforms)
        names = vars(each)
        if "on_batches" in names or "__call__" in names or "forward" in names:
            return "on_batches" in names
    return True


def _by_channel(values: tuple[float, ...], image: Tensor) -> Any:
    """What broadcasts over `[..., C, H, W]`; one channel, the usual case, needs no tensor."""
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=image.dtype, device=image.device).view(-1, 1, 1)


def _from_pil(image: Any) -> Tensor:
    if not hasattr(image, "getbands"):
        raise TypeError(f"ToTensor takes a PIL image or a uint8 tensor, not {type(image).__name__}")
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
