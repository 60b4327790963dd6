"""The one autograd node behaves as the many that it stands for."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.utils.checkpoint
from fused import check, mlp
from graphs import apply, function, is_modified, kept_bytes, leaves, outcome
from reference import ACTIVATIONS, Network, Problem, eager
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from fastmlp import FusedMLP


def both(problem: Problem) -> Iterator[tuple[str, Network]]:
    """The fused network and torch's, to compare their behaviour."""
    yield "fused", mlp(problem)
    yield "eager", eager(problem.activations)


# Derivatives


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(isa: str, name: str, bias: bool) -> None:
    # gradcheck steps by 1e-6: none of these few sums is that near a kink.
    problem = Problem.random(3, [4, 5, 3], torch.float64, hidden=name, output=name, bias=bias)
    assert gradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradgradcheck(isa: str, name: str, bias: bool) -> None:
    problem = Problem.random(3, [4, 3, 2], torch.float64, hidden=name, output=name, bias=bias)
    assert gradgradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=5))[1:], ids=str)
def test_gradgradcheck_of_some(needed: tuple[bool, ...]) -> None:
    problem = Problem.random(2, [3, 4, 2], torch.float64, hidden="tanh")
    given = leaves(problem, needed)
    assert gradcheck(function(problem), given)
    assert gradgradcheck(function(problem), given)


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (1,)])
def test_gradgradcheck_of_ranks(shape: tuple[int, ...]) -> None:
    problem = Problem.random(shape, [3, 4, 2], torch.float64, hidden="tanh")
    assert gradgradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("sizes", [[0, 3, 2], [3, 0, 2], [3, 2, 0]], ids=str)
def test_second_derivative_of_nothing(sizes: list[int]) -> None:
    problem = Problem.random(2, sizes, torch.float64, hidden="tanh")
    given = leaves(problem)
    y = function(problem)(*given)
    grads = torch.autograd.grad(y.sum(), given, create_graph=True)
    for grad, leaf in zip(grads, given, strict=True):
        assert grad.shape == leaf.shape
    if any(g.requires_grad for g in grads):
        sum(g.sum() for g in grads).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_is_the_same_under_create_graph(name: str) -> None:
    problem = Problem.random(9, [5, 8, 3], torch.float64, hidden=name, output=name)
    given = leaves(problem)
    y = function(problem)(*given)
    once = torch.autograd.grad(y, given, problem.grad_output, retain_graph=True)
    twice = torch.autograd.grad(y, given, problem.grad_output, create_graph=True)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)


