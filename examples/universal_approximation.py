"""Sums of sigmoid units approximate any continuous function on an interval.

G. Cybenko, Approximation by superpositions of a sigmoidal function, 1989: for any error there is a
sum a1 s(w1 x + b1) + … + an s(wn x + bn) + c that stays below it. The program finds such sums, of
1, 2, 3, … units, by gradient descent from several starts each, and tells the error against n. The
units start as steps spread over the interval, each as wide as its share of it.
"""

import math
from statistics import median

import torch
from _common import BLUE, approximate, figure, linear_layers, parse, parser
from torch import Tensor, nn

from fastmlp import FusedMLP

WIDTHS = (1, 2, 3, 5, 10, 20, 50)
SHOWN = (1, 2, 3, 10)


def f(x: Tensor) -> Tensor:
    """What is to be approximated, on [-1, 1]."""
    return torch.sin(2 * math.pi * x) * torch.exp(x / 2) / 2 + torch.cos(5 * math.pi * x) / 8


def train(units: int, x: Tensor, y: Tensor, steps: int) -> FusedMLP:
    """A sum of so many sigmoid units, fitted by Adam with a rate that falls to 0."""
    model = FusedMLP([1, units, 1], activation="sigmoid")
    first, last = linear_layers(model)
    with torch.no_grad():
        centres = torch.linspace(-1, 1, 2 * units + 1)[1::2] + torch.randn(units) / units / 2
        first.weight[:] = 2 * units * torch.sign(torch.randn(units, 1))
        first.bias[:] = -first.weight[:, 0] * centres
        nn.init.zeros_(last.weight)
    approximate(model, x, y, 0.03, steps)
    return model


def error(model: FusedMLP) -> float:
    """The root mean square on a grid finer than that of the training."""
    x = torch.linspace(-1, 1, 2001)[:, None]
    with torch.no_grad():
        return float((model(x) - f(x)).square().mean().sqrt())


arguments = parse(parser(__doc__))
starts, steps = (3, 500) if arguments.quick else (9, 4000)
x = torch.linspace(-1, 1, 201)[:, None]
y = f(x)

fits, errors = {}, {}
print(f"units   root mean square error on [-1, 1] of {starts} starts: least, median, greatest")
for units in WIDTHS:
    models = sorted((train(units, x, y, steps) for _ in range(starts)), key=error)
    errors[units] = [error(model) for model in models]
    fits[units] = models[0]
    least, middle, most = errors[units][0], median(errors[units]), errors[units][-1]
    print(f"{units:5}   {least:.4f}   {middle:.4f}   {most:.4f}")

if arguments.plot:
    with figure(arguments.plot, 1, 5, size=(11, 2.8)) as axes, torch.no_grad():
        for plot, units in zip(axes[0], SHOWN, strict=False):
            plot.plot(x, y, color="black", linewidth=3, alpha=0.3, label="f")
            plot.plot(x, fits[units](x), color=BLUE, label="sum")
            plot.set(title=f"{units} unit{'s' if units > 1 else ''}", ylim=(-1, 1.2))
        axes[0, 0].legend()
        last = axes[0, 4]
        extremes = [[e[end] for e in errors.values()] for end in (0, -1)]
        last.loglog(WIDTHS, [median(e) for e in errors.values()], color=BLUE, marker="o")
        last.fill_between(WIDTHS, *extremes, color=BLUE, alpha=0.2)
        last.set(title="root mean square error", xlabel="units")
