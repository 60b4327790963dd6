"""Images made upright, and images distorted at random, as bytes.

    images = deskew(images)                                    # once, before training
    images = distort(images, rotation=7.5, alpha=34, sigma=4)  # anew for every batch

As transforms of a data set, `Deskew()` and `Distort(rotation=7.5, alpha=34, sigma=4)` stand before
`ToTensor()`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastmlp._ops import _C

# A field's part of less than this, of its greatest part, is left out: a millionth of the variance.
_CUT = 1e-3


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
    return _C.deskew(stack).view(images.shape)


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
            sigma 4, which Simard et al. found best for MNIST. (In torchvision's ElasticTransform
            the same alpha moves half as far.)
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
    # Drawn even where nothing is random, so that what is drawn next does not depend on amounts.
    key = int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator))
    elastic = None
    if alpha > 0:
        rows, columns, unit = _elastic(stack.shape[1], stack.shape[2], float(sigma))
        elastic = rows, columns, alpha * unit
    result = _C.distort(
        stack, math.radians(rotation), scale, math.radians(shear), translation, elastic, key
    )
    return result.view(images.shape)


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
        ("sigma", sigma, 1e6),
    )
    for name, amount, limit in limits:
        if not isinstance(amount, (int, float)):
            raise TypeError(f"distort: expected {name} to be a number, got {type(amount).__name__}")
        if not (0 <= amount < limit):
            raise ValueError(
                f"distort: expected {name} to be at least 0 and "
                + ("finite" if limit == math.inf else f"below {limit:g}")
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
    if not (1 <= height <= _C.MOST_PIXELS and 1 <= width <= _C.MOST_PIXELS):
        raise ValueError(
            f"{name}: expected images of 1×1 to {_C.MOST_PIXELS}×{_C.MOST_PIXELS} pixels, "
            f"got {height}×{width}"
        )
    return images.reshape(-1, height, width).contiguous()


@lru_cache(maxsize=8)
def _elastic(height: int, width: int, sigma: float) -> tuple[Tensor, Tensor, float]:
    """What the kernel makes fields of: rows `[H, r]`, columns `[s, W]`, unit in pixels.

    A field is alpha · unit · rows · noise · columns. It is rounded between the two products, where
    it is divided by 2^24 / MOST_HALF, and nowhere else: the factors hold whole numbers, and no sum
    exceeds 2^24.
    """
    rows, row_bits = _whole(_factor(height, sigma), 2**24 / _C.MOST_NOISE)
    columns, column_bits = _whole(_factor(width, sigma), 2**24 / _C.MOST_HALF)
    unit = 2.0 ** (24 - row_bits - column_bits) / _C.MOST_HALF
    unit /= math.sqrt(3 * _C.NOISE_VARIANCE)
    return rows.float(), columns.t().contiguous().float(), unit


def _factor(size: int, sigma: float) -> Tensor:
    """A `[size, r]`, so that A · noise · Aᵀ is distributed as K · noise · Kᵀ; the noise is normal.

    K, which smooths, is symmetric: K = V Λ Vᵀ, and Vᵀ · noise · V is again independent normal
    noise. Λ falls off as the Gaussian's spectrum does, so that a few columns of A = V Λ are enough:
    10 of 28 for sigma 4. Where all are needed K does itself, whose rows have smaller sums.
    """
    smoothing = gaussian(size, sigma)
    values, vectors = torch.linalg.eigh(smoothing)
    kept = values > _CUT * values[-1]
    if kept.all():
        return smoothing
    factor: Tensor = (vectors * values)[:, kept]
    return factor * torch.where(factor[0] < 0, -1, 1)  # else LAPACK's choice


def _whole(factor: Tensor, most: float) -> tuple[Tensor, int]:
    """The factor times 2^bits, rounded; no row's absolute values sum up to more than `most`."""
    bits = math.floor(math.log2(most / float(factor.abs().sum(1).max())))
    whole = (factor * 2.0**bits).round()
    if float(whole.abs().sum(1).max()) > most:  # by the rounding
        bits -= 1
        whole = (factor * 2.0**bits).round()
    return whole, bits


def gaussian(size: int, sigma: float) -> Tensor:
    """K `[size, size]`, float64: K · image smooths columns, of an image that is 0 outside."""
    place = torch.arange(size, dtype=torch.float64, device="cpu")
    weights = ((place.view(-1, 1) - place) / sigma).square().div(-2).exp()
    if sigma > 2:
        return weights / (sigma * math.sqrt(2 * math.pi))  # all weights' sum, to 34 digits
    all_places = torch.arange(-20, 21, dtype=torch.float64, device="cpu")
    return weights / (all_places / sigma).square().div(-2).exp().sum()
