"""How fast is an epoch of MNIST, from the lecture's program to a single call?

All train on the same rows in the same shuffled order, with CrossEntropyLoss and SGD:

- lecture: a data set that transforms image by image, DataLoader as it comes, nn.Sequential.
- fastmlp: the same loop with FusedMLP, and with a data set and ``collate`` of fastmlp.data, which
  transform batch by batch.
- train_step: ``TrainStep`` on the batches of a ``TensorLoader``. All images are transformed
  beforehand, which is not timed.
- fit: ``TrainStep.fit`` on the images' bytes.

A call is an epoch over a share of the data; the times are of one batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import inputs
import peers
import torch
import train_step
from check import Trained
from peers import Contestant, Problem, Results
from suite import Suite, network_options
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastmlp.data import ImageDataset, TensorLoader, collate

Epoch = Callable[[], object]
Step = Callable[[Tensor, Tensor], object]


@lru_cache(maxsize=1)
def share(problem: Problem, batches: int) -> ImageDataset:
    """As many batches of the training images, chosen at random, or all if there are no more."""
    whole = inputs.images(problem.shape.input, problem.data_dir)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(2))
    rows = order[: batches * problem.shape.batch]
    return ImageDataset(whole.images[rows], whole.labels[rows], whole.transform)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """A data set as the lecture writes it: an item is an image, transformed when it is asked for.

    Already a tensor, where the lecture's is a PIL image: that is left out in its favour.
    """

    def __init__(self, data: ImageDataset) -> None:
        assert data.transform is not None
        self.images, self.labels = data.images.unsqueeze(1), data.labels
        self.transform: Callable[[Tensor], Tensor] = data.transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.images[row]), int(self.labels[row])


def train(step: Step, loader: Iterable[list[Tensor]]) -> None:
    """An epoch."""
    for images, labels in loader:
        step(images.flatten(1), labels)


# Contestants: an epoch of a model over data, in the order that a generator gives -----------------


def lecture(problem: Problem, model: nn.Module, data: ImageDataset, g: torch.Generator) -> Epoch:
    loader = DataLoader(OneByOne(data), problem.shape.batch, shuffle=True, generator=g)
    return partial(train, train_step.loop(model, problem.task), loader)


def fastmlp(problem: Problem, model: nn.Module, data: ImageDataset, g: torch.Generator) -> Epoch:
    loader = DataLoader(data, problem.shape.batch, shuffle=True, collate_fn=collate, generator=g)
    return partial(train, train_step.loop(model, problem.task), loader)


def steps(problem: Problem, model: nn.Module, data: ImageDataset, g: torch.Generator) -> Epoch:
    [[images, labels]] = DataLoader(data, len(data), collate_fn=collate)
    loader = TensorLoader(
        images.flatten(1), labels, batch_size=problem.shape.batch, shuffle=True, generator=g
    )
    return partial(train, train_step.whole(model, problem.task), loader)


def fit(problem: Problem, model: nn.Module, data: ImageDataset, g: torch.Generator) -> Epoch:
    step = train_step.whole(model, problem.task)
    return partial(step.fit, data, problem.shape.batch, generator=g, progress=False)


CONTESTANTS = {"lecture": lecture, "fastmlp": fastmlp, "train_step": steps, "fit": fit}
SEED = 4  # of the order of the rows


def contestant(name: str, batches: int, problem: Problem, threads: int) -> Contestant:
    """The contestant of this name at an epoch of so many batches."""
    plain = name == "lecture"
    model = peers.eager_network(problem) if plain else peers.fastmlp_network(problem)
    data = share(problem, batches)
    run = CONTESTANTS[name](problem, model, data, torch.Generator().manual_seed(SEED))

    def results() -> Results:
        run()
        return train_step.parameters_of(model)

    return Contestant(name, run, results, math.ceil(len(data) / problem.shape.batch))


@lru_cache(maxsize=1)
def expected(problem: Problem, batches: int) -> Trained:
    """Where the first epoch has to end."""

    def trained(dtype: torch.dtype) -> Results:
        model = problem.network().to(dtype)
        step = train_step.loop(model, problem.task)
        data, generator = share(problem, batches), torch.Generator().manual_seed(SEED)
        loader = DataLoader(data, problem.shape.batch, shuffle=True, generator=generator)
        train(lambda x, y: step(x.to(dtype), y), loader)
        return train_step.parameters_of(model)

    start = train_step.parameters_of(problem.network())
    return Trained.of(start, trained(torch.float64), trained(torch.float32))


class FitSuite(Suite):
    """The same measurement with this script's contestants and check."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.batches = min(options.batches, 5) if options.quick else options.batches
        self.known = {name: partial(contestant, name, self.batches) for name in CONTESTANTS}

    def fault(self, problem: Problem, results: Results) -> str | None:
        return expected(problem, self.batches).fault(results)


def main() -> int:
    parser = network_options(__doc__, "mnist-50", ["sgd"], [*CONTESTANTS], CONTESTANTS)
    parser.add_argument(
        "--batches", type=int, default=200, metavar="N",
        help="of a call; more than there are: all (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.batches < 1:
        parser.error(f"argument --batches: {options.batches}: none")
    if other := [s.name for s in options.shapes if s.input not in inputs.IMAGES]:
        parser.error(f"argument --shapes: {', '.join(other)}: not fed with images")
    suite = FitSuite(options)
    status = suite.run()
    for row in suite.rows:
        rows = len(inputs.images(row.shape.input, options.data_dir))
        seconds = math.ceil(rows / row.shape.batch) * row.seconds.median
        print(f"{row.shape.name}, {row.contestant}: {seconds:.2f} s for all {rows:,} rows")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
