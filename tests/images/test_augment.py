"""Deskewing and distortions: against float64 arithmetic, and the statistics of what is random."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from image_files import mnist_folder, needs_mnist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from fastmlp import _C
from fastmlp.data import (
    Compose,
    Deskew,
    Distort,
    ImageDataset,
    MNISTDataset,
    Normalize,
    ToTensor,
    augment,
    collate,
    deskew,
    distort,
)

Doubles = NDArray[np.float64]
SIZES = [(28, 28), (1, 1), (5, 7), (33, 31), (64, 64), (3, 100), (17, 16)]
EVERYTHING = {
    "rotation": 20.0,
    "scale": 0.2,
    "shear": 15.0,
    "translation": 3.0,
    "alpha": 34.0,
    "sigma": 4.0,
}


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """All edges."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, height, width), generator=generator, dtype=torch.uint8)


def strokes(count: int) -> Tensor:
    """Slanted bars away from the middle."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    for i in range(count):
        for y in range(6, 24):
            x = 8 + i % 5 + (24 - y) * (i % 4) // 4
            images[i, y, x : x + 3] = 255 - 3 * y
    return images


# The reference: what the docstrings say, in float64 -----------------------------------------------


def threefry(key: int, counters: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Threefry-4x32-20 (Salmon et al., 2011), [n, 4] of [n, 4]; key: its lower half."""
    keys = [np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint32(0), np.uint32(0)]
    keys.append(np.bitwise_xor.reduce([*keys, np.uint32(0x1BD11BDA)]))
    rotations = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
    x = [counters[:, i] + keys[i] for i in range(4)]
    for turn in range(20):
        partners = (1, 3) if turn % 2 == 0 else (3, 1)
        for a, b, by in zip((0, 2), partners, rotations[turn % 8], strict=True):
            x[a] = x[a] + x[b]
            x[b] = (x[b] << np.uint32(by) | x[b] >> np.uint32(32 - by)) ^ x[a]
        if turn % 4 == 3:
            added = turn // 4 + 1
            x = [x[i] + keys[(added + i) % 5] for i in range(4)]
            x[3] = x[3] + np.uint32(added)
    return np.stack(x, 1)


def words(key: int, image: int, stream: int, blocks: int) -> NDArray[np.uint32]:
    counters = np.zeros((blocks, 4), np.uint32)
    counters[:, 0] = np.arange(blocks)
    counters[:, 1] = image
    counters[:, 3] = stream
    return threefry(key, counters)


