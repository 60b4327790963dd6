"""Every activation by itself: accuracy over the whole range, NaN and inf, names and modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from reference import (
    ACTIVATIONS,
    Activation,
    Results,
    assert_all_within,
    celu,
    differentiate,
    elu,
    exact,
    leaky_relu,
    softplus,
)
from torch import Tensor, nn

from fastmlp import FusedLinear, FusedMLP, TrainStep, functional


def test_names() -> None:
    assert set(functional.ACTIVATIONS) == set(ACTIVATIONS)
    assert isinstance(functional.ACTIVATIONS, tuple)


def numbers(dtype: torch.dtype) -> Tensor:
    """Finite numbers of every size and sign, denormal ones and zeros among them."""
    limit = torch.finfo(dtype)
    low, high = math.log10(limit.smallest_normal * limit.eps), math.log10(limit.max)
    size = 10 ** torch.linspace(low, high - 0.1, 997, dtype=torch.float64)
    usual = torch.linspace(-30, 30, 2999, dtype=torch.float64)
    every = torch.cat([size, -size, usual, torch.zeros(1), -torch.zeros(1)]).to(dtype)
    return every[every.isfinite()]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 17, 64])
def test_accuracy(isa: str, dtype: torch.dtype, name: str, outputs: int) -> None:
    """One input feature and weights of 1: sums are the numbers, errors the activation's own.

    Gradients of the parameters, sums over the numbers, are other tests' matter. gelu in both its
    forms and hardswish take powers or multiples of huge numbers, of which torch makes NaN or
    infinities: test_not_finite has those.
    """
    z = numbers(dtype)
    if name.startswith("gelu") or name == "hardswish":
        z = z[z.abs() < 1e4]
    x = z.unsqueeze(1).requires_grad_()
    y = functional.linear(x, torch.ones(outputs, 1, dtype=dtype), None, name)
    # The gradient of x sums over the outputs, so only one of them gets one.
    g = torch.zeros_like(y)
    g[:, -1] = 1
    y.backward(g)
    assert x.grad is not None
    assert torch.equal(y, y[:, :1].expand_as(y))
    expected = exact(x, [torch.ones(1, 1, dtype=dtype)], [None], [ACTIVATIONS[name]], g[:, -1:])
    assert_all_within(Results(y[:, -1:], x.grad), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_same_for_each_place(isa: str, dtype: torch.dtype, name: str) -> None:
    """A number gives the same result in a vector's lanes and in the remainder of one."""
    z = torch.randn(1, dtype=dtype)
    for batch, outputs in itertools.product((1, 2, 7, 16, 33), (1, 3, 8, 17, 31, 100)):
        weight = torch.ones(outputs, 1, dtype=dtype)
        y = functional.linear(z.expand(batch, 1), weight, None, name)
        assert (y == y[0, 0]).all(), (batch, outputs)


def kinds(t: Tensor) -> list[str]:
    """Of each number: NaN, +inf, -inf or finite."""
    return ["finite" if math.isfinite(v) else str(v) for v in t.flatten().tolist()]


