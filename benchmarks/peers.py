"""The contestants: the same network, weights and input in every library that is installed.

Each gets what suits it best. JAX: its own weight layout, one compiled function, synchronous calls.
ONNX Runtime: constant weights, which it may pack beforehand, and workers that spin.

Names with the same first word, like "compile" and "compile-cpp", are variants of one contestant:
the fastest of them counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import inputs
import numpy as np
import torch
from shapes import Shape
from torch import Tensor, nn

# By name: "y" the output; "dW0", "db0", ... the gradients of each layer's weight (out, in) and bias
# (out,). A step has no "y", and weight and bias after the update in the place of their gradients.
Results = dict[str, np.ndarray[Any, Any]]
LEARNING_RATE = 0.01
RATES = {"sgd": 0.01, "adam": 0.001}  # of the steps whose task is an optimizer
BETAS, EPS = (0.9, 0.999), 1e-8  # torch.optim.Adam's defaults


class Unsupported(Exception):
    """This contestant cannot do this task."""


class NotAsNamed(Exception):
    """This contestant does not do what its name says, whatever it computes."""


@dataclass(frozen=True)
class Problem:
    """A shape filled with numbers, float32, the same in every run.

    Attributes:
        data_dir: the folder of MNIST, for the shapes whose input is made of it; None: a stand-in.
    """

    shape: Shape
    task: str
    data_dir: str | None = None

    def network(self) -> nn.Sequential:
        """A new plain network, with the same weights each time."""
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(0)
        if self.shape.options:
            from fastmlp import FusedMLP  # not above: earlier versions know no options

            network = FusedMLP(list(self.shape.sizes), **self.shape.options).as_sequential()
        else:
            layers: list[nn.Module] = []
            for m, n in pairwise(self.shape.sizes):
                layers += [nn.Linear(m, n), nn.ReLU()]
            network = nn.Sequential(*layers[:-1])
        torch.random.set_rng_state(generator_state)
        return network

    def parameters(self) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Weight (out, in) and bias (out,) of each layer."""
        values = [p.detach().numpy() for p in self.network().parameters()]
        return list(zip(values[::2], values[1::2], strict=True))

    def draw(self, generator: torch.Generator) -> Tensor:
        """An input (batch, in)."""
        return inputs.draw(self.shape, generator, self.data_dir)

    @cached_property
    def x(self) -> Tensor:
        """The input (batch, in)."""
        return self.draw(torch.Generator().manual_seed(1))

    @cached_property
    def grad(self) -> Tensor:
        """The gradient (batch, out) that backward starts from."""
        generator = torch.Generator().manual_seed(2)
        return torch.randn(self.shape.batch, self.shape.sizes[-1], generator=generator)

    @cached_property
    def labels(self) -> Tensor:
        """The classes (batch,) that a step trains towards."""
        generator = torch.Generator().manual_seed(3)
        return torch.randint(self.shape.sizes[-1], (self.shape.batch,), generator=generator)


@dataclass(frozen=True)
class Contestant:
    """A library at work on a problem.

    Attributes:
        run: one call, as timed.
        results: one call and what it computed; to be called first, as a step moves the weights.
        repeats: how often one call does the task; the times reported are of once.
    """

    name: str
    run: Callable[[], object]
    results: Callable[[], Results]
    repeats: int = 1


def named(arrays: list[np.ndarray[Any, Any]]) -> Results:
    """Weight and bias of each layer in turn, under their names."""
    return {f"{('dW', 'db')[i % 2]}{i // 2}": a for i, a in enumerate(arrays)}


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """For what is compared: not everyone draws torch's masks."""
    training = model.training
    model.eval()
    yield
    model.train(training)


def _torch_contestant(name: str, model: nn.Module, problem: Problem) -> Contestant:
    model.train(problem.task != "forward")
    x, grad, labels = problem.x, problem.grad, problem.labels
    params = list(model.parameters())
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(params, lr=LEARNING_RATE)

    def forward() -> Tensor:
        y: Tensor = model(x)
        return y

    def forward_backward() -> Tensor:
        for p in params:
            p.grad = None
        y: Tensor = model(x)
        y.backward(grad)
        return y

    def step() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(model(x), labels)
        value.backward()
        optimizer.step()
        return value

    run = {"forward": forward, "forward+backward": forward_backward, "step": step}[problem.task]

    def results() -> Results:
        with without_dropout(model):
            out = run().detach().numpy()
        if problem.task == "forward":
            return {"y": out}
        if problem.task == "step":
            return named([p.detach().numpy().copy() for p in params])
        return {"y": out} | named([p.grad.numpy().copy() for p in params if p.grad is not None])

    return Contestant(name, run, results)


def eager_network(problem: Problem) -> nn.Module:
    return problem.network()


def fastmlp_network(problem: Problem) -> nn.Module:
    from fastmlp import FusedMLP

    model = FusedMLP(list(problem.shape.sizes), **problem.shape.options)
    model.load_state_dict(problem.network().state_dict())
    return model