def noise(key: int, image: int, count: int) -> Doubles:
    """Standard normal in mean and variance: sums of four bytes."""
    drawn = words(key, image, 0, -(-count // 64) * 16).reshape(-1, 16, 4).transpose(0, 2, 1)
    sums = np.ascontiguousarray(drawn).view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int64)
    return (sums[:count] - 510) / math.sqrt(4 * (256**2 - 1) / 12)


def fields(
    key: int, image: int, height: int, width: int, alpha: float, sigma: float
) -> tuple[Doubles, Doubles]:
    """Displacements in x and in y."""
    rows, columns = (augment._factor(size, sigma).numpy() for size in (height, width))
    depth = columns.shape[1]
    drawn = noise(key, image, 2 * rows.shape[1] * depth).reshape(rows.shape[1], 2 * depth)
    scale = alpha / math.sqrt(3)
    return tuple(scale * rows @ part @ columns.T for part in (drawn[:, :depth], drawn[:, depth:]))


class Places(NamedTuple):
    """Where the pixels of a result come from, [H, W] each."""

    x: Doubles
    y: Doubles


def grid(height: int, width: int) -> Places:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return Places(x, y)


def distorted_places(
    key: int,
    image: int,
    height: int,
    width: int,
    *,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    alpha: float = 0.0,
    sigma: float = 4.0,
) -> Places:
    drawn = words(key, image, 1, 2).reshape(-1).view(np.int32) / 2**31
    angle, slant = math.radians(rotation) * drawn[0], math.tan(math.radians(shear) * drawn[1])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forth = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(1 + scale * drawn[2:4])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    there = np.stack(grid(height, width), -1) - middle - translation * drawn[4:6]
    x, y = np.moveaxis(there @ np.linalg.inv(forth).T + middle, -1, 0)
    if alpha > 0:
        dx, dy = fields(key, image, height, width, alpha, sigma)
        x, y = x + dx, y + dy
    return Places(x, y)


def upright_places(image: Tensor) -> Places:
    mass = image.numpy().astype(np.float64)
    there = grid(*mass.shape)
    if mass.sum() == 0:
        return there
    x, y = (np.average(place, weights=mass) for place in there)
    variance = np.average((there.y - y) ** 2, weights=mass)
    covariance = np.average((there.x - x) * (there.y - y), weights=mass)
    slant = covariance / variance if variance > 1e-9 else 0.0
    drop = there.y - (mass.shape[0] - 1) / 2
    return Places(x + there.x - (mass.shape[1] - 1) / 2 + slant * drop, y + drop)


def interpolated(image: Tensor, places: Places) -> Doubles:
    """Bilinear, black outside, not rounded."""
    height, width = image.shape
    padded = np.pad(image.numpy().astype(np.float64), 2)
    x, y = np.clip(places.x, -2, width), np.clip(places.y, -2, height)
    left, top = (np.floor(place).astype(int) for place in (x, y))
    right_part, low_part = x - left, y - top
    padded = np.pad(padded, ((0, 1), (0, 1)))

    def row(y: NDArray[np.intp]) -> Doubles:
        one, two = padded[y + 2, left + 2], padded[y + 2, left + 3]
        return one + right_part * (two - one)

    result: Doubles = row(top) + low_part * (row(top + 1) - row(top))
    return result


def steepness(image: Tensor) -> float:
    """The greatest difference of neighbouring pixels, black ones outside among them."""
    padded = np.pad(image.numpy().astype(np.float64), 1)
    return float(max(np.abs(np.diff(padded, axis=axis)).max() for axis in (0, 1)))


def assert_resampled(result: Tensor, image: Tensor, places: Places, off: float) -> None:
    """The result is the image at these places, each of which may be off by so many pixels.

    Half a level comes from rounding, and where x is off by e, and y, the interpolated level is off
    by the sum of both times the greatest difference of neighbours, at most.
    """
    bound = 0.5 + 2 * off * steepness(image) + 1e-6
    error = np.abs(result.numpy() - interpolated(image, places))
    assert error.max() <= bound, (error.max(), bound)


def key_of(seed: int) -> int:
    """What a call with a generator of this seed draws."""
    generator = torch.Generator().manual_seed(seed)
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def places_off(height: int, width: int, alpha: float, sigma: float = 4.0) -> float:
    """By how much the kernel's places may differ from the reference's, in pixels.

    - Places are rounded to 1/256 and displacements cut to 2^-14.
    - The step from column to column is rounded to 2^-14, and added up to W times.
    - The factors' entries are half a unit off each, a unit being 2^-bits, and noise is at most 3.5,
      so a field is off by alpha / √3 · 3.5 · (what products of a row of |rows| and a column of
      |columns| are off by).
    - The product with rows is rounded to 2^(12 - bits), before the one with columns.
    """
    off = 1 / 512 + 2.0**-14 + (width + 2) * 2.0**-15
    if alpha == 0:
        return off
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    sums, errors, units = [], [], []
    for size, most in ((height, 2**24 / 510), (width, 2**24 / 4096)):
        factor = augment._factor(size, sigma)
        units.append(2.0 ** -augment._whole(factor, most)[1])
        sums.append(float(factor.abs().sum(1).max()))
        errors.append(factor.shape[1] * units[-1] / 2)
    products = errors[0] * sums[1] + (sums[0] + errors[0]) * errors[1]
    half = 0.5 * 2**12 * units[0] / deviation * (sums[1] + errors[1])
    return off + alpha / math.sqrt(3) * (510 / deviation * products + half)


def test_the_reference_draws_what_random123_does() -> None:
    """Known answers of Random123, for a key and a counter of zeros."""
    assert [hex(word) for word in threefry(0, np.zeros((1, 4), np.uint32))[0]] == [
        "0x9c6ca96a",
        "0xe17eae66",
        "0xfc10ecd4",
        "0x5256a7d8",
    ]


# Against the reference ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "amounts",
    [
        *({name: EVERYTHING[name]} for name in EVERYTHING if name != "sigma"),
        EVERYTHING,
        {"translation": 100.0},
    ],
    ids=lambda amounts: "-".join(amounts) if len(amounts) < 6 else "all",
)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_distort(isa: str, height: int, width: int, amounts: dict[str, float]) -> None:
    images = random_images(5, height, width)
    result = distort(images, **amounts, generator=torch.Generator().manual_seed(3))
    off = places_off(height, width, amounts.get("alpha", 0))
    for i, image in enumerate(images):
        places = distorted_places(key_of(3), i, height, width, **amounts)
        assert_resampled(result[i], image, places, off)


