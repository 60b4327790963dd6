"""Wrong input raises what nn.Linear raises, and says what was given and what expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import output
from torch import Tensor, nn

from fastmlp import FusedLinear, FusedMLP, functional


def error_of(call: Callable[[], Any]) -> Exception:
    try:
        result = call()
    except Exception as error:
        return error
    pytest.fail(f"no error, but {result}")


def assert_same(fused: Callable[[], Any], plain: Callable[[], Any], *numbers: int) -> None:
    """Both raise, the same type; the fused one's message holds the sizes given and expected."""
    expected, actual = error_of(plain), error_of(fused)
    assert type(actual) is type(expected), f"{actual!r}, not {expected!r}"
    found = [int(n) for n in re.findall(r"\d+", str(actual))]
    for number in numbers:
        assert number in found, str(actual)


SHAPES = [(4, 11), (11,), (2, 3, 11), (0, 11), (4, 0), (1,), (13, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("needed", [False, True])
def test_wrong_features(shape: tuple[int, ...], needed: bool) -> None:
    x = torch.randn(shape, requires_grad=needed)
    model, layer = FusedMLP([13, 9, 5]), FusedLinear(13, 9)
    assert_same(lambda: model(x), lambda: model.as_sequential()(x), 13, *shape)
    assert_same(lambda: layer(x), lambda: F.linear(x, layer.weight, layer.bias), 13, *shape)


def test_no_dimensions() -> None:
    model = FusedMLP([13, 9, 5])
    assert_same(lambda: model(torch.tensor(1.0)), lambda: model.as_sequential()(torch.tensor(1.0)))


@pytest.mark.parametrize(
    "value",
    [None, [1.0] * 13, 1.0, "x", torch.randn(4, 13).numpy(), (1,)],
    ids=lambda v: type(v).__name__,
)
def test_not_a_tensor(value: Any) -> None:
    model, layer = FusedMLP([13, 9, 5]), FusedLinear(13, 9)
    plain = model.as_sequential()
    assert_same(lambda: model(value), lambda: plain(value))
    assert_same(lambda: layer(value), lambda: plain(value))
    assert_same(lambda: functional.linear(value, torch.randn(9, 13)), lambda: plain(value))
    assert_same(
        lambda: functional.mlp(torch.randn(4, 13), [value]),
        lambda: F.linear(torch.randn(4, 13), value),
    )
    if value is not None:
        assert_same(
            lambda: functional.linear(torch.randn(4, 13), torch.randn(9, 13), value),
            lambda: F.linear(torch.randn(4, 13), torch.randn(9, 13), value),
        )


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.half, torch.bfloat16, torch.int64, torch.bool, torch.complex64],
    ids=str,
)
def test_mixed_dtypes(dtype: torch.dtype) -> None:
    x = torch.ones(4, 13).to(dtype)
    model, layer = FusedMLP([13, 9, 5]), FusedLinear(13, 9)
    assert_same(lambda: model(x), lambda: model.as_sequential()(x))
    assert_same(lambda: layer(x), lambda: F.linear(x, layer.weight, layer.bias))
    assert "dtype" in str(error_of(lambda: model(x)))
    # A layer within, and a bias alone.
    mixed = FusedMLP([13, 9, 5])
    mixed[2].weight.data = torch.ones(5, 9, dtype=dtype if dtype.is_floating_point else torch.half)
    good = torch.randn(4, 13)
    assert_same(lambda: mixed(good), lambda: mixed.as_sequential()(good))


def test_mixed_dtype_of_a_bias() -> None:
    x, weight, bias = torch.randn(4, 13), torch.randn(9, 13), torch.randn(9)
    for given in ((x, weight, bias.double()), (x.double(), weight.double(), bias)):
        assert_same(partial(functional.linear, *given), partial(F.linear, *given))


def test_mixed_devices() -> None:
    model = FusedMLP([13, 9, 5])
    meta = FusedMLP([13, 9, 5], device="meta")
    partly = FusedMLP([13, 9, 5])
    partly[2] = partly[2].to("meta")
    there, here = torch.empty(4, 13, device="meta"), torch.randn(4, 13)
    for network, x in ((model, there), (meta, here), (partly, here), (partly, there)):
        assert_outcome(partial(network, x), partial(network.as_sequential(), x))


def assert_outcome(fused: Callable[[], Tensor], plain: Callable[[], Tensor]) -> None:
    """The same type of error, or a result of the same shape, dtype and device."""
    outcomes: list[Any] = []
    for call in (fused, plain):
        try:
            y = call()
            outcomes.append((y.shape, y.dtype, y.device))
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("weight", [(9, 12), (9,), (2, 9, 13), (), (13, 9)], ids=str)
def test_wrong_weights(weight: tuple[int, ...]) -> None:
    """The function of one layer does what torch's does, odd shapes that torch accepts included."""
    x, w = torch.randn(4, 13), torch.randn(weight)
    assert_outcome(lambda: functional.linear(x, w), lambda: F.linear(x, w))
    assert_outcome(lambda: functional.linear(x, w, activation="tanh"), lambda: F.linear(x, w))


def test_a_weight_that_is_a_vector() -> None:
    """torch's linear takes one, and gives one output without a dimension of its own."""
    x, w = torch.randn(4, 13), torch.randn(13)
    torch.testing.assert_close(functional.linear(x, w), F.linear(x, w))


