"""Reads a tree of PNG files, `<label>/<name>.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._faults import require
from .images import DataError

_EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA"}  # modes that turn to grey without loss of range


def read_png_tree(root: Path, classes: int) -> tuple[Tensor, Tensor]:
    """All images below a folder, by label and then by file name.

    Args:
        root: holds one folder a label, named by its number, of PNG files of one size. Colours turn
            to grey; other files, and folders whose names begin with . or __, are passed over.
        classes: labels must be in 0 … classes - 1.

    Returns:
        images uint8 `[n, H, W]` and labels int64 `[n]`.

    Raises:
        DataError: a folder that is no label, an image that is broken or of another size, no image.
    """
    files = _png_files(root, classes)
    if not files:
        raise DataError(f"{root}: no images <label>/*.png")
    pil = require("PIL.Image", "Pillow", "reading PNG files")
    first = _read_png(pil, files[0][1])
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for row, (_, path) in enumerate(files):
        image = _read_png(pil, path)
        if image.shape != first.shape:
            sizes = (f"{height}×{width}" for height, width in (image.shape, first.shape))
            raise DataError(f"{path}: {' pixels instead of '.join(sizes)} as in {files[0][1]}")
        images[row] = image
    return torch.from_numpy(images), torch.tensor([label for label, _ in files])


def _png_files(root: Path, classes: int) -> list[tuple[int, Path]]:
    files = []
    for folder in root.iterdir():
        if not folder.is_dir() or folder.name.startswith((".", "__")):
            continue
        if not (folder.name.isascii() and folder.name.isdecimal()):
            raise DataError(f"{folder}: not a label's folder: its name is not a number")
        label = int(folder.name)
        if label >= classes:
            raise DataError(f"{folder}: label {label} is out of range 0…{classes - 1}")
        files += [(label, path) for path in folder.iterdir() if path.suffix.lower() == ".png"]
    return sorted(files)


def _read_png(pil: Any, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with pil.open(path) as image:
            if image.mode not in _EIGHT_BITS:
                raise DataError(f"{path}: pixels of mode {image.mode}, not of 8 bits")
            return np.asarray(image.convert("L"))
    except DataError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # Pillow lets through whatever its decoder met
        reason = str(error) or type(error).__name__
    raise DataError(f"{path}: broken image: {reason}")