def torchs_own(act: Activation, z: Tensor, g: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Value and derivative by each way that torch has.

    Its vector code, its scalar code for a vector's remainder and oneDNN differ about NaN and inf.
    """
    results = []
    for repeat, onednn in itertools.product((1, 64), (False, True)):
        leaf = z.unsqueeze(1).repeat(1, repeat).requires_grad_()
        with torch.backends.mkldnn.flags(enabled=onednn):
            y = torch.cat([act.eager(row) for row in leaf]) if repeat == 1 else act.eager(leaf)
            y = y.view(len(z), repeat)
            (d,) = torch.autograd.grad(y, leaf, g.unsqueeze(1).expand_as(leaf))
        results.append((y.detach()[:, 0], d[:, 0]))
    return results


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # from torch.backends.mkldnn.flags
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 17, 64])
def test_not_finite(isa: str, dtype: torch.dtype, name: str, outputs: int) -> None:
    """NaN and inf in the sums and in the output's gradient come out as from one of torch's ways."""
    limit = torch.finfo(dtype)
    special = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0, 100.0, -100.0]
    special += [limit.max, -limit.max]
    special += [limit.smallest_normal, -limit.smallest_normal, limit.smallest_normal * limit.eps]
    gradients = [1.0, -2.0, 0.0, math.inf, -math.inf, math.nan]
    z = torch.tensor(special, dtype=dtype).repeat(len(gradients))
    g = torch.tensor(gradients, dtype=dtype).repeat_interleave(len(special))

    x = z.unsqueeze(1).requires_grad_()
    weight = torch.ones(outputs, 1, dtype=dtype)
    y = functional.linear(x, weight, None, name)
    for column in {0, outputs - 1}:
        # NaN everywhere but in one column would be NaN in its sum: take one output at a time.
        (d,) = torch.autograd.grad(
            functional.linear(x, weight[column : column + 1], None, name), x, g.unsqueeze(1)
        )
        allowed = torchs_own(ACTIVATIONS[name], z, g)
        for results, ways, what in (
            (y[:, column], [a[0] for a in allowed], "value"),
            (d, [a[1] for a in allowed], "derivative"),
        ):
            per_way = [kinds(way) for way in ways]
            for i, kind in enumerate(kinds(results)):
                expected = {way[i] for way in per_way}
                where = f"{what} at {z[i]}, gradient {g[i]}"
                assert kind in expected, f"{where}: {kind}, not {expected}"


OTHER_SLOPES = {
    "leaky_relu(0.3)": leaky_relu(0.3),
    "leaky_relu(0)": leaky_relu(0.0),
    "leaky_relu(3)": leaky_relu(3.0),
    "leaky_relu(-0.5)": leaky_relu(-0.5),  # the result's sign does not tell the sum's
    "elu(0.7)": elu(0.7),
    "elu(2)": elu(2.0),
    "elu(-0.5)": elu(-0.5),
    "elu(0)": elu(0.0),
    "softplus(2, 1)": softplus(2.0, 1.0),
    "softplus(0.5, 30)": softplus(0.5, 30.0),
    "celu(0.25)": celu(0.25),  # torch rounds 1 / alpha to float32 on the way back
    "celu(2)": celu(2.0),
}


@pytest.mark.parametrize("act", OTHER_SLOPES.values(), ids=OTHER_SLOPES)
def test_other_slopes(act: Activation, dtype: torch.dtype) -> None:
    module = act.module()
    model = FusedMLP([20, 18, 17], activation=module, output_activation=module, dtype=dtype)
    linears = [model[0], model[2]]
    x, g = torch.randn(33, 20, dtype=dtype), torch.randn(33, 17, dtype=dtype)
    weights, biases = [m.weight for m in linears], [m.bias for m in linears]
    expected = exact(x, weights, biases, [act, act], g)
    for network in (model, model.as_sequential()):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        grads = torch.autograd.grad(y, [leaf, *weights, *biases], g)
        assert_all_within(Results(y, grads[0], grads[1:3], grads[3:]), expected)


@pytest.mark.parametrize(
    "act",
    [leaky_relu(0.3), elu(0.7), softplus(2.0, 1.0), celu(0.25)],
    ids=["leaky_relu", "elu", "softplus", "celu"],
)
def test_other_slopes_stay_fused(isa: str, act: Activation, dtype: torch.dtype) -> None:
    model = FusedMLP([20, 18, 17], activation=act.module(), dtype=dtype)
    assert model.why_plain(torch.randn(33, 20, dtype=dtype)) is None
    model(torch.randn(33, 20, dtype=dtype))


def test_a_celu_that_divides_by_zero_is_torchs_matter() -> None:
    celu = nn.CELU()
    celu.alpha = 0.0
    model = FusedMLP.from_sequential(nn.Sequential(nn.Linear(3, 2), celu))
    x = torch.randn(4, 3)
    assert model.why_plain(x) is not None
    with pytest.raises(RuntimeError, match="alpha cannot be 0"):
        model(x)
    weight = torch.randn(2, 3)
    program = [0, 0, 1, functional.ACTIVATIONS.index("celu")]
    with pytest.raises(RuntimeError, match="that celu does not take"):
        torch.ops.fastmlp.mlp(x, [weight], program, [0.0])


def test_the_bounds_of_a_relu6_may_be_set(isa: str, dtype: torch.dtype) -> None:
    """It is a Hardtanh."""
    model = FusedMLP([5, 64, 3], activation="relu6", dtype=dtype)
    model[1].min_val, model[1].max_val = -0.25, 0.5
    x = torch.randn(17, 5, dtype=dtype)
    assert model.why_plain(x) is None
    y = nn.Hardtanh(-0.25, 0.5)(model[0](x))
    torch.testing.assert_close(model(x), model[2](y))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (nn.ReLU6(), "min_val", 7.0),
        (nn.Softplus(), "beta", "2"),
        (nn.Softplus(), "beta", torch.nn.Parameter(torch.tensor(2.0))),
    ],
)
def test_parameters_that_torch_refuses_or_differentiates_run_plain(
    module: nn.Module, name: str, value: object
) -> None:
    if isinstance(value, nn.Parameter):
        setattr(module, name, value)
    else:
        module.__dict__[name] = value
    model = FusedMLP.from_sequential(nn.Sequential(nn.Linear(3, 2), module))
    x = torch.randn(4, 3)
    assert model.why_plain(x) is not None

    def outcome(network: nn.Module) -> str:
        try:
            return str(network(x))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    assert outcome(model) == outcome(model.as_sequential())
    with pytest.raises(ValueError, match="module 1"):
        TrainStep(model, nn.MSELoss(), torch.optim.SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_modules_by_name(name: str, dtype: torch.dtype) -> None:
    expected = ACTIVATIONS[name].module()
    model = FusedMLP([5, 6, 7, 3], activation=name, output_activation=name, dtype=dtype)
    assert [repr(m) for m in model] == [
        repr(m)
        for m in nn.Sequential(
            nn.Linear(5, 6), expected, nn.Linear(6, 7), expected, nn.Linear(7, 3), expected
        )
    ]
    assert model.why_plain(torch.randn(2, 5, dtype=dtype)) is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_modules_by_example(isa: str, name: str, dtype: torch.dtype) -> None:
    module = ACTIVATIONS[name].module()
    model = FusedMLP([5, 6, 3], activation=module, output_activation=module, dtype=dtype)
    named = FusedMLP([5, 6, 3], activation=name, output_activation=name, dtype=dtype)
    named.load_state_dict(model.state_dict())
    x = torch.randn(4, 5, dtype=dtype)
    assert torch.equal(model(x), named(x))
    assert model[1] is not module  # a copy for each place, as names give one


def test_activation_may_be_left_out(isa: str) -> None:
    model = FusedMLP([5, 6, 3], activation=None)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    x = torch.randn(4, 5)
    a, b = model[0], model[1]
    both = differentiate(
        lambda x, w, biases: functional.mlp(x, w, biases, None),
        x, [a.weight, b.weight], [a.bias, b.bias], torch.ones(4, 3),
    )  # fmt: skip
    assert torch.equal(model(x), both.y)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: FusedMLP([5, 3, 2], activation=name),
        lambda name: FusedMLP([5, 3, 2], output_activation=name),
        lambda name: FusedLinear(5, 3, activation=name),
        lambda name: functional.linear(torch.randn(2, 5), torch.randn(3, 5), activation=name),
        lambda name: functional.mlp(torch.randn(2, 5), [torch.randn(3, 5)], None, name),
    ],
    ids=["hidden", "output", "FusedLinear", "linear", "mlp"],
)
def test_unknown_activation(make: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"gelu_tanh.*swish2"):  # names the known ones
        make("swish2")