def test_distorted_images_differ_from_the_given_ones() -> None:
    """So that the tests above are not of the identity; nor is one image distorted as another."""
    images = random_images(1, 28, 28).expand(6, -1, -1)
    for name in EVERYTHING:
        if name != "sigma":
            result = distort(images, **{name: EVERYTHING[name]})
            assert len({image.numpy().tobytes() for image in [images[0], *result]}) == 7, name


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 2.0, 2.5, 8.0, 100.0])
def test_other_smoothness(sigma: float) -> None:
    image = random_images(1, 28, 28)
    result = distort(image, alpha=10, sigma=sigma, generator=torch.Generator().manual_seed(3))
    dx, dy = fields(key_of(3), 0, 28, 28, 10, sigma)
    x, y = grid(28, 28)
    off = places_off(28, 28, 10, sigma)
    assert off < 0.4  # pixels, where all errors come together
    assert_resampled(result[0], image[0], Places(x + dx, y + dy), off)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_deskew(isa: str, height: int, width: int) -> None:
    images = random_images(4, height, width)
    images[1] = 0
    images[1, height // 2] = 200  # a row has no slant
    images[2, :, : width // 2] = 0  # off the middle
    result = deskew(images)
    for image, upright in zip(images, result, strict=True):
        assert_resampled(upright, image, upright_places(image), places_off(height, width, 0))


@pytest.mark.parametrize("name", ["strokes", pytest.param("mnist", marks=needs_mnist)])
def test_deskewed_images_are_upright(name: str) -> None:
    if name == "mnist":
        images = MNISTDataset(mnist_folder(), train=False).images[:500]
    else:
        images = strokes(20)
    before, after = (
        torch.tensor([_slant_and_centre(image) for image in some])
        for some in (images, deskew(images))
    )
    # Not to nothing, as pixels are interpolated, rounded, and a few pushed out.
    assert after[:, 0].abs().mean() < 0.02 < before[:, 0].abs().mean()
    assert (after[:, 1:] - 13.5).abs().mean() < 0.05 < (before[:, 1:] - 13.5).abs().mean()


def _slant_and_centre(image: Tensor) -> list[float]:
    mass = image.numpy().astype(np.float64)
    there = grid(*mass.shape)
    x, y = (float(np.average(place, weights=mass)) for place in there)
    covariance = np.average((there.x - x) * (there.y - y), weights=mass)
    return [float(covariance / np.average((there.y - y) ** 2, weights=mass)), x, y]


# What does not change -----------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_distortion_gives_the_images_back(isa: str, height: int, width: int) -> None:
    images = random_images(3, height, width)
    result = distort(images)
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


def test_black_images_stay_black(isa: str) -> None:
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    assert not distort(images, **EVERYTHING).any()
    assert not deskew(images).any()


def test_white_stays_white_inside(isa: str) -> None:
    """And no pixel anywhere overflows."""
    images = torch.full((20, 28, 28), 255, dtype=torch.uint8)
    result = distort(images, alpha=20, sigma=4)
    assert (result[:, 8:20, 8:20] == 255).all()  # displacements are of 0.8 pixels
    assert torch.equal(deskew(images), images)  # its centre is the image's


def test_the_images_are_not_written_to() -> None:
    images = random_images(20, 28, 28)
    before = images.clone()
    distort(images, **EVERYTHING)
    deskew(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "amounts",
    [
        {"translation": 1e9},
        {"translation": 1e308, "scale": 0.999999999999, "shear": 89.9999999},
        {"alpha": 1e9},
        {"alpha": 1e300, "sigma": 0.01},
        {"rotation": 1e6, "scale": 0.9999999, "shear": 89.9, "alpha": 1e5, "translation": 40.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (1, 1), (2, 200), (200, 2)])
def test_nothing_is_read_outside(
    isa: str, height: int, width: int, amounts: dict[str, float]
) -> None:
    """However far away: what is there is black, and pixels are none but the image's mixtures."""
    images = torch.full((4, height, width), 7, dtype=torch.uint8)
    result = distort(images, **amounts)
    assert result.max() <= 7
    if amounts.get("translation", 0) > 1e8:
        assert not result.any()


@pytest.mark.parametrize("offset", [2.0, -3.0, 1e4])
def test_deskew_of_an_extreme_slant(isa: str, offset: float) -> None:
    """Two pixels in neighbouring rows, far apart: the rows' ends come over each other."""
    images = torch.zeros(1, 2, 4096, dtype=torch.uint8)
    left = 2000
    right = min(max(left + int(offset), 0), 4095)
    images[0, 0, left] = images[0, 1, right] = 200
    result = deskew(images)
    assert result[0, 0].argmax() == result[0, 1].argmax()


# Who decides --------------------------------------------------------------------------------------


def test_instruction_sets_and_threads_agree_to_the_bit(threads: int) -> None:
    images = random_images(100, 28, 28)
    before = _C.get_isa()
    results = []
    try:
        for isa in _C.available_isas():
            for count in (1, 2, 3):
                _C.set_isa(isa)
                torch.set_num_threads(count)
                generator = torch.Generator().manual_seed(5)
                results.append((distort(images, **EVERYTHING, generator=generator), deskew(images)))
    finally:
        _C.set_isa(before)
    for distorted, upright in results[1:]:
        assert torch.equal(distorted, results[0][0])
        assert torch.equal(upright, results[0][1])


def test_the_generator_decides() -> None:
    images = random_images(5, 28, 28)

    def drawn(generator: torch.Generator | None = None) -> Tensor:
        return distort(images, **EVERYTHING, generator=generator)

    torch.manual_seed(7)
    default = [drawn(), drawn()]
    own = torch.Generator().manual_seed(7)
    assert torch.equal(default[0], drawn(own))
    assert torch.equal(default[1], drawn(own))
    assert not torch.equal(*default)
    state = torch.get_rng_state()
    drawn(own)
    deskew(images)
    assert torch.equal(torch.get_rng_state(), state)


def test_numpys_generator_is_left_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    distort(random_images(5, 28, 28), **EVERYTHING)
    assert np.random.get_state()[1].tolist() == before


def test_the_same_is_drawn_whatever_the_amounts() -> None:
    """So that two settings can be compared on the same draws."""
    states = []
    for amounts in ({}, EVERYTHING):
        generator = torch.Generator().manual_seed(1)
        distort(random_images(5, 28, 28), **amounts, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


# Statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("size", [1, 5, 28, 64])
def test_the_factor_is_of_the_smoothing(size: int, sigma: float) -> None:
    """A Aᵀ = K Kᵀ, but for eigenvalues below a thousandth of the greatest."""
    smoothing = augment.gaussian(size, sigma)
    factor = augment._factor(size, sigma)
    greatest = torch.linalg.matrix_norm(smoothing, 2)
    difference = factor @ factor.T - smoothing @ smoothing.T
    assert torch.linalg.matrix_norm(difference, 2) <= (1e-3 * greatest) ** 2 * (1 + 1e-9)
    assert factor.shape[1] <= size


def test_the_factor_is_short_where_the_field_is_smooth() -> None:
    assert augment._factor(28, 4.0).shape[1] == 10


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 2.0, 2.1, 4.0])
def test_the_gaussian(sigma: float) -> None:
    """It smooths as scipy does whose borders are zeros, with weights that sum to 1."""
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).uniform(-1, 1, (40, 30))
    smooth = ndimage.gaussian_filter(image, sigma, mode="constant", truncate=10)
    rows, columns = (augment.gaussian(size, sigma).numpy() for size in image.shape)
    np.testing.assert_allclose(rows @ image @ columns.T, smooth, atol=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (5, 7)])
