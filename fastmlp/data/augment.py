"""Images made upright, and images distorted at random, as bytes.

    images = deskew(images)                                    # once, before training
    images = distort(images, rotation=7.5, alpha=34, sigma=4)  # anew for every batch

As transforms of a data set, `Deskew()` and `Distort(rotation=7.5, alpha=34, sigma=4)` stand before
`ToTensor()`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def deskew(images: Tensor) -> Tensor:
    """The images without their slant, in the middle.

    Each row is moved sideways in proportion to its height, so that what is drawn has no covariance
    of x and y left, and the whole so that its centre of mass lies at the centre of the image: the
    moment-based shear with which LeCun, Bottou, Bengio and Haffner (1998) prepared MNIST's digits
    for their linear classifiers. Interpolation is bilinear, what lies outside is black.

    Args:
        images: uint8 `[n, H, W]`, `[n, 1, H, W]` or `[H, W]`; 0 is black.

    Returns:
        The same shape and dtype in new memory. Black images stay black, and those that are drawn
        on in a single row are moved only.

    Raises:
        TypeError: images is no tensor of uint8.
        ValueError: images has another shape or is not on the CPU.
    """
    stack = _stack(images, "deskew")
    height, width = stack.shape[1:]
    y, x = _grid(height, width)
    weight = stack.double()
    mass = weight.sum((1, 2)).clamp(min=1).view(-1, 1, 1)
    mean_x, mean_y = ((weight * place).sum((1, 2), True) / mass for place in (x, y))
    covariance, variance = (
        (weight * place * (y - mean_y)).sum((1, 2), True) for place in (x - mean_x, y - mean_y)
    )
    slant = torch.where(variance > 0, covariance / variance, 0)
    drop = y - (height - 1) / 2
    source_x = mean_x + (x - (width - 1) / 2) + slant * drop
    source_y = mean_y + drop
    return _sample(stack, source_y, source_x).view(images.shape)


def distort(
    images: Tensor,
    *,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    alpha: float = 0.0,
    sigma: float = 4.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The images, each distorted in a random way of its own.

    An image is scaled, sheared, rotated, all about its centre, and moved; the point that this
    brings to a pixel is then displaced by an elastic deformation (Simard, Steinkraus and Platt,
    2003), and the image is read there, bilinearly, once for all. What lies outside is black. The
    numbers below are drawn uniformly and independently for each image.

    Args:
        images: uint8 `[n, H, W]`, `[n, 1, H, W]` or `[H, W]`; 0 is black.
        rotation: degrees; the angle is in ±rotation.
        scale: below 1; width and height are multiplied by two factors, each in 1 ± scale.
        shear: degrees, below 90; rows are moved sideways by the tangent of an angle in ±shear times
            their height.
        translation: pixels; the image is moved by as many in ±translation, in x and in y.
        alpha: pixels; the fields of displacements, one in x and one in y, are independent noise of
            the variance of numbers uniform in ±1, one a pixel and 0 outside of the image, smoothed
            by the Gaussian whose weights sum to 1, times alpha. So a displacement has the standard
            deviation alpha / (sigma · √(12 π)), less near the edges: 1.4 pixels for alpha 34 and
            sigma 4, which Simard et al. found best for MNIST.
        sigma: pixels, above 0: standard deviation of the Gaussian.
        generator: on the CPU; None: torch's default one. One number is drawn from it.

    Returns:
        The same shape and dtype in new memory. It depends on the arguments and the generator's
        state alone.

    Raises:
        TypeError: images is no tensor of uint8, or a number is none.
        ValueError: images has another shape or is not on the CPU, or a number is negative, not
            finite or too large.
    """
    stack = _stack(images, "distort")
    check_amounts(rotation, scale, shear, translation, alpha, sigma)
    count, height, width = stack.shape
    drawn = 2 * torch.rand(count, 6, dtype=torch.float64, generator=generator) - 1
    angle, slant, *factors = (
        column.view(-1, 1, 1)
        for column in (
            (drawn[:, :2] * torch.tensor([rotation, shear])).deg2rad().unbind(1)
            + (1 + scale * drawn[:, 2:4]).unbind(1)
        )
    )
    y, x = _grid(height, width)
    x = x - (width - 1) / 2 - translation * drawn[:, 4].view(-1, 1, 1)
    y = y - (height - 1) / 2 - translation * drawn[:, 5].view(-1, 1, 1)
    x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    x = (x - y * slant.tan()) / factors[0] + (width - 1) / 2
    y = y / factors[1] + (height - 1) / 2
    if alpha > 0:
        noise = torch.randn(count, 2, height, width, dtype=torch.float64, generator=generator)
        field = alpha / math.sqrt(3) * (_gaussian(height, sigma) @ noise @ _gaussian(width, sigma))
        x, y = x + field[:, 0], y + field[:, 1]
    return _sample(stack, y, x).view(images.shape)