def test_gradient_penalty() -> None:
    """A use of second derivatives: a penalty on the input's gradient, trained through."""
    model = FusedMLP([5, 8, 1], activation="silu", dtype=torch.float64)
    x = torch.randn(7, 5, dtype=torch.float64)
    results = []
    for network in (model, model.as_sequential()):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        results.append(torch.autograd.grad(penalty, list(model.parameters())[:-1]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_third_derivative() -> None:
    problem = Problem.random(2, [2, 3, 1], torch.float64, hidden="tanh")
    values = []
    for _, network in both(problem):
        given = leaves(problem)
        out = apply(network, given, 2).sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(out, given[0], create_graph=True)
            out = slope.sum()
        values.append(out)
    torch.testing.assert_close(values[0], values[1])


# Graphs


def test_two_backwards_add_up(isa: str) -> None:
    problem = Problem.random(9, [5, 8, 3])
    given = leaves(problem)
    network = function(problem)
    network(*given).backward(problem.grad_output)
    first = [t.grad.clone() for t in given if t.grad is not None]
    network(*given).backward(problem.grad_output)
    for leaf, grad in zip(given, first, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, 2 * grad)


def test_accumulation_does_not_alias(isa: str) -> None:
    """.grad belongs to its leaf alone: changing one changes no other, nor the next backward's."""
    problem = Problem.random(9, [5, 8, 3])
    given = leaves(problem)
    function(problem)(*given).backward(problem.grad_output)
    kept = [t.grad.clone() for t in given if t.grad is not None]
    for i, leaf in enumerate(given):
        assert leaf.grad is not None
        leaf.grad.fill_(torch.nan)
        for other, grad in zip(given[i + 1 :], kept[i + 1 :], strict=True):
            assert other.grad is not None
            assert torch.equal(other.grad, grad)
    again = leaves(problem)
    function(problem)(*again).backward(problem.grad_output)
    for leaf, grad in zip(again, kept, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, grad)


def test_retain_graph(isa: str) -> None:
    problem = Problem.random(9, [5, 8, 3], hidden="gelu", output="tanh")
    given = leaves(problem)
    y = function(problem)(*given)
    first = torch.autograd.grad(y, given, problem.grad_output, retain_graph=True)
    second = torch.autograd.grad(y, given, problem.grad_output)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, given, problem.grad_output)


@pytest.mark.parametrize("sizes", [[5, 3], [5, 8, 3]])
@pytest.mark.parametrize("output", [None, "relu"])
def test_second_backward_is_torchs_error(sizes: list[int], output: str | None) -> None:
    problem = Problem.random(9, sizes, output=output)
    for _, network in both(problem):
        given = leaves(problem)
        y = apply(network, given, len(sizes) - 1)
        y.backward(problem.grad_output)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward(problem.grad_output)


def test_one_node() -> None:
    given = leaves(Problem.random(9, [5, 8, 7, 3]))
    y = apply(mlp(Problem.random(9, [5, 8, 7, 3])), given, 3)
    assert y.grad_fn is not None
    following = [f for f, _ in y.grad_fn.next_functions if f is not None]
    assert {type(f).__name__ for f in following} == {"AccumulateGrad"}
    assert y.is_leaf is False


def test_no_grad_and_inference_mode(isa: str) -> None:
    problem = Problem.random(9, [5, 8, 3])
    network = function(problem)
    given = leaves(problem)
    expected = network(*given).detach()
    with torch.no_grad():
        y = network(*given)
    assert not y.requires_grad
    assert torch.equal(y, expected)
    with torch.inference_mode():
        y = network(*given)
    assert y.is_inference()
    assert not y.requires_grad
    assert torch.equal(y, expected)
    with torch.inference_mode():
        tensors = [t.clone() for t in given]
        assert torch.equal(network(*tensors), expected)
    assert torch.equal(network(*tensors), expected)  # inference tensors outside of the mode


def test_inference_tensor_under_grad_mode() -> None:
    """An inference tensor may not be saved for backward: torch's error, where torch gives it."""
    problem = Problem.random(9, [5, 8, 3])
    with torch.inference_mode():
        x = problem.x.clone()
    for needed in itertools.product([False, True], repeat=4):
        outcomes = []
        for _, network in both(problem):
            given = [x, *leaves(problem, (False, *needed))[1:]]
            try:
                y = apply(network, given, 2)
                if y.requires_grad:
                    y.sum().backward()
                outcomes.append("")
            except RuntimeError as error:
                outcomes.append(str(error).split(".")[0])
        assert outcomes[0] == outcomes[1], needed


def test_requires_grad_of_the_output() -> None:
    problem = Problem.random(9, [5, 8, 3])
    for needed in itertools.product([False, True], repeat=5):
        y = function(problem)(*leaves(problem, needed))
        assert y.requires_grad == any(needed)


def test_anomaly_mode() -> None:
    problem = Problem.random(9, [5, 8, 3])
    expected = problem.run(mlp(problem)).named()
    with torch.autograd.detect_anomaly():
        actual = problem.run(mlp(problem)).named()
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.mark.filterwarnings("ignore:Error detected")
def test_anomaly_mode_finds_nan() -> None:
    problem = Problem.random(9, [5, 8, 3])
    x = leaves(problem)
    x[0].data[0, 0] = torch.nan
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="returned nan values"):
        function(problem)(*x).sum().backward()


def test_frozen_layers() -> None:
    """A frozen first half, a frozen last half, frozen weights, frozen biases: as in eager."""
    for frozen in (["0"], ["4"], ["0", "2"], ["2"], ["weight"], ["bias"], ["0.bias", "2.weight"]):
        model = FusedMLP([6, 7, 8, 5])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(f in name for f in frozen))
        x, g = torch.randn(9, 6), torch.randn(9, 5)
        model(x).backward(g)
        got = {n: p.grad for n, p in model.named_parameters()}
        model.zero_grad()
        model.as_sequential()(x).backward(g)
        for name, parameter in model.named_parameters():
            grad = got[name]
            assert (grad is None) == (parameter.grad is None) == (not parameter.requires_grad)
            if grad is not None:
                torch.testing.assert_close(grad, parameter.grad)


def test_gradient_is_not_materialised_for_unused_output() -> None:
    problem = Problem.random(9, [5, 8, 3])
    given = leaves(problem)
    y = function(problem)(*given)
    (other,) = torch.autograd.grad((0 * given[0]).sum() + y.sum() * 0, given[0])
    assert torch.equal(other, torch.zeros_like(other))