def test_whole_factors_are_near_the_exact_ones(height: int, width: int, sigma: float) -> None:
    """And no sum of theirs can exceed 2^24, where floats cease to hold all whole numbers."""
    rows, columns, unit = augment._elastic(height, width, sigma)
    variance = 4 * (256**2 - 1) / 12
    for whole in (rows, columns):
        assert torch.equal(whole, whole.round())
    assert rows.double().abs().sum(1).max() * 510 <= 2**24
    assert columns.double().abs().sum(0).max() * 4096 <= 2**24
    exact = [augment._factor(size, sigma) for size in (height, width)]
    scale = unit * 2**-12 * math.sqrt(3 * variance)
    for place in (exact[0].abs().argmax(), exact[0].numel() - 1):
        i, j = divmod(int(place), exact[0].shape[1])
        approximate = scale * rows[i, j].double() * columns.T.double()
        greatest = exact[0].abs().max() * exact[1].abs().max()
        assert (approximate - exact[0][i, j] * exact[1]).abs().max() < 1e-3 * greatest


@pytest.mark.sweep
@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_fields_are_distributed_as_simards(sigma: float) -> None:
    """Covariances of the fields over 4000 images, against those of smoothed noise.

    A sample covariance of n pairs of normal numbers has a variance of (s_i s_j + c_ij²) / n, and
    of the 784² / 2 of them the greatest deviation is below 6 standard deviations with a probability
    of 1 - 6e-4. Noise of sums of four bytes has lighter tails than the normal.
    """
    count, alpha = 4000, 34.0
    drawn = np.stack([np.stack(fields(1, i, 28, 28, alpha, sigma)) for i in range(count)])
    smoothing = augment.gaussian(28, sigma).numpy()
    one = smoothing @ smoothing.T
    expected = alpha**2 / 3 * np.kron(one, one)
    variance = expected.diagonal()
    deviation = np.sqrt((np.outer(variance, variance) + expected**2) / count)
    flat = drawn.reshape(count, 2, 784)
    for k in (0, 1):
        sample = flat[:, k].T @ flat[:, k] / count
        assert (np.abs(sample - expected) / deviation).max() < 6
        assert np.abs(flat[:, k].mean(0) / np.sqrt(variance / count)).max() < 5
    across = flat[:, 0].T @ flat[:, 1] / count  # independent of each other
    assert (np.abs(across) / np.sqrt(np.outer(variance, variance) / count)).max() < 6
    # In the middle as the docstring says, which takes the image to be large.
    middle = math.sqrt(variance.reshape(28, 28)[14, 14])
    assert middle == pytest.approx(alpha / (sigma * math.sqrt(12 * math.pi)), rel=0.01)
    # And nearly normal: fourth moments, whose sample's deviation is √(96 / n) and of 784, of which
    # no more than some 50 are independent, the mean's a seventh of that.
    kurtosis = (flat[:, 0] ** 4).mean(0) / (flat[:, 0] ** 2).mean(0) ** 2
    assert abs(kurtosis.mean() - 3) < 0.1


