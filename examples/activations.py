"""The activation functions and their derivatives, from the fused kernels and from autograd.

Each is a linear layer with one input, one output, weight 1 and no bias; its derivative is what
backward makes of a gradient of 1. For x from -6 to 6 in float32 the table has the greatest
difference from torch's own function, and the greatest errors of both against torch's in float64,
relative to max(1, |f|) and in units of eps = 2^-23.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _common import BLUE, RED, figure, parse, parser
from torch import Tensor

from fastmlp.functional import ACTIVATIONS, linear

TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(F, name) for name in ACTIVATIONS if hasattr(F, name)
}
TORCH["identity"] = lambda x: x
TORCH["gelu_tanh"] = lambda x: F.gelu(x, approximate="tanh")


def fused(name: str, x: Tensor) -> Tensor:
    """The activation of each x by the kernels: a linear layer of one unit, [n] to [n]."""
    return linear(x[:, None], torch.ones(1, 1), activation=name)[:, 0]


def value_and_slope(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x), [n]."""
    x = x.clone().requires_grad_()
    y = f(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


arguments = parse(parser(__doc__))
x = torch.linspace(-6, 6, 10_001 if arguments.quick else 1_000_001)
eps = torch.finfo(x.dtype).eps
print("in eps          f: difference  error  torch's    f': difference  error  torch's")
for name in ACTIVATIONS:
    ours = value_and_slope(partial(fused, name), x)
    theirs = value_and_slope(TORCH[name], x)
    exact = value_and_slope(TORCH[name], x.double())
    row = f"{name:<12}"
    for a, b, true in zip(ours, theirs, exact, strict=True):
        scale = eps * true.abs().clamp(min=1)
        off, error, their_error = ((d.abs() / scale).max() for d in (a - b, a - true, b - true))
        row += f"{off:18.2f} {error:6.2f} {their_error:8.2f}"
    print(row)

if arguments.plot:
    x = torch.linspace(-4, 4, 400)  # an even number: no relu's corner, where it has no slope
    rows = -(-len(ACTIVATIONS) // 3)
    with figure(arguments.plot, rows, 3, size=(9, 7 * rows / 3)) as axes:
        for plot, name in zip(axes.flat, ACTIVATIONS, strict=True):
            y, slope = value_and_slope(partial(fused, name), x)
            plot.plot(x, y, color=BLUE, label="f")
            plot.plot(x, slope, color=RED, linestyle="--", label="f'")
            plot.set(title=name, ylim=(-1.5, 3))
        axes[0, 0].legend()