def test_part_of_the_output() -> None:
    """Slices, sums, views of the output feed backward with gradients of odd layouts."""
    problem = Problem.random((4, 6), [5, 8, 3], torch.float64)
    parts: list[Callable[[Tensor], Tensor]] = [
        lambda y: y.sum(),
        lambda y: y[1].sum(),
        lambda y: y[..., 0].sum(),
        lambda y: y.transpose(0, 2).reshape(-1)[::2].sum(),
        lambda y: y.mean(dim=0).square().sum(),
        lambda y: y.view(-1)[5] * 2,
        lambda y: (y.mT @ y).sum(),
    ]
    for i, part in enumerate(parts):
        grads = []
        for _, network in both(problem):
            given = leaves(problem)
            grads.append(torch.autograd.grad(part(apply(network, given, 2)), given))
        torch.testing.assert_close(grads[0], grads[1], msg=f"part {i}")


def test_leaf_hooks_and_retain_grad() -> None:
    problem = Problem.random(9, [5, 8, 3])
    given = leaves(problem)
    seen: list[str] = []
    given[1].register_hook(lambda g: 2 * g)
    given[2].register_post_accumulate_grad_hook(lambda t: seen.append("accumulated"))
    y = function(problem)(*given)
    y.retain_grad()
    y.register_hook(lambda g: seen.append("output"))
    y.backward(problem.grad_output)
    expected = problem.run(mlp(problem))
    weight = expected.weights[0]
    assert weight is not None
    assert given[1].grad is not None
    assert torch.equal(given[1].grad, 2 * weight)
    assert y.grad is not None
    assert torch.equal(y.grad, problem.grad_output)
    assert seen == ["output", "accumulated"]


def test_input_that_is_computed() -> None:
    """Between two other layers, as anywhere in a graph."""
    problem = Problem.random(9, [5, 8, 3])
    grads = []
    for _, network in both(problem):
        torch.manual_seed(3)
        before, after = nn.Linear(4, 5), nn.Linear(3, 2)
        given = leaves(problem)
        x = torch.randn(9, 4)
        after(apply(network, [before(x), *given[1:]], 2).relu()).sum().backward()
        grads.append([p.grad for p in (*before.parameters(), *after.parameters(), *given[1:])])
    torch.testing.assert_close(grads[0], grads[1])


def test_backward_by_inputs() -> None:
    problem = Problem.random(9, [5, 8, 3])
    given = leaves(problem)
    function(problem)(*given).backward(problem.grad_output, inputs=[given[1]])
    assert given[1].grad is not None
    assert all(t.grad is None for t in [given[0], *given[2:]])


# Tensors modified in place


@pytest.mark.parametrize("output", [None, *ACTIVATIONS])
def test_modified_in_place(output: str | None) -> None:
    """torch's own error where torch gives it; none, but the right numbers, where it gives none."""
    problem = Problem.random(4, [3, 5, 2], hidden="tanh", output=output)
    # Of everything, nothing but the input, the parameters, one of them, all but one of them.
    combinations = {(True,) * 5, (True, *(False,) * 4), (False, *(True,) * 4)}
    combinations |= {tuple(i == j for i in range(5)) for j in range(5)}
    combinations |= {tuple(i != j for i in range(5)) for j in range(5)}
    for needed in sorted(combinations):
        for which in range(-1, 5):
            fused, grads = outcome(mlp(problem), problem, needed, which)
            plain, expected = outcome(eager(problem.activations), problem, needed, which)
            assert fused == plain, f"needed {needed}, modified {which}"
            for a, b in zip(grads, expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("hidden", ["relu", "gelu"])
def test_modified_before_a_second_derivative(hidden: str) -> None:
    """With create_graph, too, a modified tensor that the numbers depend on is an error."""
    problem = Problem.random(4, [3, 5, 2], torch.float64, hidden=hidden)
    for which in range(3):
        for needed in ((True,) * 5, (False, *(True,) * 4), (True, *(False,) * 4)):
            outcomes = []
            for _, network in both(problem):
                given = leaves(problem, needed)
                wanted = [t for t in given if t.requires_grad]
                y = apply(network, given, 2)
                with torch.no_grad():
                    given[which].add_(1)
                try:
                    grads = torch.autograd.grad(y, wanted, problem.grad_output, create_graph=True)
                    outcomes.append(grads)
                except RuntimeError as error:
                    outcomes.append(None if is_modified(error) else ())
            if outcomes[1] is None:
                assert outcomes[0] is None, (which, needed)
            elif outcomes[0] is not None:  # an error, where eager needs none, is right, too
                torch.testing.assert_close(outcomes[0], outcomes[1])


def test_step_between_forward_and_backward() -> None:
    """SGD changes a first layer's weight, which backward does not need: no error, as in eager."""
    for sizes in ([6, 5], [6, 8, 5]):
        outcomes = []
        for fused in (True, False):
            model = FusedMLP(sizes)
            network = model if fused else model.as_sequential()
            x = torch.randn(9, 6)
            y1, y2 = network(x).sum(), network(x).square().sum()
            y1.backward()
            torch.optim.SGD(model.parameters(), 0.1).step()
            try:
                y2.backward()
                outcomes.append("")
            except RuntimeError as error:
                outcomes.append("modified" if is_modified(error) else "")
        assert outcomes[0] == outcomes[1] == ("" if len(sizes) == 2 else "modified")


def test_output_may_be_modified() -> None:
    """The output of a network that ends in a sum is the caller's."""
    model = FusedMLP([6, 8, 5])
    x = torch.randn(9, 6)
    y = model(x)
    y += 1
    y.mul_(2)
    y.sum().backward()
    grad = model[0].weight.grad
    model.zero_grad()
    (2 * (model(x) + 1)).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, grad)


