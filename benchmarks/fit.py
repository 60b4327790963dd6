"""How fast is an epoch of MNIST, from the lecture's program to a single call?

All train on the same rows in the same shuffled order, with CrossEntropyLoss and SGD:

- lecture: a data set that transforms image by image, DataLoader as it comes, nn.Sequential.
- fastmlp: the same loop with FusedMLP, and with a data set and ``collate`` of fastmlp.data, which
  transform batch by batch.
- train_step: ``TrainStep`` on the batches of a ``TensorLoader``. All images are transformed
  beforehand, which is not timed.
- fit: ``TrainStep.fit`` on the images' bytes.
- eager, compile-step: the loop of train_step with the network and the optimizers of torch.
- jax: all steps in one ``jax.lax.scan``, 1 or 8 of them unrolled; c: in one call of C.

Where the input is random numbers, everyone trains on the same tensors. A call is an epoch over a
share of the data; the times are of one batch. Who ran fewer steps is refused.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import inputs
import peers
import torch
import train_step
from check import Trained
from peers import Contestant, Problem, Results
from suite import Suite, network_options
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastmlp.data import ImageDataset, TensorLoader, collate

Step = Callable[[Tensor, Tensor], object]
Data = ImageDataset | TensorDataset
BATCHES, MOST_BATCHES, MOST_FLOPS = 200, 2000, 2e8  # of a call
COPIES = 4  # of a random input, with other labels: nothing can be learned by heart


def batches_of(problem: Problem) -> int:
    """How many a call takes: more where the network is small, for a call costs time as well."""
    wanted = int(MOST_FLOPS / problem.shape.flops("step"))
    return max(BATCHES, min(MOST_BATCHES, wanted)) if problem.shape.input == "random" else BATCHES


@lru_cache(maxsize=1)
def share(problem: Problem, batches: int) -> Data:
    """As many batches of the training images, chosen at random, or all if there are no more."""
    shape, generator = problem.shape, torch.Generator().manual_seed(2)
    count = batches * shape.batch
    if shape.input in inputs.IMAGES:
        whole = inputs.images(shape.input, problem.data_dir)
        rows = torch.randperm(len(whole), generator=generator)[:count]
        return ImageDataset(whole.images[rows], whole.labels[rows], whole.transform)
    distinct = -(-count // COPIES)
    x = torch.cat([problem.draw(generator) for _ in range(-(-distinct // shape.batch))])
    labels = torch.randint(shape.sizes[-1], (distinct,), generator=generator)
    contradicting = [(labels + i) % shape.sizes[-1] for i in range(COPIES)]
    return TensorDataset(x[:distinct].repeat(COPIES, 1)[:count], torch.cat(contradicting)[:count])


def tensors(data: Data) -> tuple[Tensor, Tensor]:
    """All of the inputs (rows, features) and labels, transformed."""
    if isinstance(data, TensorDataset):
        x, y = data.tensors
        return x, y
    [[images, labels]] = DataLoader(data, len(data), collate_fn=collate)
    return images.flatten(1), labels


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


def train(step: Step, loader: Iterable[list[Tensor]]) -> int:
    """An epoch; how many steps it took."""
    done = 0
    for images, labels in loader:
        step(images.flatten(1), labels)
        done += 1
    return done


# Contestants: an epoch over data in the order that a generator gives ------------------------------


class Epochs(NamedTuple):
    """A training.

    Attributes:
        run: an epoch; tells how many steps it took.
        now: the parameters.
    """

    run: Callable[[], Any]
    now: Callable[[], Results]


def of_model(model: nn.Module, run: Callable[[], Any]) -> Epochs:
    return Epochs(run, partial(train_step.parameters_of, model))


def images_only(data: Data) -> ImageDataset:
    if isinstance(data, TensorDataset):
        raise peers.Unsupported("no images")
    return data


def lecture(problem: Problem, threads: int, data: Data, g: torch.Generator) -> Epochs:
    images, model = OneByOne(images_only(data)), peers.eager_network(problem)
    loader = DataLoader(images, problem.shape.batch, shuffle=True, generator=g)
    return of_model(model, partial(train, train_step.loop(model, problem.task), loader))


def fastmlp(problem: Problem, threads: int, data: Data, g: torch.Generator) -> Epochs:
    images, model = images_only(data), peers.fastmlp_network(problem)
    loader = DataLoader(images, problem.shape.batch, shuffle=True, collate_fn=collate, generator=g)
    return of_model(model, partial(train, train_step.loop(model, problem.task), loader))


def fit(problem: Problem, threads: int, data: Data, g: torch.Generator) -> Epochs:
    model = peers.fastmlp_network(problem)
    step = train_step.whole(model, problem.task)

    def run() -> int:
        [report] = step.fit(data, problem.shape.batch, generator=g, progress=False)
        return report.batch

    return of_model(model, run)


def _on_tensors(
    network: Callable[[Problem], nn.Module], make: Callable[[Problem, nn.Module], Step]
) -> Make:
    """A step on the batches of a ``TensorLoader``."""

    def epochs(problem: Problem, threads: int, data: Data, g: torch.Generator) -> Epochs:
        model, (x, y) = network(problem), tensors(data)
        loader = TensorLoader(x, y, batch_size=problem.shape.batch, shuffle=True, generator=g)
        return of_model(model, partial(train, make(problem, model), loader))

    return epochs


def whole_batches(data: Data, problem: Problem) -> int:
    batches, left = divmod(len(data), problem.shape.batch)
    if left:
        raise peers.Unsupported("no smaller batch at the end")
    return batches


def order(data: Data, g: torch.Generator) -> Tensor:
    """The rows in the order of an epoch, of which everyone else's loaders take batches."""
    [[rows]] = TensorLoader(
        torch.arange(len(data)), batch_size=len(data), shuffle=True, generator=g
    )
    return rows


