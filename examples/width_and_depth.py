"""Depth at bounded width, against one hidden layer with as many parameters.

Z. Lu et al., The Expressive Power of Neural Networks: A View from the Width, NeurIPS 2017: relu
networks of width n + 4, if only deep enough, approximate every Lebesgue-integrable function of n
numbers. It says which networks there are, not that gradient descent finds them. So the program

- trains networks of width 5, as n = 1, and shallow ones with as many parameters, from many starts;
- sets by hand the weights of D. Yarotsky, Error bounds for approximations with deep ReLU networks,
  2017: x - g(x)/4 - g(g(x))/16 - … with the tooth g(x) = 2 relu(x) - 4 relu(x - 1/2) is x² on
  [0, 1] up to 4^-(d+1) after d layers of three units. One layer of h units makes h + 1 straight
  pieces at most, and the longest of them is off by 1 / (8 (h + 1)²) at least, however trained.
"""

from statistics import median

import torch
from _common import BLUE, RED, approximate, figure, linear_layers, parse, parser
from torch import Tensor, nn

from fastmlp import FusedMLP


def train(sizes: list[int], x: Tensor, y: Tensor, steps: int) -> float:
    """The root mean square error of a network after so many steps of Adam."""
    model = FusedMLP(sizes)
    for layer in linear_layers(model):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
    approximate(model, x, y, 0.01, steps)
    with torch.no_grad():
        return float((model(x) - y).square().mean().sqrt())


def square(depth: int) -> FusedMLP:
    """x² on [0, 1] by layers of three units: the sum so far, and the two of the next tooth."""
    model = FusedMLP([1, *[3] * depth, 1], dtype=torch.float64)
    tooth = torch.tensor([0.0, 2.0, -4.0], dtype=torch.float64)  # of the three units
    with torch.no_grad():
        for number, layer in enumerate(linear_layers(model)):
            layer.bias[:] = torch.tensor([0.0, 0.0, -0.5])[: layer.out_features]
            if number == 0:
                layer.weight[:] = 1.0
            else:
                layer.weight[:] = tooth
                layer.weight[0] = torch.tensor([1.0, 0.0, 0.0]) - tooth / 4**number
    return model


def count(model: FusedMLP) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


arguments = parse(parser(__doc__))
starts, steps = (3, 300) if arguments.quick else (15, 4000)
x = torch.linspace(-1, 1, 201)[:, None]
y = torch.sin(8 * x) * torch.exp(-x) / 2

print(f"trained: root mean square error, least and median of {starts} starts")
print("parameters   width 5, depth    least   median   depth 1, width    least   median")
sizes: list[int] = []
deep: list[tuple[float, float]] = []  # least and median error
shallow: list[tuple[float, float]] = []
for depth in (1, 2, 4, 8, 16):
    width = 10 * depth - 5
    sizes.append(count(FusedMLP([1, width, 1])))  # 30 · depth - 14, of either shape
    for shape, found in (([5] * depth, deep), ([width], shallow)):
        errors = [train([1, *shape, 1], x, y, steps) for _ in range(starts)]
        found.append((min(errors), median(errors)))
    deep_one, shallow_one = (f"{e[-1][0]:.4f}   {e[-1][1]:.4f}" for e in (deep, shallow))
    print(f"{sizes[-1]:10} {depth:17}   {deep_one} {width:16}   {shallow_one}")

print("set by hand: greatest error of x² on [0, 1]")
print("parameters   width 3, depth     error    4^-(d+1)   least of a shallow one")
fine = torch.linspace(0, 1, 2**14 + 1, dtype=torch.float64)[:, None]
built = []
for depth in range(1, 13):
    model = square(depth)
    with torch.no_grad():
        error = float((model(fine) - fine**2).abs().max())
    units = (count(model) - 1) // 3
    built.append((count(model), error, 1 / (8 * (units + 1) ** 2)))
    print(f"{count(model):10} {depth:17}   {error:.1e}     {4.0 ** -(depth + 1):.1e}   ", end="")
    print(f"{built[-1][2]:.1e}, of {units} units")

if arguments.plot:
    with figure(arguments.plot, 1, 2, size=(9, 3.4)) as axes:
        left, right = axes[0]
        for name, found, colour, marker in (
            ("width 5, deep", deep, BLUE, "o"), ("one hidden layer", shallow, RED, "s"),
        ):  # fmt: skip
            least, middle = zip(*found, strict=True)
            left.loglog(sizes, middle, color=colour, marker=marker, label=f"{name}, median")
            left.loglog(sizes, least, color=colour, marker=marker, ls=":", label=f"{name}, best")
        left.set_xticks(sizes, sizes)
        left.set_xticks([], minor=True)
        left.set(title="trained: root mean square error", ylim=(0.004, 3))
        counts, greatest, bounds = zip(*built, strict=True)
        right.semilogy(counts, greatest, color=BLUE, marker="o", label="width 3, deep")
        right.semilogy(counts, bounds, color=RED, ls="--", label="one hidden layer: no less")
        right.set(title="x² with weights set by hand: greatest error")
        for plot in axes[0]:
            plot.set_xlabel("parameters")
            plot.legend(loc="upper right", ncols=2 if plot is left else 1)
