"""How fast are images distorted, against scipy's parts and against the training that uses them up?

- scipy: image by image as it is mostly written: gaussian_filter of noise, map_coordinates.
- fastmlp: `fastmlp.data.distort` and `deskew`, all images in one call, and, as a training would
  call it, batch by batch.
- fit: an epoch of ``TrainStep.fit`` on as many images as they are.

The times are of one image. Who distorts less or more than scipy, or deskews otherwise, is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import fit
import inputs
import numpy as np
import report
import torch
from harness import Spread, measure, speedup
from peers import Problem
from shapes import select
from suite import common_options, effort
from torch import Tensor

from fastmlp.data import deskew, distort

Amounts = dict[str, float]
AFFINE: Amounts = {"rotation": 7.5, "scale": 0.15, "shear": 7.5, "translation": 1.0}
ELASTIC: Amounts = {"alpha": 34.0, "sigma": 4.0}
TASKS: dict[str, Amounts | None] = {
    "affine": AFFINE,
    "elastic": ELASTIC,
    "both": {**AFFINE, **ELASTIC},
    "deskew": None,
}
TRAINING = "fit"
BILINEAR = {"order": 1, "mode": "grid-constant", "output": np.float32}  # to black, at the borders
COLUMNS = (
    f"{'task':<8} {'contestant':<14} {'µs an image':>11} {'p10–p90':>13} {'images/s':>9} "
    f"{'× training':>10} {'p10–p90':>11} {'× scipy':>7} {'rounds':>6}"
)


def fastmlp_distort(images: Tensor, amounts: Amounts) -> Tensor:
    return distort(images, **amounts, generator=None)


def scipy_distort(images: Tensor, rng: np.random.Generator, amounts: Amounts) -> Tensor:
    """The same distortions, of draws of its own."""
    from scipy import ndimage

    def drawn(name: str) -> float:
        return float(rng.uniform(-1, 1)) * amounts.get(name, 0.0)

    results = []
    for image in images.numpy():
        angle, slant = math.radians(drawn("rotation")), math.tan(math.radians(drawn("shear")))
        factors = 1 + drawn("scale"), 1 + drawn("scale")
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])  # of (y, x)
        forth = turn @ np.array([[1, 0], [slant, 1]]) @ np.diag(factors)
        middle = (np.array(image.shape) - 1) / 2
        moved = middle + np.array([drawn("translation"), drawn("translation")])
        back = np.linalg.inv(forth)
        if "alpha" not in amounts:
            offset = middle - back @ moved
            result = ndimage.affine_transform(image, back, offset, **BILINEAR)
        else:
            places = np.indices(image.shape).reshape(2, -1) - moved[:, None]
            places = (back @ places + middle[:, None]).reshape(2, *image.shape)
            for axis in range(2):
                noise = rng.uniform(-1, 1, image.shape)
                smooth = ndimage.gaussian_filter(noise, amounts["sigma"], mode="constant")
                places[axis] += amounts["alpha"] * smooth
            result = ndimage.map_coordinates(image, places, **BILINEAR)
        results.append(result)
    return torch.from_numpy(np.stack(results)).round_().to(torch.uint8)


def scipy_deskew(images: Tensor) -> Tensor:
    from scipy import ndimage

    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    results = []
    for image in images.numpy():
        mass = image.sum(dtype=np.float64)
        centre = np.array([(y * image).sum(), (x * image).sum()]) / mass
        covariance = ((y - centre[0]) * (x - centre[1]) * image).sum()
        slant = covariance / ((y - centre[0]) ** 2 * image).sum()
        shear = np.array([[1, 0], [slant, 1]])
        offset = centre - shear @ ((np.array(image.shape) - 1) / 2)
        results.append(ndimage.affine_transform(image, shear, offset, **BILINEAR))
    return torch.from_numpy(np.stack(results)).round_().to(torch.uint8)


def fault(result: Tensor, images: Tensor, peers: Tensor, random: bool) -> str | None:
    """What is wrong with what fastmlp made of the images, beside scipy's; None if nothing is."""
    if not random:
        worst = int((result.int() - peers.int()).abs().max())
        return None if worst <= 3 else f"levels differ by up to {worst}"
    # Draws differ; how much they change an image does not, over some hundreds of them.
    ours, theirs = ((some.float() - images.float()).abs().mean() for some in (result, peers))
    return None if 0.9 < ours / theirs < 1.1 else f"changes {ours:.2f} levels, scipy {theirs:.2f}"


def by_batch(call: Callable[[Tensor], Tensor], images: Tensor, size: int) -> None:
    for batch in images.split(size):
        call(batch)


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("--data-dir", metavar="DIR", help="MNIST's; without it, strokes stand in")
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="of a call (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(report.describe_machine())
    problem = Problem(select("mnist-50")[0], "sgd", options.data_dir)
    size = problem.shape.batch
    batches = max(1, (min(options.images, 600) if options.quick else options.images) // size)
    training = fit.contestant(TRAINING, batches, problem, options.threads)
    images = fit.images_only(fit.share(problem, batches)).images
    few = images[: max(1, len(images) // 20)]  # what scipy takes seconds for is left out
    print(f"{len(images)} images, {inputs.note(problem.shape, options.data_dir)}")
    print(COLUMNS, flush=True)
    refused = []
    for task, amounts in TASKS.items():
        call: Callable[[Tensor], Tensor] = deskew
        if amounts is not None:
            call = partial(fastmlp_distort, amounts=amounts)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            TRAINING: (training.run, len(images)),
        }
        try:
            rng = np.random.default_rng(0)
            peer: Callable[[Tensor], Tensor] = (
                scipy_deskew
                if amounts is None
                else partial(scipy_distort, rng=rng, amounts=amounts)
            )
            some = images[:400]
            wrong = fault(call(some), some, peer(some), amounts is not None)
            calls["scipy"] = partial(peer, few), len(few)
        except ImportError as error:
            print(f"skipped scipy: {error}")
            wrong = None
        if wrong:
            refused.append(f"refused fastmlp, {task}: {wrong}")
            print(refused[-1], flush=True)
        else:
            calls["batch by batch"] = partial(by_batch, call, images, size), len(images)
            calls["fastmlp"] = partial(call, images), len(images)
        samples = measure({name: run for name, (run, _) in calls.items()}, effort(options))
        each = {name: [s / calls[name][1] for s in taken] for name, taken in samples.items()}
        for name, times in each.items():
            seconds, ratio = Spread.of(times), speedup(each[TRAINING], times)
            low, median, high = (f"{s * 1e6:.2f}" for s in seconds)
            scipys = f"{speedup(each['scipy'], times).median:.1f}" if "scipy" in each else "–"
            print(
                f"{task:<8} {name:<14} {median:>11} {f'{low}–{high}':>13} "
                f"{1 / seconds.median:>9,.0f} {ratio.median:>10.2f} "
                f"{f'{ratio.low:.2f}–{ratio.high:.2f}':>11} {scipys:>7} {len(times):>6}",
                flush=True,
            )
    for reason in refused:
        print(reason, file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    raise SystemExit(main())
