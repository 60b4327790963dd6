"""XOR: a linear model cannot learn it, two layers can (M. Minsky, S. Papert, Perceptrons, 1969).

A line w·x + b = 0 that had all four points right would need
    b <= 0,  w1 + w2 + b <= 0  (class 0)   and   w1 + b > 0,  w2 + b > 0  (class 1).
The first two add up to w1 + w2 + 2b <= 0, the last two to w1 + w2 + 2b > 0. So at least one of
four points is wrong, 25 %. Training ends at p = 1/2 everywhere: cross entropy's minimum is there.
"""

import torch
from _common import figure, parse, parser
from torch import Tensor, nn

from fastmlp import FusedMLP, TrainStep

POINTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
CLASSES = torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def wrong(outputs: Tensor) -> Tensor:
    """Where the points are on the wrong side of 0."""
    return (outputs > 0) != (CLASSES > 0)


def error(model: FusedMLP) -> float:
    """In percent of the points."""
    with torch.no_grad():
        return 100 * float(wrong(model(POINTS)).double().mean())


def train(sizes: list[int], steps: int) -> tuple[FusedMLP, float]:
    """A network with tanh units after so many steps of Adam on all four points, and its loss."""
    model = FusedMLP(sizes, activation="tanh")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    step = TrainStep(model, nn.BCEWithLogitsLoss(), optimizer)
    for _ in range(steps):
        loss = step(POINTS, CLASSES)
    return model, float(loss)


def best_line(lines: int) -> FusedMLP:
    """The one with the fewest errors among random ones; of these, the farthest from any point."""
    weights, biases = torch.nn.functional.normalize(torch.randn(lines, 2)), torch.randn(lines)
    distances = POINTS @ weights.T + biases
    best = (wrong(distances).sum(0) - distances.abs().amin(0) / 10).argmin()
    line = FusedMLP([2, 1])
    line.load_state_dict({"0.weight": weights[best, None], "0.bias": biases[best, None]})
    return line


arguments = parse(parser(__doc__))
steps, starts, lines = (500, 5, 10_000) if arguments.quick else (2000, 50, 1_000_000)

linear, loss = train([2, 1], steps)
with torch.no_grad():
    chances = torch.sigmoid(linear(POINTS)).flatten().tolist()
print(f"linear, trained: loss {loss:.4f} (ln 2 = 0.6931), p of class 1 at the four points", end=" ")
print(*(f"{chance:.3f}" for chance in chances))

line = best_line(lines)
print(f"linear, best of {lines} random lines: error {error(line):.0f} %")

for width in (2, 3, 4, 8):
    found = [train([2, width, 1], steps) for _ in range(starts)]
    right = sum(error(model) == 0 for model, _ in found)
    print(f"two layers, {width} hidden units: {right} of {starts} starts learn all four points")
two_layers, loss = min(found, key=lambda pair: pair[1])
print(f"two layers, the best of these: error {error(two_layers):.0f} %, loss {loss:.1e}")

if arguments.plot:
    axis = torch.linspace(-0.5, 1.5, 101)
    grid = torch.cartesian_prod(axis, axis)
    shown = {
        "linear, trained: p = 1/2": linear,
        f"linear, the best line: error {error(line):.0f} %": line,
        f"two layers: error {error(two_layers):.0f} %": two_layers,
    }
    with figure(arguments.plot, 1, 3, size=(9, 2.9)) as axes, torch.no_grad():
        for plot, (title, model) in zip(axes[0], shown.items(), strict=True):
            chance = torch.sigmoid(model(grid)).reshape(101, 101).T
            drawn = plot.pcolormesh(axis, axis, chance, cmap="PuOr", vmin=0, vmax=1)
            drawn.set_rasterized(True)
            if model is not linear:  # whose line is rounding
                plot.contour(axis, axis, chance, levels=[0.5], colors="black")
            for label, marker in ((0, "o"), (1, "s")):
                x, y = POINTS[CLASSES.flatten() == label].T
                plot.scatter(x, y, s=60, marker=marker, c="white", edgecolor="black", label=label)
            plot.set(title=title, xlabel="x1", ylabel="x2", aspect="equal")
        axes[0, 0].legend(title="XOR", loc="center")
        axes[0, 0].figure.colorbar(drawn, ax=axes, label="p of class 1", shrink=0.8)
