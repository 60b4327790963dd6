"""How fast is a PNG tree read: fastmlp's reader, and what it kept, against Pillow file by file?

Makes a tree of MNIST's training images (``--data-dir``), or of strokes in their place, as Pillow
writes it, in a temporary folder. A call reads the whole of it, from the folder's listing to one
tensor. "cold": the system has been asked before to drop the files from memory, so that the disk has
to fetch them; what it keeps of folders it does not drop. Who reads other images is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import report
import torch
from harness import Spread, measure, speedup
from suite import common_options, effort
from torch import Tensor

from fastmlp.data import MNISTDataset

Image = np.ndarray[Any, np.dtype[np.uint8]]
Read = Callable[[Path], Tensor]
NEW = 2.1  # seconds: what has just changed is not kept
COLUMNS = (
    f"{'files':<5} {'reader':<15} {'median s':>8} {'p10–p90':>13} {'µs a file':>9} "
    f"{'× Pillow':>8} {'p10–p90':>11} {'rounds':>6}"
)


def paths(root: Path) -> list[str]:
    """The files by label and name, listed by what is fastest."""
    folders = [str(root / "training" / label) for label in sorted(os.listdir(root / "training"))]
    return [f"{folder}/{name}" for folder in folders for name in sorted(os.listdir(folder))]


def one_by_one(files: list[str]) -> list[Image]:
    from PIL import Image

    images = []
    for path in files:
        with Image.open(path) as image:
            images.append(np.array(image))
    return images


def pillow(root: Path) -> Tensor:
    """As anybody writes it."""
    return torch.from_numpy(np.stack(one_by_one(paths(root))))


def pillow_threads(root: Path) -> Tensor:
    """The same on several threads."""
    files = paths(root)
    shares = [files[start : start + 250] for start in range(0, len(files), 250)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.from_numpy(np.stack(list(chain(*pool.map(one_by_one, shares)))))


def decoded(root: Path) -> Tensor:
    return MNISTDataset(root, cache=False).images


def kept(root: Path) -> Tensor:
    return MNISTDataset(root).images


READERS: dict[str, Read] = {
    "Pillow": pillow,
    "Pillow, threads": pillow_threads,
    "fastmlp": decoded,
    "fastmlp, kept": kept,
}


def make_tree(root: Path, images: Tensor, labels: Tensor) -> None:
    """Writes the images as Pillow does, with its choice of filters, and syncs them."""
    from PIL import Image

    for label in range(10):
        (root / "training" / str(label)).mkdir(parents=True)
    pairs = zip(images.numpy(), labels.tolist(), strict=True)
    for row, (image, label) in enumerate(pairs):
        path = root / "training" / str(label) / f"{row}.png"
        Image.fromarray(image).save(path)
    os.sync()
    time.sleep(NEW)


def evict(root: Path) -> None:
    """Asks the system to drop the tree's files, and what is kept of them, from memory."""
    for path in (*root.glob("training/*/*.png"), *root.glob(".*")):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def cold(readers: dict[str, Read], root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each on files that lie on the disk alone, by rounds."""
    samples: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            evict(root)
            start = time.perf_counter()
            read(root)
            samples[name].append(time.perf_counter() - start)
    return samples


def line(times: list[float], reference: list[float], files: int) -> str:
    """What stands under :data:`COLUMNS` after the reader's name."""
    seconds, ratio = Spread.of(times), speedup(reference, times)
    low, median, high = (f"{s:.3f}" for s in seconds)
    return (
        f"{median:>8} {f'{low}–{high}':>13} {seconds.median / files * 1e6:9.1f} "
        f"{ratio.median:8.2f} {f'{ratio.low:.2f}–{ratio.high:.2f}':>11} {len(times):6}"
    )


def options() -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument(
        "--files", type=int, default=60_000, metavar="N", help="at most (default: %(default)s)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="MNIST; default: strokes in its place")
    parser.add_argument("--cold", type=int, default=2, metavar="N", help="rounds (default: 2)")
    return parser.parse_args()


def main() -> int:
    given = options()
    files = min(given.files, 2000) if given.quick else given.files
    torch.set_num_threads(given.threads)
    if given.data_dir:
        whole = inputs.images("mnist-raw", given.data_dir)
        images, labels = whole.images[:files], whole.labels[:files]
    else:
        images, labels = inputs.strokes(files)
    print(report.describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_tree(root, images, labels)
        expected = pillow(root)
        refused = [name for name, read in READERS.items() if not torch.equal(read(root), expected)]
        if not (root / ".training.fastmlp").exists():
            refused.append("fastmlp, kept")
        readers = {name: read for name, read in READERS.items() if name not in refused}
        print(COLUMNS, flush=True)
        calls: dict[str, Callable[[], object]] = {
            name: partial(read, root) for name, read in readers.items()
        }
        results = {"warm": measure(calls, effort(given))}
        if given.cold and hasattr(os, "posix_fadvise"):
            results["cold"] = cold(readers, root, 1 if given.quick else given.cold)
        for state, samples in results.items():
            for name, times in samples.items():
                figures = line(times, samples["Pillow"], len(images))
                print(f"{state:<5} {name:<15} {figures}", flush=True)
    for name in refused:
        print(f"refused {name}: other images, or nothing kept", file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    raise SystemExit(main())
