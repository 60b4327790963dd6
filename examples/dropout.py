"""Dropout against overfitting: eight layers, and few images to learn from.

N. Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014, after
A. Krizhevsky et al., 2012. In training every hidden unit is left out with probability p, so none
can rely on another; all are there in the test. The program trains the same network with several p
on a part of the digits that it learns by heart, and tells both errors.
"""

from statistics import median

import torch
from _common import BLUE, RED, figure, parse, parser, tensors
from torch import Tensor, nn

from fastmlp import FusedMLP, TrainStep
from fastmlp.data import DigitsDataset

SIZES = [784, *[256] * 7, 10]
PROBABILITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def error(model: FusedMLP, x: Tensor, y: Tensor) -> float:
    """Without dropout, in percent."""
    model.eval()
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) != y).double().mean())


arguments = parse(parser(__doc__))
starts, steps, probabilities = (1, 300, (0.0, 0.3)) if arguments.quick else (5, 1000, PROBABILITIES)
images, labels = (tensor[:200] for tensor in tensors(DigitsDataset(train=True)))
test = tensors(DigitsDataset(train=False))

print(f"{len(images)} images, {len(SIZES) - 1} layers, {steps} batches, {starts} starts")
print("p      error on these images, median   on the test images: least, median, greatest")
found = []
for p in probabilities:
    errors, test_errors = [], []
    for _ in range(starts):
        model = FusedMLP(SIZES, dropout=p)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        for _ in range(steps):
            rows = torch.randint(len(images), (50,))
            step(images[rows], labels[rows])
        errors.append(error(model, images, labels))
        test_errors.append(error(model, *test))
    found.append((median(errors), min(test_errors), median(test_errors), max(test_errors)))
    print("{:.1f} {:28.1f} % {:26.1f} % {:6.1f} % {:6.1f} %".format(p, *found[-1]), flush=True)

if arguments.plot:
    with figure(arguments.plot, 1, 1, size=(5, 3)) as axes:
        plot, (train, least, middle, greatest) = axes[0, 0], zip(*found, strict=True)
        plot.plot(probabilities, middle, color=BLUE, marker="o", label="test images")
        plot.fill_between(probabilities, least, greatest, color=BLUE, alpha=0.2)
        plot.plot(probabilities, train, color=RED, marker="s", ls="--", label="training images")
        plot.set(xlabel="probability of dropout", ylabel="error in %", ylim=(0, None))
        plot.legend()
