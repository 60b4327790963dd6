"""How fast is a whole step of training in one call, against loops that put it together?

``TrainStep`` beside the same loop with eager's network, with fastmlp's and with torch.compile's,
torch's own loss and optimizer in all three, and beside JAX with the whole step in one compiled
function. CrossEntropyLoss; tasks are the optimizers. Each step takes a new batch from a pool, with
labels that contradict each other in the long run: nothing can be learned by heart, so losses and
gradients stay the size they are in training, and do not shrink to subnormal numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import peers
import report
import torch
from check import Trained
from peers import Contestant, Problem, Results
from shapes import select
from suite import Suite, network_options
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastmlp import TrainStep

Batch = tuple[Tensor, Tensor]  # input (batch, in), classes (batch,)
POOL, POOL_BYTES = 64, 2**26  # inputs, as many as there is room for
LABELS = POOL + 3  # no multiple of a pool's size: every input comes with every label in turn
STEPS = 3  # that a contestant has to get right

RATES = {"sgd": 0.01, "adam": 0.001}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
BETAS, EPS = (0.9, 0.999), 1e-8  # torch.optim.Adam's defaults


@lru_cache(maxsize=1)
def pool(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and labels, from which batches are drawn in turn; the same numbers in every run."""
    generator, shape = torch.Generator().manual_seed(1), problem.shape
    count = max(2, min(POOL, POOL_BYTES // (4 * shape.batch * shape.sizes[0])))
    inputs = [problem.draw(generator) for _ in range(count)]
    size, high = (shape.batch,), shape.sizes[-1]
    return inputs, [torch.randint(high, size, generator=generator) for _ in range(LABELS)]


def batches(problem: Problem) -> Iterator[Batch]:
    """Without end."""
    inputs, labels = pool(problem)
    return zip(cycle(inputs), cycle(labels))


# Contestants --------------------------------------------------------------------------------------


def contestant(
    name: str,
    step: Callable[[Any, Any], object],
    feed: Iterator[Any],
    now: Callable[[], Results],
    compared: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Contestant:
    """One that trains on a feed of batches; ``now`` tells its parameters.

    Args:
        compared: around the steps whose results are compared.
    """

    def run() -> object:
        return step(*next(feed))

    def results() -> Results:
        with compared():
            for _ in range(STEPS):
                run()
        return now()

    return Contestant(name, run, results)


def parameters_of(model: nn.Module) -> Results:
    return peers.named([p.detach().numpy().copy() for p in model.parameters()])


def optimizer_of(model: nn.Module, task: str) -> torch.optim.Optimizer:
    return OPTIMIZERS[task](model.parameters(), lr=RATES[task])


def loop(model: nn.Module, task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The step of a loop as anybody writes it."""
    loss, optimizer = nn.CrossEntropyLoss(), optimizer_of(model, task)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    return step


def _by_torch(
    name: str, model: nn.Module, problem: Problem, make: Callable[[nn.Module, str], Any] = loop
) -> Contestant:
    return contestant(
        name, make(model, problem.task), batches(problem), partial(parameters_of, model),
        partial(peers.without_dropout, model),
    )  # fmt: skip


def eager(problem: Problem, threads: int) -> Contestant:
    return _by_torch("eager", peers.eager_network(problem), problem)


def fastmlp(problem: Problem, threads: int) -> Contestant:
    return _by_torch("fastmlp", peers.fastmlp_network(problem), problem)


def compiled(problem: Problem, threads: int) -> Contestant:
    return _by_torch("compile", peers.compiled_network(problem), problem)


def whole(model: nn.Module, task: str) -> TrainStep:
    """The step of :func:`loop` in one call."""
    from fastmlp import TrainStep

    assert isinstance(model, nn.Sequential)
    return TrainStep(model, nn.CrossEntropyLoss(), optimizer_of(model, task))


def train_step(problem: Problem, threads: int) -> Contestant:
    return _by_torch("train_step", peers.fastmlp_network(problem), problem, whole)


def jax(problem: Problem, threads: int) -> Contestant:
    if problem.shape.dropout:
        raise peers.Unsupported("no dropout")
    # Read once, when JAX starts: the size of its thread pool, and no other device.
    os.environ["NPROC"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    # Dispatched to another thread, a call that is waited for at once takes up to four times longer.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    lr = RATES[problem.task]
    # Weights are (in, out) here.
    parameters = [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in problem.parameters()]
    zeros = jax.tree.map(jnp.zeros_like, parameters)

    def mean_loss(parameters: Any, x: Any, y: Any) -> Any:
        for (w, b), skip in zip(parameters[:-1], problem.shape.skips, strict=False):
            h = jax.nn.relu(x @ w + b)
            x = x + h if skip else h
        w, b = parameters[-1]
        return -jax.nn.log_softmax(x @ w + b)[jnp.arange(len(y)), y].mean()

    def sgd(parameters: Any, gradients: Any, state: Any) -> Any:
        return jax.tree.map(lambda p, g: p - lr * g, parameters, gradients), state

    def adam(parameters: Any, gradients: Any, state: Any) -> Any:
        count, mean, square = state
        count = count + 1
        mean = jax.tree.map(lambda m, g: m + (1 - BETAS[0]) * (g - m), mean, gradients)
        square = jax.tree.map(lambda s, g: BETAS[1] * s + (1 - BETAS[1]) * g * g, square, gradients)
        rate, root = lr / (1 - BETAS[0] ** count), jnp.sqrt(1 - BETAS[1] ** count)

        def updated(p: Any, m: Any, s: Any) -> Any:
            return p - rate * m / (jnp.sqrt(s) / root + EPS)

        return jax.tree.map(updated, parameters, mean, square), (count, mean, square)

    update = {"sgd": sgd, "adam": adam}[problem.task]
    state = () if problem.task == "sgd" else (jnp.zeros(()), zeros, jax.tree.map(jnp.copy, zeros))

    def train(parameters: Any, state: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(mean_loss)(parameters, x, y)
        return value, *update(parameters, gradients, state)

    jitted = jax.jit(train, donate_argnums=(0, 1))

    def step(x: Any, y: Any) -> Any:
        nonlocal parameters, state
        value, parameters, state = jax.block_until_ready(jitted(parameters, state, x, y))
        return value

    def now() -> Results:
        return peers.named([np.array(a).T for layer in parameters for a in layer])

    inputs, labels = ([jnp.asarray(t.numpy()) for t in side] for side in pool(problem))
    return contestant("jax", step, zip(cycle(inputs), cycle(labels)), now)


CONTESTANTS: dict[str, peers.Make] = {
    "train_step": train_step,
    "fastmlp": fastmlp,
    "eager": eager,
    "jax": jax,
    "compile": compiled,
}

# The check ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def expected(problem: Problem) -> Trained:
    """Where the steps that are checked have to end."""

    def trained(dtype: torch.dtype, steps: int) -> Results:
        model = problem.network().to(dtype).eval()
        step = loop(model, problem.task)
        for x, y in islice(batches(problem), steps):
            step(x.to(dtype), y)
        return parameters_of(model)

    return Trained.of(
        trained(torch.float64, 0), trained(torch.float64, STEPS), trained(torch.float32, STEPS)
    )


class StepSuite(Suite):
    """The same measurement with this script's contestants and check."""

    known = CONTESTANTS

    def fault(self, problem: Problem, results: Results) -> str | None:
        return expected(problem).fault(results)


def cliffs(rows: list[report.Row]) -> Iterator[str]:
    """How much longer each contestant takes for one more unit, beside how much more work it is."""
    times = {(r.shape.name, r.task, r.contestant): r.seconds.median for r in rows}
    narrow, wide = select("width")
    work = wide.flops("step") / narrow.flops("step")
    for (shape, task, name), seconds in times.items():
        if shape == wide.name and (narrow.name, task, name) in times:
            ratio = seconds / times[narrow.name, task, name]
            yield f"width 45 to 46, {task}, {name}: time ×{ratio:.2f}, work ×{work:.2f}"


def main() -> int:
    contestants = ("train_step", "fastmlp", "eager", "jax")  # torch.compile compiles for minutes
    shapes = "lecture-50,small-32,tiny-1,large-1024,width,sparse,blocks"
    parser = network_options(__doc__, shapes, [*OPTIMIZERS], contestants, CONTESTANTS)
    suite = StepSuite(parser.parse_args())
    of_the_grid = any(shape.group == "grid" for shape in suite.options.shapes)
    status = suite.search() if of_the_grid else suite.run()
    for line in cliffs(suite.rows):
        print(line)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
