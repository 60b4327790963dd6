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
from functools import lru_cache, partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import peers
import report
import shapes
import torch
from peers import Contestant, Problem, Results
from shapes import Shape
from suite import Suite, add_shapes, common_options, names
from torch import Tensor, nn

# torch takes several times as long at width 46 as at 45 (pytorch#144633); time should follow work.
WIDTHS = tuple(Shape("width", f"width-{n}", (784, n, 10), 128) for n in (45, 46))
shapes.SHAPES += WIDTHS

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
def pool(shape: Shape) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and labels, from which batches are drawn in turn; the same numbers in every run."""
    generator = torch.Generator().manual_seed(1)
    count = max(2, min(POOL, POOL_BYTES // (4 * shape.batch * shape.sizes[0])))
    size = (shape.batch, shape.sizes[0])
    inputs = [torch.randn(size, generator=generator) for _ in range(count)]
    high = shape.sizes[-1]
    return inputs, [torch.randint(high, size[:1], generator=generator) for _ in range(LABELS)]


def batches(shape: Shape) -> Iterator[Batch]:
    """Without end."""
    inputs, labels = pool(shape)
    return zip(cycle(inputs), cycle(labels))


# Contestants --------------------------------------------------------------------------------------


def contestant(
    name: str, step: Callable[[Any, Any], object], feed: Iterator[Any], now: Callable[[], Results]
) -> Contestant:
    """One that trains on a feed of batches; ``now`` tells its parameters."""

    def run() -> object:
        return step(*next(feed))

    def results() -> Results:
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


def _loop(name: str, model: nn.Module, problem: Problem) -> Contestant:
    step = loop(model, problem.task)
    return contestant(name, step, batches(problem.shape), lambda: parameters_of(model))


def eager(problem: Problem, threads: int) -> Contestant:
    return _loop("eager", peers.eager_network(problem), problem)


def fastmlp(problem: Problem, threads: int) -> Contestant:
    return _loop("fastmlp", peers.fastmlp_network(problem), problem)


def compiled(problem: Problem, threads: int) -> Contestant:
    torch._dynamo.reset()  # a compile per shape, none made dynamic by its predecessors
    model = problem.network()
    model.compile()
    return _loop("compile", model, problem)


def train_step(problem: Problem, threads: int) -> Contestant:
    from fastmlp import TrainStep

    model = peers.fastmlp_network(problem)
    assert isinstance(model, nn.Sequential)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer_of(model, problem.task))
    return contestant("train_step", step, batches(problem.shape), lambda: parameters_of(model))


def jax(problem: Problem, threads: int) -> Contestant:
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
        for w, b in parameters[:-1]:
            x = jax.nn.relu(x @ w + b)
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

    def whole(parameters: Any, state: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(mean_loss)(parameters, x, y)
        return value, *update(parameters, gradients, state)

    jitted = jax.jit(whole, donate_argnums=(0, 1))

    def step(x: Any, y: Any) -> Any:
        nonlocal parameters, state
        value, parameters, state = jax.block_until_ready(jitted(parameters, state, x, y))
        return value

    def now() -> Results:
        return peers.named([np.array(a).T for layer in parameters for a in layer])

    inputs, labels = ([jnp.asarray(t.numpy()) for t in side] for side in pool(problem.shape))
    return contestant("jax", step, zip(cycle(inputs), cycle(labels)), now)


CONTESTANTS: dict[str, Callable[[Problem, int], Contestant]] = {
    "train_step": train_step,
    "fastmlp": fastmlp,
    "eager": eager,
    "jax": jax,
    "compile": compiled,
}

# The check ----------------------------------------------------------------------------------------

# Of the length of the steps, in the Euclidean norm, beside twice what rounding does to eager. Adam
# divides each gradient by its own size, so that anything may come of one within rounding of 0, and
# those of the first layers of large-1024 are all so small.
TOLERANCE = 0.01


@lru_cache(maxsize=1)
def expected(problem: Problem) -> tuple[Results, dict[str, float]]:
    """The parameters after the steps that are checked, and how far from them others may be."""

    def trained(dtype: torch.dtype, steps: int) -> Results:
        model = problem.network().to(dtype)
        step = loop(model, problem.task)
        for x, y in islice(batches(problem.shape), steps):
            step(x.to(dtype), y)
        return parameters_of(model)

    def distance(a: Results, b: Results) -> dict[str, float]:
        return {name: float(np.linalg.norm(a[name] - b[name])) for name in a}

    exact = trained(torch.float64, STEPS)
    change = distance(exact, trained(torch.float64, 0))
    rounding = distance(exact, trained(torch.float32, STEPS))
    return exact, {name: TOLERANCE * change[name] + 2 * rounding[name] for name in exact}


def fault(problem: Problem, results: Results) -> str | None:
    """What is wrong with the parameters after the steps, on one line; None: nothing."""
    exact, limits = expected(problem)
    if set(results) != set(exact):
        return f"results {sorted(results)}, expected {sorted(exact)}"
    for name, want in exact.items():
        if results[name].shape != want.shape:
            return f"{name}: shape {results[name].shape}, expected {want.shape}"
        off = float(np.linalg.norm(results[name] - want))
        if not off <= limits[name]:  # a NaN is wrong too
            return f"{name}: off by {off:.3g} in the Euclidean norm, {limits[name]:.3g} allowed"
    return None


class StepSuite(Suite):
    """The same measurement with this script's contestants and check."""

    def _admitted(self, problem: Problem) -> dict[str, Callable[[], object]]:
        calls = {}
        for name in self.options.peers:
            where = f"{name}, {problem.task} of {problem.shape.name}"
            try:
                one = CONTESTANTS[name](problem, self.options.threads)
            except ImportError as reason:
                print(f"skipped {where}: {reason}", flush=True)
                continue
            if (wrong := fault(problem, one.results())) is None:
                calls[name] = one.run
            else:
                self.refused.append(f"refused {where}: {wrong}")
                print(self.refused[-1], flush=True)
        return calls


def cliffs(rows: list[report.Row]) -> Iterator[str]:
    """How much longer each contestant takes for one more unit, beside how much more work it is."""
    times = {(r.shape.name, r.task, r.contestant): r.seconds.median for r in rows}
    narrow, wide = WIDTHS
    work = wide.flops("step") / narrow.flops("step")
    for (shape, task, name), seconds in times.items():
        if shape == wide.name and (narrow.name, task, name) in times:
            ratio = seconds / times[narrow.name, task, name]
            yield f"width 45 to 46, {task}, {name}: time ×{ratio:.2f}, work ×{work:.2f}"


def main() -> int:
    parser = common_options(__doc__)
    add_shapes(parser, "lecture-50,small-32,tiny-1,large-1024,width-*")
    add = partial(parser.add_argument, help="default: %(default)s")
    default = "train_step,fastmlp,eager,jax"  # torch.compile's compiles take minutes
    add("--tasks", type=partial(names, [*OPTIMIZERS]), default="sgd,adam", metavar="TASK,…")
    add("--peers", type=partial(names, [*CONTESTANTS]), default=default, metavar="…")
    parser.add_argument("--csv", metavar="FILE", help="write the rows there too")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios; needs matplotlib")
    suite = StepSuite(parser.parse_args())
    status = suite.run()
    for line in cliffs(suite.rows):
        print(line)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
