"""Without nonlinear activations a deep network is one matrix.

W3 (W2 (W1 x + b1) + b2) + b3 = (W3 W2 W1) x + (W3 W2 b1 + W3 b2 + b3) = W x + b: the program
multiplies that out in float64, and compares it with the network in float32, a fused one with
identity for activation. They may differ by rounding: a layer that sums n terms, with unit roundoff
u = eps/2, by gamma = n·u / (1 - n·u) relative to the magnitudes summed; L layers by
    |network(x) - (W x + b)| <= ((1 + gamma)^L - 1) · (|W3| (|W2| (|W1| |x| + |b1|) + |b2|) + |b3|)
(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, sections 3.1, 3.5).
The same weights with relu in between are no affine map.
"""

import torch
from _common import BLUE, RED, figure, linear_layers, parse, parser
from torch import Tensor

from fastmlp import FusedMLP

SIZES = [8, 32, 32, 3, 32, 32, 8]  # the three units in the middle let three dimensions pass


def compose(model: FusedMLP) -> tuple[Tensor, Tensor]:
    """The matrix and the bias, in float64, that all linear layers together amount to."""
    matrix, bias = torch.eye(SIZES[0], dtype=torch.float64), torch.zeros(SIZES[0]).double()
    for layer in linear_layers(model):
        weight = layer.weight.double()
        matrix, bias = weight @ matrix, weight @ bias + layer.bias.double()
    return matrix, bias


def bound(model: FusedMLP, x: Tensor) -> Tensor:
    """How far rounding may take the network's outputs from exact arithmetic, as above."""
    u = torch.finfo(x.dtype).eps / 2
    growth = 1.0
    magnitude = x.abs().double()
    for layer in linear_layers(model):
        n = layer.in_features + 1
        growth *= 1 + n * u / (1 - n * u)
        magnitude = magnitude @ layer.weight.abs().double().T + layer.bias.abs().double()
    allowed: Tensor = (growth - 1) * magnitude
    return allowed


def unexplained(x: Tensor, y: Tensor) -> float:
    """The part of y's variance that the best affine map of x, by least squares, leaves over."""
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    best = inputs @ torch.linalg.lstsq(inputs, y.double()).solution
    return float((y - best).square().sum() / (y - y.double().mean(0)).square().sum())


def singular_values(y: Tensor) -> Tensor:
    """Of the outputs about their mean, relative to the greatest."""
    values: Tensor = torch.linalg.svdvals(y.double() - y.double().mean(0))
    return values / values[0]


arguments = parse(parser(__doc__))
x = torch.randn(500 if arguments.quick else 20_000, SIZES[0])
linear = FusedMLP(SIZES, activation="identity")
for layer in linear_layers(linear):
    torch.nn.init.kaiming_normal_(layer.weight)  # K. He et al., 2015: relu keeps the variance
relu = FusedMLP(SIZES, activation="relu")
relu.load_state_dict(linear.state_dict())  # the very same weights

with torch.no_grad():
    matrix, bias = compose(linear)
    print(f"{len(SIZES) - 1} layers {SIZES}, fused: {linear.why_plain(x) is None}")
    deviation = (linear(x).double() - (x.double() @ matrix.T + bias)).abs()
    print(f"identity: network - matrix: at most {float(deviation.max()):.1e}, ", end="")
    print(f"{float((deviation / bound(linear, x)).max()):.1e} of the bound for rounding")
    for name, model in (("identity", linear), ("relu", relu)):
        y = model(x)
        rank = int((singular_values(y) > 1e-5).sum())
        print(f"{name}: variance that no affine map explains {unexplained(x, y):.1e}, ", end="")
        print(f"dimensions of the outputs {rank}")

    if arguments.plot:
        t = torch.linspace(-3, 3, 301)
        along = t[:, None] * torch.nn.functional.normalize(torch.randn(1, SIZES[0]))
        with figure(arguments.plot, 1, 2, size=(9, 3.2)) as axes:
            line, spectrum = axes[0]
            line.plot(t, linear(along)[:, 0], color=BLUE, linewidth=5, alpha=0.4, label="identity")
            product = along.double() @ matrix.T + bias
            line.plot(t, product[:, 0], "k--", linewidth=1, label="product of the matrices")
            line.plot(t, relu(along)[:, 0], color=RED, label="relu, same weights")
            line.set(title="an output along a line", xlabel="place on a line through 0")
            for model, name, marker, colour in (
                (linear, "identity", "o", BLUE),
                (relu, "relu", "s", RED),
            ):
                values = singular_values(model(x))
                spectrum.semilogy(range(1, 9), values, marker=marker, color=colour, label=name)
            spectrum.set(
                title="singular values of the outputs (3 units in the middle)", xlabel="number"
            )
            for plot in axes[0]:
                plot.legend()