@pytest.mark.parametrize("bias", [(8,), (1,), (), (4, 9), (1, 9), (9, 1), (0,)], ids=str)
def test_wrong_bias(bias: tuple[int, ...]) -> None:
    """As torch: an error, or, where torch broadcasts, the same numbers."""
    x, w, b = torch.randn(4, 13), torch.randn(9, 13), torch.randn(bias)
    fused: Callable[[], Tensor] = lambda: functional.linear(x, w, b)  # noqa: E731
    plain: Callable[[], Tensor] = lambda: F.linear(x, w, b)  # noqa: E731
    assert_outcome(fused, plain)
    try:
        expected = plain()
    except RuntimeError:
        assert_same(fused, plain, 9, *bias)
    else:
        torch.testing.assert_close(fused(), expected)


def test_layers_that_do_not_fit() -> None:
    x = torch.randn(4, 13)
    model = FusedMLP([13, 9, 5])
    model[2] = nn.Linear(8, 5)
    assert_same(lambda: model(x), lambda: model.as_sequential()(x), 9, 8)
    weights = [torch.randn(9, 13), torch.randn(5, 8)]
    assert_same(lambda: functional.mlp(x, weights), lambda: model.as_sequential()(x), 9, 8)


def test_lists() -> None:
    x = torch.randn(4, 13)
    with pytest.raises(ValueError, match="at least one"):
        functional.mlp(x, [])
    with pytest.raises(ValueError, match=r"1 bias.* 2 weights"):
        functional.mlp(x, [torch.randn(9, 13), torch.randn(5, 9)], [torch.randn(9)])


def test_operator_checks_for_itself() -> None:
    """torch.ops users get errors, never a crash."""
    op = torch.ops.fastmlp.mlp
    x, w, b = torch.randn(4, 13), torch.randn(9, 13), torch.randn(9)
    one = [0, 1]  # the program of a layer with a bias
    bad: list[tuple[Any, ...]] = [
        (x, [], [], []),
        (x, [w], one, []),
        (x, [w, b, b], one, []),
        (x, [w, b], [], []),
        (x, [w, b], [0], []),
        (x, [w, b], [*one, 1, 2], []),
        (x, [w, b], one, [0.0]),
        (x, [w, b], [*one, 1, 99], []),
        (x, [w, b], [*one, 1, -1], []),
        (x, [w.t(), b], one, []),
        (x, [w, b[:8]], one, []),
        (x, [w[0], b], one, []),
        (x[0, 0], [w, b], one, []),
        (x.double(), [w, b], one, []),
        (x, [w.double(), b], one, []),
        (x, [w, b.double()], one, []),
        (x.half(), [w.half(), b.half()], one, []),
        (x.long(), [w.long(), b.long()], one, []),
        (x, [w, w], [0, 0, 0, 0], []),
    ]
    for args in bad:
        for needed in (False, True):
            if needed and args[1] and args[1][0].is_floating_point():
                args = (args[0], [t.detach().requires_grad_() for t in args[1]], *args[2:])
            with pytest.raises(RuntimeError):
                op(*args)
    forward, backward = torch.ops.fastmlp.mlp_forward, torch.ops.fastmlp.mlp_backward
    operands, program = [w, b, torch.randn(5, 9)], [0, 1, 1, 1, 0, 0]
    needs = [True] * 4
    y, saved = forward(x, operands, program, [], needs)
    good: list[Any] = [torch.ones(4, 5), x, operands, y, saved, program, [], needs, needs]
    assert len(backward(*good)) == 4
    for position, wrong in (
        (0, torch.ones(4, 4)), (0, torch.ones(3, 5)), (0, torch.ones(20)),
        (0, torch.ones(4, 5).double()),
        (1, torch.randn(5, 13)), (1, torch.randn(4, 12)), (2, operands[:2]),
        (3, torch.ones(4, 4)), (3, y.double()), (4, saved[1:]), (4, saved.double()),
        (5, [0, 1]), (6, [1.0]), (7, [True] * 3), (7, []), (8, [True] * 3), (8, [True] * 5),
    ):  # fmt: skip
        args = [*good]
        args[position] = wrong
        with pytest.raises(RuntimeError):
            backward(*args)


def test_operator_does_not_crash() -> None:
    """Gradients asked for of layers of which forward was told to keep nothing: an error."""
    program = """
import torch, fastmlp
x, weights = torch.ones(4, 6), [torch.ones(6, 6)] * 3
program = [0, 0, 1, CODE] * 3
y, saved = torch.ops.fastmlp.mlp_forward(x, weights, program, [], KEPT)
for needs in ([True] * 4, [True] + [False] * 3, [False, True] + [False] * 2):
    try:
        torch.ops.fastmlp.mlp_backward(
            torch.ones(4, 6), x, weights, y, saved, program, [], KEPT, needs
        )
    except RuntimeError:
        print("error")
"""
    for code in (1, 6):
        kept = str([i == 3 for i in range(4)])
        text = program.replace("CODE", str(code)).replace("KEPT", kept)
        assert output(text).split() == ["error"] * 3


def test_errors_leave_nothing_behind() -> None:
    """After an error the model works on."""
    model = FusedMLP([13, 9, 5])
    x = torch.randn(4, 13)
    y = model(x)
    for wrong in (torch.randn(4, 12), torch.randn(4, 13).double(), None):
        error_of(partial(model, wrong))
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("sizes", [[5, -1], [5, 2.5], ["5", 3], [None, 3]], ids=str)
def test_wrong_sizes(sizes: list[Any]) -> None:
    expected = error_of(lambda: nn.Linear(*sizes))
    actual = error_of(lambda: FusedMLP(sizes))
    assert type(actual) is type(expected)