def test_in_place_activation_of_the_output() -> None:
    model = FusedMLP([6, 8, 5])
    x = torch.linspace(-1, 1, 54).view(9, 6)
    results = []
    for network in (model, model.as_sequential()):
        y = torch.relu_(network(x))
        results.append(torch.autograd.grad(y.sum(), list(model.parameters())))
    torch.testing.assert_close(results[0], results[1])


# What is kept for backward


@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("output", [None, "relu", "gelu"])
def test_kept_memory_is_at_most_eagers(hidden: str, output: str | None) -> None:
    problem = Problem.random(32, [40, 50, 30, 20], hidden=hidden, output=output)
    for needed in (
        (True,) * 7,
        (False, *(True,) * 6),
        (True, *(False,) * 6),
        (False, False, True, True, False, True, True),
        (False, False, False, True, False, False, True),
        (False, *(False,) * 3, *(True,) * 3),
        (False,) * 7,
    ):
        fused = kept_bytes(mlp(problem), problem, needed)
        plain = kept_bytes(eager(problem.activations), problem, needed)
        assert fused <= plain, needed


def test_saved_tensors_go_through_hooks() -> None:
    """As with torch.autograd.graph.save_on_cpu: backward reads what unpack gives, nothing else."""
    problem = Problem.random(9, [5, 8, 3], hidden="gelu", output="tanh")
    expected = problem.run(mlp(problem)).named()
    store: dict[int, Tensor] = {}

    def pack(t: Tensor) -> int:
        store[len(store)] = t.clone()
        return len(store) - 1

    given = leaves(problem)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: store.pop(i)):
        y = function(problem)(*given)
    assert store
    y.backward(problem.grad_output)
    assert not store
    for leaf, name in zip(given, ("dx", "dW0", "dW1", "db0", "db1"), strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, expected[name])


def test_save_on_cpu_and_disable_hooks() -> None:
    problem = Problem.random(9, [5, 8, 3])
    expected = problem.run(mlp(problem)).named()
    with torch.autograd.graph.save_on_cpu():
        actual = problem.run(mlp(problem)).named()
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.mark.parametrize("output", [None, "tanh", "gelu"])
@pytest.mark.parametrize(
    "needed",
    [(True,) * 5, (True, False, True, True, True), (True, *(False,) * 4)],
    ids=["all", "first weight frozen", "input only"],
)
def test_input_lives_no_longer_than_in_eager(output: str | None, needed: tuple[bool, ...]) -> None:
    """Neither a cycle nor a needless reference keeps the caller's activations alive."""
    problem = Problem.random(9, [5, 8, 3], output=output)

    def life(network: Network) -> list[bool]:
        given = leaves(problem, needed)
        given[0] = given[0] * 1  # an activation, which the graph alone can keep alive
        memory = weakref.ref(given[0].untyped_storage())
        tensor = weakref.ref(given[0])
        y = apply(network, given, 2)
        result = weakref.ref(y)
        given.clear()
        alive = [tensor() is not None or memory() is not None]
        y.backward(problem.grad_output)
        alive.append(tensor() is not None)
        del y
        return [*alive, tensor() is not None, result() is not None]

    gc.disable()
    try:
        fused, plain = life(mlp(problem)), life(eager(problem.activations))
    finally:
        gc.enable()
    if needed[1]:  # where the first weight is frozen, the input stays for second derivatives
        assert not any(f and not p for f, p in zip(fused, plain, strict=True)), (fused, plain)
    assert not any(fused[2:])


def test_checkpoint() -> None:
    model = FusedMLP([6, 8, 5])
    x = torch.randn(9, 6, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(x).sum().backward()
    for a, b in zip(grads, model.parameters(), strict=True):
        assert b.grad is not None
        assert torch.equal(a, b.grad)


def test_default_gradient_layout(isa: str) -> None:
    """Gradients are laid out as eager's: optimizers that look at strides see nothing new."""
    problem = Problem.random(9, [5, 8, 3])
    fused, plain = check(problem).named(), problem.eager().named()
    for name, tensor in plain.items():
        assert fused[name].stride() == tensor.contiguous().stride(), name
