"""The operators beneath: schemas, fakes, torch.compile, torch.export, meta tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from fused import arguments, encode
from layouts import LAYOUTS, Layout
from operators import OPS, backward_arguments, layout_of, lowest_needs
from reference import ACTIVATIONS, Problem
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmlp import FusedLinear, FusedMLP, functional


def problems() -> Iterator[Problem]:
    for hidden in ACTIVATIONS:
        yield Problem.random(4, [5, 6, 3], hidden=hidden, output=hidden)
    yield Problem.random(4, [5, 3])
    yield Problem.random((2, 3), [5, 6, 7, 3], torch.float64, bias=False)
    yield Problem.random((), [5, 6, 3])
    yield Problem.random((2, 0), [5, 6, 3])
    plain = Problem.random(4, [5, 6, 3])
    yield Problem(plain.x, plain.weights, [None, plain.biases[1]], plain.grad_output)
    for layout in ("transposed", "expanded", "offset"):
        x, weights = LAYOUTS[layout](plain.x), [LAYOUTS[layout](w) for w in plain.weights]
        yield Problem(x, weights, plain.biases, LAYOUTS[layout](plain.grad_output))


PROBLEMS = list(problems())


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
@pytest.mark.parametrize("needed", [False, True], ids=["inference", "training"])
def test_opcheck(problem: Problem, needed: bool) -> None:
    torch.library.opcheck(OPS.mlp.default, arguments(problem, needed))


@pytest.mark.sweep
@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_opcheck_beneath(problem: Problem) -> None:
    operands = len(arguments(problem)[1])
    for needs in lowest_needs(operands):
        torch.library.opcheck(OPS.mlp_forward.default, (*arguments(problem), needs))
    has = [True] * (1 + operands)
    torch.library.opcheck(OPS.mlp_backward.default, backward_arguments(problem, has, has))
    last = [i == operands for i in range(1 + operands)]
    torch.library.opcheck(OPS.mlp_backward.default, backward_arguments(problem, has, last))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 1, 3)])
def test_fakes_match(layout: Layout, shape: tuple[int, ...]) -> None:
    """Sizes, strides and offsets of what the fakes say are those of what the kernels give."""
    for activation, output in itertools.product(("relu", "gelu"), (None, "elu")):
        plain = Problem.random(shape, [5, 6, 3], hidden=activation, output=output)
        problem = Problem(
            layout(plain.x), [layout(w) for w in plain.weights], plain.biases,
            layout(plain.grad_output), activation, output,
        )  # fmt: skip
        mode = FakeTensorMode()

        def fake(value: object, mode: FakeTensorMode = mode) -> object:
            if isinstance(value, list):
                return [fake(v) for v in value]
            return mode.from_tensor(value) if isinstance(value, Tensor) else value

        calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            (OPS.mlp, arguments(problem)),
            *((OPS.mlp_forward, (*arguments(problem), needs)) for needs in lowest_needs(4)),
            *(
                (OPS.mlp_backward, backward_arguments(problem, list(needs), list(needs)))
                for needs in itertools.product([False, True], repeat=5)
            ),
        ]
        for op, args in calls:
            real = torch.utils._pytree.tree_leaves(op(*args))
            with mode:
                pretended = torch.utils._pytree.tree_leaves(op(*(fake(a) for a in args)))
            assert [layout_of(t) for t in real] == [layout_of(t) for t in pretended]


def test_fakes_check_sizes() -> None:
    with FakeTensorMode(), pytest.raises((RuntimeError, ValueError)):
        OPS.mlp(torch.empty(4, 6), *encode([torch.empty(3, 5)], [None], ["identity"]))


def test_meta() -> None:
    problem = PROBLEMS[0]
    x, operands, program, constants = arguments(problem)
    y = OPS.mlp(x.to("meta"), [t.to("meta") for t in operands], program, constants)
    assert y.device.type == "meta"
    assert y.shape == (4, 3)


def test_operator_is_differentiable() -> None:
    problem = Problem.random(4, [5, 6, 3])
    args = arguments(problem, needed=True)
    OPS.mlp(*args).sum().backward()
    assert args[0].grad is not None


# torch.compile


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(
    step: Callable[[Tensor], Tensor], model: nn.Module, batches: list[Tensor]
) -> list[Tensor]:
    """Losses and final parameters of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    results = []
    for x in batches:
        optimizer.zero_grad()
        loss = step(x).square().mean()
        loss.backward()
        optimizer.step()
        results.append(loss.detach())
    return results + [p.detach() for p in model.parameters()]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(dynamic: bool, backend: str) -> None:
    model = FusedMLP([6, 8, 7, 5], activation="gelu", output_activation="tanh", dtype=torch.float64)
    twin = FusedMLP([6, 8, 7, 5], activation="gelu", output_activation="tanh", dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    sizes = [4, 9, 16, 33] if dynamic else [9, 9, 9]
    batches = [torch.randn(n, 6, dtype=torch.float64) for n in sizes]
    plain = twin.as_sequential()
    with torch._dynamo.config.patch(error_on_recompile=dynamic):
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
        actual = train(compiled, model, batches)
    expected = train(plain, plain, batches)
    # float64: a few steps of sums of at most a hundred terms, of which Inductor reorders some
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_graph_holds_the_operator() -> None:
    """One operator, not the many that it replaces; the same for the functions."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        graphs.append(graph)
        return graph

    model, layer = FusedMLP([6, 8, 5]), FusedLinear(5, 4)
    weight = torch.randn(3, 4)

    @torch.compile(fullgraph=True, backend=backend)
    def function(x: Tensor) -> Tensor:
        return functional.linear(layer(model(x)), weight, activation="tanh")

    x = torch.randn(9, 6)
    expected = functional.linear(layer(model(x)), weight, activation="tanh")
    assert torch.equal(function(x), expected)
    called = [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]
    assert len(graphs) == 1
    assert sum("fastmlp" in name for name in called) == 3, called


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_with_hooks_and_half() -> None:
    """The plain path compiles, too."""
    model = FusedMLP([6, 8, 5]).to(torch.bfloat16)
    x = torch.randn(9, 6, dtype=torch.bfloat16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    hooked = FusedMLP([6, 8, 5])
    hooked[1].register_forward_hook(lambda m, a, out: 2 * out)
    compiled = torch.compile(hooked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.float()), hooked.as_sequential()(x.float()))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_sees_changes() -> None:
    """A hook or another layer after compilation takes effect, as in eager."""
    model = FusedMLP([6, 8, 5])
    x = torch.randn(9, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    model[1] = nn.Tanh()
    torch.testing.assert_close(compiled(x), model.as_sequential()(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool) -> None:
    model = FusedMLP([6, 8, 5])
    x = torch.randn(9, 6)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x), model(x))
    if dynamic:
        more = torch.randn(17, 6)
        torch.testing.assert_close(program.module()(more), model(more))


def test_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    model = FusedMLP([6, 8, 5])
    x = torch.randn(9, 6)
    graph = make_fx(model)(x)
    torch.testing.assert_close(graph(x), model(x))