def test_displacements_as_they_are_seen() -> None:
    """The kernel's own fields, read from ramps: levels tell the place, in 1/8 of a pixel.

    Deviations of the variance of n normal numbers: √(2 / n).
    """
    count, step = 4000, 8
    ramp = (step * torch.arange(32)).to(torch.uint8).expand(32, 32)
    middle = slice(8, 24)  # so that no place is outside
    for images in (ramp, ramp.T):
        seen = distort(images.expand(count, -1, -1), alpha=20, sigma=4).double()
        moved = ((seen - images) / step)[:, middle, middle]
        smoothing = augment.gaussian(32, 4.0)
        one = (smoothing @ smoothing.T)[middle, middle].diagonal()
        expected = 20**2 / 3 * torch.outer(one, one) + (1 / step) ** 2 / 12
        ratio = moved.square().mean(0) / expected
        assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / count)
        assert (moved.mean(0) / (expected / count).sqrt()).abs().max() < 5


@pytest.mark.parametrize("name", ["rotation", "scale", "shear", "translation"])
def test_amounts_are_uniform(name: str) -> None:
    """Measured on 4000 images of a pixel or a bar, by its first and second moments."""
    count = 4000
    amount = {"rotation": 20.0, "scale": 0.3, "shear": 20.0, "translation": 4.0}[name]
    image = torch.zeros(41, 41, dtype=torch.uint8)
    image[20 if name != "shear" else slice(10, 31), 20 if name != "rotation" else slice(8, 33)] = (
        255
    )
    if name == "scale":
        image[10:31, 20] = 255
        image[20, 10:31] = 255
    seen = distort(image.expand(count, -1, -1), **{name: amount}).double()
    y, x = (torch.tensor(place) for place in (grid(41, 41).y, grid(41, 41).x))
    mass = seen.sum((1, 2))
    if name == "translation":
        drawn = [((place * seen).sum((1, 2)) / mass - 20) / amount for place in (x, y)]
    elif name == "scale":  # rows and columns that are drawn on, counted apart
        across = (seen[:, 20] / 255).sum(1), (seen[:, :, 20] / 255).sum(1)
        widths = [length / 21 - 1 for length in across]
        drawn = [width / amount for width in widths]
    else:
        covariance = (seen * (x - 20) * (y - 20)).sum((1, 2))
        along = (seen * ((x if name == "rotation" else y) - 20).square()).sum((1, 2))
        drawn = [(covariance / along).atan().rad2deg() / amount]
    for numbers in drawn:
        # Of uniform numbers in ±1: the mean's deviation is √(1/3n), that of the mean square
        # √(4/45n); beside these what a pixel's rounding allows.
        allowed = 0.03
        assert abs(numbers.mean()) < 5 * math.sqrt(1 / 3 / count) + allowed
        assert abs(numbers.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / count) + allowed
        assert numbers.abs().max() < 1 + 2 * allowed
        assert numbers.abs().max() > 0.95
    if len(drawn) == 2:
        assert abs((drawn[0] * drawn[1]).mean()) < 5 / 3 / math.sqrt(count)


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [deskew, lambda images: distort(images, **EVERYTHING)])
def test_shapes(isa: str, call: Callable[[Tensor], Tensor]) -> None:
    def run(images: Tensor) -> Tensor:
        torch.manual_seed(0)
        result = call(images)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8
        assert result.is_contiguous()
        return result

    images = strokes(6)
    expected = run(images)
    assert torch.equal(run(images.unsqueeze(1)).squeeze(1), expected)
    assert torch.equal(run(images[0]), expected[0])
    assert torch.equal(run(images[:1]), expected[:1])
    assert torch.equal(run(images.repeat_interleave(2, 2)[:, :, ::2]), expected)
    assert torch.equal(run(images.mT.contiguous().mT), expected)
    assert torch.equal(run(images[::2])[0], expected[0])
    for empty in (images[:0], images[:0].unsqueeze(1)):
        run(empty)


