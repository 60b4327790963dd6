"""What the lecture's programs share: arguments, data as tensors, figures."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmlp import FusedMLP, TrainStep
from fastmlp._faults import Fault, require
from fastmlp._files import check_writable, write_whole
from fastmlp.data import ImageDataset

# Colours that colour-blind people tell apart: M. Okabe, K. Ito, Color Universal Design, 2008.
BLUE, RED, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
_STYLE = {
    "axes.grid": True, "axes.titlesize": "medium", "figure.dpi": 100, "grid.alpha": 0.3,
    "legend.fontsize": "small", "svg.hashsalt": "fastmlp",
}  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every program has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: a few seconds")
    parser.add_argument("--plot", type=_plot, metavar="FILE", help="draw to FILE, .png or .svg")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments given; the seed is set."""
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    return arguments


def tensors(dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """All images [N, pixels] from -1 to 1, and labels [N]."""
    return dataset.images.flatten(1) / 127.5 - 1, dataset.labels


def linear_layers(model: nn.Sequential) -> list[nn.Linear]:
    """The layers with weights, in order."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def approximate(model: FusedMLP, x: Tensor, y: Tensor, rate: float, steps: int) -> None:
    """Least squares by full-batch Adam with a rate that falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = TrainStep(model, nn.MSELoss(), optimizer)
    for _ in range(steps):
        step(x, y)
        scheduler.step()


@contextmanager
def figure(file: str, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Gives the axes [rows, columns] of a figure of so many inches, and saves it in the end."""
    matplotlib = require("matplotlib", "Matplotlib", "--plot")
    kind = Path(file).suffix[1:]
    with matplotlib.rc_context(_STYLE):
        figure = require("matplotlib.figure", "Matplotlib", "--plot").Figure(
            figsize=size, layout="constrained"
        )
        yield figure.subplots(rows, columns, squeeze=False)
        drawn = io.BytesIO()
        undated = {"Date": None} if kind == "svg" else None  # the same file in every run
        figure.savefig(drawn, format=kind, metadata=undated)
    picture = drawn.getvalue() if kind == "svg" else _small(drawn)
    write_whole(file, lambda stream: stream.write(picture))
    print(f"drawn: {file}")


def _small(png: io.BytesIO) -> bytes:
    """The same picture in 256 colours, in a third of the bytes."""
    image = require("PIL.Image", "Pillow", "--plot").open(png).convert("RGB")
    small = io.BytesIO()
    image.quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


def _plot(file: str) -> str:
    """Finds out before the work what would go wrong after it."""
    try:
        if Path(file).suffix not in (".png", ".svg"):
            raise Fault(f"{file}: expected a name that ends in .png or .svg")
        check_writable(file)
        require("matplotlib", "Matplotlib", "--plot")
    except Fault as fault:
        raise argparse.ArgumentTypeError(str(fault)) from fault
    return file