def check_amounts(
    rotation: float, scale: float, shear: float, translation: float, alpha: float, sigma: float
) -> None:
    """Raises distort's errors for its numbers."""
    limits = (
        ("rotation", rotation, math.inf),
        ("scale", scale, 1),
        ("shear", shear, 90),
        ("translation", translation, math.inf),
        ("alpha", alpha, math.inf),
        ("sigma", sigma, math.inf),
    )
    for name, amount, limit in limits:
        if not isinstance(amount, (int, float)):
            raise TypeError(f"distort: expected {name} to be a number, got {type(amount).__name__}")
        if not (0 <= amount < limit):
            raise ValueError(
                f"distort: expected {name} to be at least 0 and "
                + ("finite" if limit == math.inf else f"below {limit}")
                + f", got {amount}"
            )
    if sigma == 0:
        raise ValueError("distort: expected sigma to be above 0; alpha=0 is for no deformation")


def _stack(images: Tensor, name: str) -> Tensor:
    """The images as contiguous `[n, H, W]`."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name}: expected a tensor of uint8, got {given}")
    if images.device.type != "cpu":
        raise ValueError(f"{name}: expected images on the CPU, got them on {images.device}")
    if images.ndim not in (2, 3, 4) or (images.ndim == 4 and images.shape[1] != 1):
        raise ValueError(
            f"{name}: expected images [n, H, W], [n, 1, H, W] or [H, W], got {list(images.shape)}"
        )
    height, width = images.shape[-2:]
    if height == 0 or width == 0:
        raise ValueError(f"{name}: expected images of at least 1×1 pixels, got {height}×{width}")
    return images.reshape(images.numel() // (height * width), height, width)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(height, dtype=torch.float64).view(-1, 1)
    return y, torch.arange(width, dtype=torch.float64)


def _gaussian(size: int, sigma: float) -> Tensor:
    """K `[size, size]`: K @ noise is the noise smoothed, taken to be 0 outside."""
    place = torch.arange(size, dtype=torch.float64)
    weights = torch.exp((place.view(-1, 1) - place).square() / (-2 * sigma * sigma))
    far = math.ceil(10 * sigma)
    whole = torch.arange(-far, far + 1, dtype=torch.float64)
    return weights / torch.exp(whole.square() / (-2 * sigma * sigma)).sum()


def _sample(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    height, width = images.shape[1:]
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2)).double().flatten(1)
    y, x = (place.expand(images.shape).clamp(-2, size) for place, size in ((y, height), (x, width)))
    top, left = y.floor(), x.floor()
    index = ((top + 2) * (width + 4) + left + 2).long().flatten(1)

    def corner(offset: int) -> Tensor:
        return padded.gather(1, (index + offset).clamp(max=padded.shape[1] - 1)).view(images.shape)

    right, below = x - left, y - top
    upper = corner(0) + right * (corner(1) - corner(0))
    lower = corner(width + 4) + right * (corner(width + 5) - corner(width + 4))
    return (upper + below * (lower - upper) + 0.5).floor().to(torch.uint8)