def scan(problem: Problem, threads: int, data: Data, g: torch.Generator, unroll: int) -> Epochs:
    import with_jax

    jax = with_jax.started(threads)
    batches, rate = whole_batches(data, problem), peers.RATES[problem.task]
    x, y = (jax.numpy.asarray(t.numpy()) for t in tensors(data))
    state, step = with_jax.training(problem, problem.task, rate)

    def epoch(state: Any, order: Any, x: Any, y: Any) -> Any:
        def one(carry: Any, rows: Any) -> Any:
            state, done = carry
            # All rows are there; JAX would check.
            batch = (t.at[rows].get(mode="promise_in_bounds") for t in (x, y))
            value, state = step(state, *batch)
            return (state, done + 1), value

        return jax.lax.scan(one, (state, 0), order, unroll=unroll)

    jitted = jax.jit(epoch, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        rows = order(data, g).view(batches, -1).to(torch.int32).numpy()
        (state, done), _ = jax.block_until_ready(jitted(state, rows, x, y))
        return done

    return Epochs(run, lambda: peers.named(with_jax.arrays(state[0])))


def static(problem: Problem, threads: int, data: Data, g: torch.Generator) -> Epochs:
    import static_c

    library, batches, (x, y) = (
        static_c.library(problem),
        whole_batches(data, problem),
        tensors(data),
    )

    def run() -> int:
        rows = order(data, g)
        done: int = library.steps(x.data_ptr(), y.data_ptr(), rows.data_ptr(), batches)
        return done

    return Epochs(run, library.parameters)


def _loop(problem: Problem, model: nn.Module, fused: bool = False) -> Step:
    return train_step.loop(model, problem.task, fused)


def _whole(problem: Problem, model: nn.Module) -> Step:
    return train_step.whole(model, problem.task)


def _compiled(problem: Problem, model: nn.Module, cpp: bool = False) -> Step:
    return train_step.compiled_step(problem, model, cpp)


Make = Callable[[Problem, int, Data, torch.Generator], Epochs]
CONTESTANTS: dict[str, Make] = {
    "lecture": lecture,
    "fastmlp": fastmlp,
    "train_step": _on_tensors(peers.fastmlp_network, _whole),
    "fit": fit,
    "eager": _on_tensors(peers.eager_network, _loop),
    "eager-fused": _on_tensors(peers.eager_network, partial(_loop, fused=True)),
    "compile-step": _on_tensors(peers.eager_network, _compiled),
    "compile-step-cpp": _on_tensors(peers.eager_network, partial(_compiled, cpp=True)),
    "jax-scan-1": partial(scan, unroll=1),
    "jax-scan-8": partial(scan, unroll=8),
    "c": static,
}
SEED = 4  # of the order of the rows


def contestant(name: str, batches: int | None, problem: Problem, threads: int) -> Contestant:
    """The contestant of this name at an epoch of so many batches; None: :func:`batches_of`."""
    if problem.shape.dropout:
        raise peers.Unsupported("no dropout, whose masks differ")
    data = share(problem, batches or batches_of(problem))
    epochs = CONTESTANTS[name](problem, threads, data, torch.Generator().manual_seed(SEED))
    steps = math.ceil(len(data) / problem.shape.batch)

    def results() -> Results:
        if (done := int(epochs.run())) != steps:
            raise peers.NotAsNamed(f"{done} steps, expected {steps}")
        return epochs.now()

    one = Contestant(name, epochs.run, results, steps)
    return peers.of_one_graph(one) if name.startswith("compile") else one


@lru_cache(maxsize=1)
def expected(problem: Problem, batches: int | None) -> Trained:
    """Where the first epoch has to end.

    Rounding may wake a unit in a step where its sum is about 0, and Adam moves one that never had
    a gradient by its whole rate. Which units these are hangs on the order of the sums, and in one
    of a few orders eager meets them as well.
    """

    def trained(dtype: torch.dtype, order: Tensor) -> Results:
        model = problem.network().to(dtype)
        weight = next(model.parameters())
        weight.data = weight.data[:, order]
        step = train_step.loop(model, problem.task)
        data = share(problem, batches or batches_of(problem))
        generator = torch.Generator().manual_seed(SEED)
        loader = DataLoader(data, problem.shape.batch, shuffle=True, generator=generator)
        train(lambda x, y: step(x.to(dtype)[:, order], y), loader)
        weight.data = weight.data[:, order.argsort()]
        return train_step.parameters_of(model)

    features = problem.shape.sizes[0]
    own = torch.arange(features)
    others = [
        torch.randperm(features, generator=torch.Generator().manual_seed(n)) for n in range(4)
    ]
    start = train_step.parameters_of(problem.network())
    rounded = (trained(torch.float32, order) for order in (own, *others))
    return Trained.of(start, trained(torch.float64, own), *rounded)


class FitSuite(Suite):
    """The same measurement with this script's contestants and check."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.batches = min(options.batches or 5, 5) if options.quick else options.batches
        self.known = {name: partial(contestant, name, self.batches) for name in CONTESTANTS}

    def fault(self, problem: Problem, results: Results) -> str | None:
        return expected(problem, self.batches).fault(results)


def add_batches(parser: argparse.ArgumentParser) -> None:
    """Adds ``--batches``."""

    def count(text: str) -> int:
        if (batches := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"{text}: none")
        return batches

    parser.add_argument(
        "--batches", type=count, metavar="N",
        help=f"of a call; more images than there are: all (default: {BATCHES}, of small networks "
        f"on random numbers up to {MOST_BATCHES})",
    )  # fmt: skip


def main() -> int:
    first = ("lecture", "fastmlp", "train_step", "fit")
    parser = network_options(__doc__, "mnist-50", [*train_step.OPTIMIZERS], first, CONTESTANTS)
    parser.set_defaults(tasks="sgd")
    add_batches(parser)
    options = parser.parse_args()
    suite = FitSuite(options)
    status = suite.run()
    for row in suite.rows:
        if row.shape.input not in inputs.IMAGES:
            continue
        rows = len(inputs.images(row.shape.input, options.data_dir))
        seconds = math.ceil(rows / row.shape.batch) * row.seconds.median
        print(f"{row.shape.name}, {row.contestant}: {seconds:.2f} s for all {rows:,} rows")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
