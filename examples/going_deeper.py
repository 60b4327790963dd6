"""Going deeper: what lets a multilayer perceptron of 8, 20 and 150 layers learn handwritten digits.

- relu instead of sigmoid, and dropout (A. Krizhevsky et al., ImageNet Classification, 2012);
- initial values under which relu keeps the variance (K. He et al., Delving Deep, 2015);
- auxiliary heads: classifiers on hidden layers, whose losses, times 0.3, join the network's own
  (C.-Y. Lee et al., Deeply-Supervised Nets, 2014; C. Szegedy et al., Going Deeper, 2014);
- residual blocks x + f(x) (K. He et al., Deep Residual Learning, 2015). There batch normalisation
  keeps the sum of many blocks in bounds; here small initial values of f do, torch's over the depth,
  in the way of H. Zhang et al., Fixup Initialization, 2019. Both are shown, with and without.

Every network sees as many batches, with the same Adam.
"""

from collections.abc import Callable
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from _common import BLUE, GREEN, ORANGE, PURPLE, RED, figure, linear_layers, parse, parser, tensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmlp import FusedMLP, Residual, TrainStep
from fastmlp.data import DigitsDataset, MNISTDataset

DEPTHS, WIDTH, BATCH, RATE = (8, 20, 150), 64, 50, 0.001


def he(model: FusedMLP) -> None:
    for layer in linear_layers(model):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)


def small(model: FusedMLP) -> None:
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, Residual):
                for parameter in block.parameters():
                    parameter.div_(len(linear_layers(model)))


class Technique(NamedTuple):
    colour: str
    line: str
    options: dict[str, Any]  # of FusedMLP
    initialise: Callable[[FusedMLP], object] = id  # leaves torch's initial values
    heads: bool = False


TECHNIQUES = {
    "sigmoid": Technique("black", "-", {"activation": "sigmoid"}),
    "relu": Technique(RED, "-", {}),
    "relu, dropout": Technique(RED, ":", {"dropout": 0.1}),
    "relu, He's initial values": Technique(ORANGE, "-", {}, he),
    "relu, auxiliary heads": Technique(GREEN, "-", {}, heads=True),
    "relu, residual": Technique(PURPLE, "--", {"residual": True}),
    "relu, residual, small": Technique(BLUE, "-", {"residual": True}, small),
    "relu, residual, small, dropout": Technique(
        BLUE, ":", {"residual": True, "dropout": 0.1}, small
    ),
}


class HeadedStep:
    """A training step with a classifier after every second hidden layer, in torch's usual way."""

    def __init__(self, model: FusedMLP, optimizer: torch.optim.Adam) -> None:
        self.parts = [model[at : at + 4] for at in range(0, len(model), 4)]  # two layers, two relu
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in self.parts[1:])
        self.optimizer = optimizer
        optimizer.add_param_group({"params": self.heads.parameters()})

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for part, head in zip(self.parts, self.heads, strict=False):
            x = part(x)
            losses.append(0.3 * cross_entropy(head(x), y))
        loss = cross_entropy(self.parts[-1](x), y)
        self.optimizer.zero_grad()
        (loss + sum(losses)).backward()
        self.optimizer.step()
        return loss.detach()


class Run(NamedTuple):
    losses: list[float]  # of each batch
    error: float  # on the test images, in percent
    gradient: float  # norm of the first layer's, before the training


def train(technique: Technique, depth: int, steps: int) -> Run:
    sizes = [images.shape[1], *[WIDTH] * (depth - 1), 10]
    model = FusedMLP(sizes, **technique.options)
    technique.initialise(model)
    cross_entropy(model(images[:BATCH]), labels[:BATCH]).backward()
    gradient = linear_layers(model)[0].weight.grad
    assert gradient is not None
    norm = float(gradient.norm())
    adam = torch.optim.Adam(model.parameters(), RATE, fused=True)
    step: HeadedStep | TrainStep
    if technique.heads:
        step = HeadedStep(model, adam)
    else:
        step = TrainStep(model, nn.CrossEntropyLoss(), adam)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        losses.append(float(step(images[rows], labels[rows])))
    model.eval()
    with torch.no_grad():
        wrong = model(test_images).argmax(1) != test_labels
    return Run(losses, 100 * float(wrong.double().mean()), norm)


arguments_parser = parser(__doc__)
arguments_parser.add_argument("--data-dir", help="MNIST instead of scikit-learn's digits")
arguments = parse(arguments_parser)
starts, steps = (1, 120) if arguments.quick else (3, 600)
torch.set_flush_denormal(True)  # vanishing gradients are subnormal, which makes arithmetic slow
folder = arguments.data_dir
images, labels = tensors(MNISTDataset(folder, True) if folder else DigitsDataset(True))
test_images, test_labels = tensors(MNISTDataset(folder, False) if folder else DigitsDataset(False))

print(
    f"{steps} batches of {BATCH}, width {WIDTH}, medians of {starts} starts: training loss at the"
)
print("end, error on the test images, norm of the first layer's gradient before the training")
print(f"{'':30}" + "".join(f"{f'{depth} layers':^28}" for depth in DEPTHS))
curves: dict[tuple[str, int], list[float]] = {}
for name, technique in TECHNIQUES.items():
    row = f"{name:<30}"
    for depth in DEPTHS:
        runs = [train(technique, depth, steps) for _ in range(starts)]
        curves[name, depth] = runs[0].losses
        row += f"{median(mean(run.losses[-steps // 10 :]) for run in runs):9.2g}"
        row += f"{median(run.error for run in runs):7.1f} %"
        row += f"{median(run.gradient for run in runs):10.0e}"
    print(row, flush=True)

if arguments.plot:
    window = steps // 30
    with figure(arguments.plot, 1, 3, size=(11, 3.2)) as axes:
        for plot, depth in zip(axes[0], DEPTHS, strict=True):
            for name, technique in TECHNIQUES.items():
                smooth = torch.tensor(curves[name, depth]).unfold(0, window, window).mean(1)
                batches = torch.arange(len(smooth)) * window + window / 2
                plot.plot(batches, smooth, color=technique.colour, ls=technique.line, label=name)
            plot.set(title=f"{depth} layers", xlabel="batches", ylim=(0, 3))
        axes[0, 0].set_ylabel("training loss")
        axes[0, 0].figure.legend(*plot.get_legend_handles_labels(), loc="outside right center")
