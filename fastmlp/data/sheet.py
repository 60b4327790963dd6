"""`fastmlp data show`: a sheet of samples."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._faults import Fault, require
from .._files import check_writable, write_whole
from .convert import PARTS, dataset

_SIDE = 56  # pixels, at least half of which an image is enlarged to
_GAP = 4
_TEXT = 12  # pixels of height for a label


def show(source: str, out: str, *, train: bool, count: int, columns: int, seed: int) -> None:
    """Draws samples of a data set with their labels, and tells how many.

    Args:
        source: a folder as MNISTDataset reads it, or "digits".
        out: the PNG file, which is replaced.
        train: of the training part; otherwise of the test part.
        count: how many at most; they are in the order of the data set.
        columns: how many side by side.
        seed: of the choice.

    Raises:
        Fault: the source has a fault, or the file cannot be written.
    """
    if Path(out).suffix.lower() != ".png":
        raise Fault(f"{out}: its ending is not .png")
    check_writable(out)
    data = dataset(source, train)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data), generator=generator)[:count].sort().values
    image = sheet(data.images[rows], data.labels[rows], columns)
    content = io.BytesIO()
    image.save(content, "PNG")
    write_whole(out, lambda file: file.write(content.getbuffer()))
    print(f"{out}: {len(rows)} of the {len(data)} {PARTS[train]} images, seed {seed}")


def sheet(images: Tensor, labels: Tensor, columns: int) -> Any:
    """Images above their labels, enlarged in whole numbers, as a PIL image of mode L.

    Args:
        images: uint8 `[n, H, W]`, at least one.
        labels: int64 `[n]`.
        columns: of the sheet; fewer images make it narrower.
    """
    pil, draw = (
        require(f"PIL.{module}", "Pillow", "drawing images") for module in ("Image", "ImageDraw")
    )
    count, height, width = images.shape
    columns = min(columns, count)
    scale = max(1, _SIDE // max(height, width))
    cell_width, cell_height = width * scale + _GAP, height * scale + _GAP + _TEXT
    size = (columns * cell_width + _GAP, math.ceil(count / columns) * cell_height + _GAP)
    page = pil.new("L", size, 255)
    pen = draw.Draw(page)
    for place, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        row, column = divmod(place, columns)
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        enlarged = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        page.paste(pil.fromarray(enlarged.numpy()), (left, top))
        pen.text((left, top + height * scale), str(label), fill=0)
    return page