def compiled(function: Callable[..., Any], cpp: bool = False, **options: Any) -> Callable[..., Any]:
    """``torch.compile(function)``; ``cpp``: its kernels called from C++ instead of Python.

    Raises:
        Unsupported: there is no compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise Unsupported("no C++ compiler") from None
    wrapper: Any = {"cpp_wrapper": True} if cpp else None
    result: Callable[..., Any] = torch.compile(function, options=wrapper, **options)
    return result


def of_one_graph(contestant: Contestant) -> Contestant:
    """The same; its results raise NotAsNamed unless the compiler made one graph of everything."""

    from torch._dynamo.exc import TorchDynamoException
    from torch._dynamo.utils import counters

    def results() -> Results:
        counters.clear()
        try:
            found = contestant.results()
        except TorchDynamoException as error:
            raise NotAsNamed(f"not compiled: {str(error).splitlines()[0]}") from error
        graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"].total()
        if graphs != 1 or breaks:
            raise NotAsNamed(f"{graphs} graphs compiled, with {breaks} breaks, expected one")
        return found

    return replace(contestant, results=results)


def compiled_network(problem: Problem, cpp: bool = False) -> nn.Module:
    # Not by Module.compile: Dynamo skips Sequential's own forward, and would compile nothing.
    model = compiled(problem.network(), cpp)
    assert isinstance(model, nn.Module)
    return model


def eager(problem: Problem, threads: int) -> Contestant:
    return _torch_contestant("eager", eager_network(problem), problem)


def fastmlp(problem: Problem, threads: int) -> Contestant:
    return _torch_contestant("fastmlp", fastmlp_network(problem), problem)


def compile(problem: Problem, threads: int, cpp: bool = False) -> Contestant:
    model = compiled_network(problem, cpp)
    return of_one_graph(_torch_contestant("compile-cpp" if cpp else "compile", model, problem))


def static(problem: Problem, threads: int) -> Contestant:
    if problem.task != "forward":
        raise Unsupported("forward only")
    import static_c

    library, x = static_c.library(problem), problem.x.data_ptr()
    y = (problem.shape.batch, problem.shape.sizes[-1])

    def results() -> Results:
        return {"y": static_c.view(library.forward(x), y).copy()}

    return Contestant("c", partial(library.forward, x), results)


def jax(problem: Problem, threads: int) -> Contestant:
    if problem.shape.dropout and problem.task != "forward":
        raise Unsupported("no dropout")
    import with_jax

    jax = with_jax.started(threads)
    x, grad, labels = (
        jax.numpy.asarray(t.numpy()) for t in (problem.x, problem.grad, problem.labels)
    )
    network, params = with_jax.network(problem), with_jax.parameters(problem)

    def forward_backward(params: Any, x: Any, grad: Any) -> Any:
        y, backward = jax.vjp(lambda p: network(p, x), params)
        return y, backward(grad)[0]

    if problem.task == "step":
        state, step = with_jax.training(problem, "sgd", LEARNING_RATE)
        jitted_step = jax.jit(step, donate_argnums=0)

        def run() -> Any:
            nonlocal state
            value, state = jax.block_until_ready(jitted_step(state, x, labels))
            return value, state[0]
    else:
        function = jax.jit(network if problem.task == "forward" else forward_backward)
        args = (params, x) if problem.task == "forward" else (params, x, grad)

        def run() -> Any:
            return jax.block_until_ready(function(*args))

    def results() -> Results:
        out = run()
        if problem.task == "forward":
            return {"y": np.array(out)}
        found = named(with_jax.arrays(out[1]))
        return found if problem.task == "step" else {"y": np.array(out[0])} | found

    return Contestant("jax", run, results)


def onnxruntime(problem: Problem, threads: int) -> Contestant:
    if problem.task != "forward":
        raise Unsupported("forward only")
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, last = [], [], len(problem.shape.sizes) - 2
    for i, (w, b) in enumerate(problem.parameters()):
        constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        x = "x" if i == 0 else f"h{i}"
        inputs = [x, f"w{i}", f"b{i}"]
        nodes.append(helper.make_node("Gemm", inputs, ["y" if i == last else f"z{i}"], transB=1))
        if i < last:
            skip = problem.shape.skips[i]
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"{'r' if skip else 'h'}{i + 1}"]))
            if skip:
                nodes.append(helper.make_node("Add", [x, f"r{i + 1}"], [f"h{i + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (problem.shape.batch, features))
        for name, features in (("x", problem.shape.sizes[0]), ("y", problem.shape.sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    rows = problem.x.numpy()

    def run() -> Any:
        return session.run(None, {"x": rows})

    return Contestant("onnxruntime", run, lambda: {"y": run()[0]})


Make = Callable[[Problem, int], Contestant]  # from a problem and a number of threads
PEERS: dict[str, Make] = {
    "fastmlp": fastmlp,
    "eager": eager,
    "compile": compile,
    "compile-cpp": partial(compile, cpp=True),
    "jax": jax,
    "onnxruntime": onnxruntime,
    "c": static,
}


def contestants(
    names: list[str], known: Mapping[str, Make], problem: Problem, threads: int
) -> Iterator[Contestant]:
    """Those of ``names``, all ``known``, that can run here; a line tells why another cannot."""
    if "torch._dynamo" in sys.modules:  # a compile per problem, none made dynamic by another's
        torch._dynamo.reset()
    for name in names:
        try:
            yield known[name](problem, threads)
        except (ImportError, Unsupported) as reason:
            print(f"skipped {name}, {problem.task} of {problem.shape.name}: {reason}", flush=True)
