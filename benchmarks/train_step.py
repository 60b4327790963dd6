"""How fast is a whole step of training in one call, against loops that put it together?

``TrainStep`` beside the same loop with eager's network, with fastmlp's and with torch.compile's,
torch's own loss and optimizer in all three, and beside the whole step in one function compiled by
torch.compile, JAX or a C compiler. CrossEntropyLoss; tasks are the optimizers. Each step takes a
new batch from a pool, with labels that contradict each other in the long run: nothing can be
learned by heart, so losses and gradients stay the size they are in training, and do not shrink to
subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import peers
import report
import torch
from check import Trained
from peers import BETAS, EPS, RATES, Contestant, Problem, Results
from shapes import select
from suite import Suite, network_options
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastmlp import TrainStep

Batch = tuple[Tensor, Tensor]  # input (batch, in), classes (batch,)
POOL, POOL_BYTES = 64, 2**26  # inputs, as many as there is room for
LABELS = POOL + 3  # no multiple of a pool's size: every input comes with every label in turn
STEPS = 3  # that a contestant has to get right

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


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


def optimizer_of(model: nn.Module, task: str, **options: Any) -> torch.optim.Optimizer:
    return OPTIMIZERS[task](model.parameters(), lr=RATES[task], **options)


def loop(model: nn.Module, task: str, fused: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The step of a loop as anybody writes it; ``fused``: with torch's fused optimizer."""
    loss, optimizer = nn.CrossEntropyLoss(), optimizer_of(model, task, fused=fused)

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


def eager_fused(problem: Problem, threads: int) -> Contestant:
    model = peers.eager_network(problem)
    return _by_torch("eager-fused", model, problem, partial(loop, fused=True))


def fastmlp(problem: Problem, threads: int) -> Contestant:
    return _by_torch("fastmlp", peers.fastmlp_network(problem), problem)


def compile(problem: Problem, threads: int) -> Contestant:
    return peers.of_one_graph(_by_torch("compile", peers.compiled_network(problem), problem))


def compiled_step(problem: Problem, model: nn.Module, cpp: bool) -> Callable[[Tensor, Tensor], Any]:
    """The step of :func:`loop` as one compiled function: its backward and its update as well.

    ``backward`` and ``Optimizer.step`` break a graph; ``torch.func`` and the functions that the
    optimizers themselves call do not.
    """
    from torch.optim.adam import adam
    from torch.optim.sgd import sgd

    if problem.shape.dropout:
        raise peers.Unsupported("no dropout")
    loss, lr = nn.CrossEntropyLoss(), RATES[problem.task]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    means, squares = ([torch.zeros_like(p) for p in parameters.values()] for _ in range(2))
    counts = [torch.zeros(()) for _ in parameters]

    def step(x: Tensor, y: Tensor) -> Tensor:
        def mean_loss(parameters: dict[str, Tensor]) -> Tensor:
            value: Tensor = loss(torch.func.functional_call(model, parameters, (x,)), y)
            return value

        gradients: dict[str, Tensor]
        value: Tensor
        gradients, value = torch.func.grad_and_value(mean_loss)(parameters)
        values, slopes = [*parameters.values()], [gradients[name] for name in parameters]
        if problem.task == "sgd":
            # foreach: one tensor after the other, torch 2.13 compiles it to wrong numbers.
            sgd(
                values, slopes, [None] * len(values), foreach=True, lr=lr, momentum=0, dampening=0,
                weight_decay=0, nesterov=False, maximize=False,
            )  # fmt: skip
        else:
            # Not foreach, which torch 2.13 cannot compile.
            adam(
                values, slopes, means, squares, [], counts, foreach=False, lr=lr, beta1=BETAS[0],
                beta2=BETAS[1], eps=EPS, weight_decay=0, amsgrad=False, maximize=False,
            )  # fmt: skip
        return value

    return peers.compiled(step, cpp, fullgraph=True)


def compile_step(problem: Problem, threads: int, cpp: bool = False) -> Contestant:
    model = peers.eager_network(problem)
    step = compiled_step(problem, model, cpp)
    name = "compile-step-cpp" if cpp else "compile-step"
    return peers.of_one_graph(
        contestant(name, step, batches(problem), partial(parameters_of, model))
    )


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
    import with_jax

    jax = with_jax.started(threads)
    state, train = with_jax.training(problem, problem.task, RATES[problem.task])
    jitted = jax.jit(train, donate_argnums=0)

    def step(x: Any, y: Any) -> Any:
        nonlocal state
        value, state = jax.block_until_ready(jitted(state, x, y))
        return value

    inputs, labels = ([jax.numpy.asarray(t.numpy()) for t in side] for side in pool(problem))
    return contestant(
        "jax", step, zip(cycle(inputs), cycle(labels)),
        lambda: peers.named(with_jax.arrays(state[0])),
    )  # fmt: skip


def static(problem: Problem, threads: int) -> Contestant:
    import static_c

    library = static_c.library(problem)

    def feed() -> Iterator[tuple[int, int]]:
        tensors = pool(problem)  # must outlive their addresses
        inputs, labels = ([t.data_ptr() for t in side] for side in tensors)
        yield from zip(cycle(inputs), cycle(labels))

    return contestant("c", library.step, feed(), library.parameters)


CONTESTANTS: dict[str, peers.Make] = {
    "train_step": train_step,
    "fastmlp": fastmlp,
    "eager": eager,
    "eager-fused": eager_fused,
    "jax": jax,
    "compile": compile,
    "compile-step": compile_step,
    "compile-step-cpp": partial(compile_step, cpp=True),
    "c": static,
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
    contestants = (
        "train_step",
        "fastmlp",
        "eager",
        "eager-fused",
        "jax",
    )  # torch.compile compiles for minutes
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