@pytest.mark.parametrize("call", [deskew, distort, Deskew(), Distort(alpha=1)])
def test_wrong_images(call: Callable[[Any], Tensor]) -> None:
    good = strokes(2)
    for wrong in (good.float(), good.long(), good.numpy(), [1], None):
        with pytest.raises(TypeError, match="uint8"):
            call(wrong)
    for shape in ((28,), (2, 3, 28, 28), (1, 1, 1, 28, 28), ()):
        with pytest.raises(ValueError, match=r"\[n, H, W\]"):
            call(torch.zeros(shape, dtype=torch.uint8))
    for shape in ((2, 0, 28), (2, 28, 0), (1, 4097, 2), (1, 2, 4097)):
        with pytest.raises(ValueError, match="4096×4096"):
            call(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="CPU"):
        call(good.to("meta"))


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("make", [lambda **given: distort(strokes(1), **given), Distort])
def test_wrong_amounts(name: str, make: Callable[..., Any]) -> None:
    for wrong in (-1, -1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name}.*{wrong}"):
            make(**{name: wrong})
    for wrong in ("1", None, (1, 2), torch.ones(1)):
        with pytest.raises(TypeError, match=f"{name}.*number"):
            make(**{name: wrong})
    limits = {"scale": 1, "shear": 90, "sigma": 1e6}
    if name in limits:
        with pytest.raises(ValueError, match=f"{name}.*below"):
            make(**{name: limits[name]})
    with pytest.raises(ValueError, match=r"sigma.*above 0"):
        make(sigma=0)


# Transforms ---------------------------------------------------------------------------------------


def test_transforms_of_a_data_set() -> None:
    images = strokes(20)
    plain = [ToTensor(), Normalize((0.1,), (0.3,))]
    generator = torch.Generator().manual_seed(2)
    transform = Compose([Deskew(), Distort(**EVERYTHING, generator=generator), *plain])
    assert transform.on_batches
    data = ImageDataset(images, torch.arange(20), transform)
    [[batch, labels]] = DataLoader(data, 20, collate_fn=collate)
    assert labels.tolist() == list(range(20))
    expected = distort(
        deskew(images), **EVERYTHING, generator=torch.Generator().manual_seed(2)
    ).unsqueeze(1)
    assert torch.equal(batch, Compose(plain)(expected))
    image, _ = data[3]
    assert image.shape == (1, 28, 28)
    assert torch.equal(data.images, images)


def test_transforms_tell_their_settings() -> None:
    assert repr(Deskew()) == "Deskew()"
    told = repr(Distort(rotation=7.5, alpha=34))
    assert told == (
        "Distort(rotation=7.5, scale=0.0, shear=0.0, translation=0.0, alpha=34, sigma=4.0)"
    )
    again = pickle.loads(pickle.dumps(Distort(rotation=7.5, alpha=34)))
    assert repr(again) == told
