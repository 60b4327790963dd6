"""What follows an activation in the operators: dropout's noise, and the layer's input."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from edges import EDGES, LARGE, SIZES, pairwise
from fused import NOISE, SKIP, arguments, check, check_forward, encode, mlp, names
from graphs import function, kept_bytes, leaves, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, Layout
from numerics import AT_MOST, POISONS, TRAVELLERS, assert_same_kinds, places
from operators import backward_arguments, layout_of, lowest_needs
from reference import ACTIVATIONS, Problem, error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

OPS = torch.ops.fastmlp
BOTH: dict[str, Any] = {"dropout": 0.3, "residual": True}
KINDS: dict[str, dict[str, Any]] = {
    "noise": {"dropout": 0.3},
    "skip": {"residual": True},
    "both": BOTH,
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Which of them the layers have: options of Problem.random."""
    result: dict[str, Any] = request.param
    return result


# Forward and backward against the reference


@pytest.mark.parametrize("batch", EDGES[1:])
def test_one_layer(isa: str, dtype: torch.dtype, batch: int) -> None:
    for rows, m, n in pairwise(batch):
        for output in (None, "relu", "gelu"):
            check(Problem.random(rows, [m, n], dtype, output=output, dropout=0.3), f"{m}→{n}")
        for options in ({"residual": True}, BOTH):
            check(Problem.random(rows, [m, m], dtype, output="tanh", **options), f"{rows}×{m}")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_activations(
    isa: str, dtype: torch.dtype, name: str, bias: bool, kind: dict[str, Any]
) -> None:
    """Of hidden layers and of the last; where the block is the first layer, too."""
    for sizes in ([9, 9], [9, 9, 9, 9], [18, 18, 5], [5, 18, 18]):
        problem = Problem.random(33, sizes, dtype, hidden=name, output=name, bias=bias, **kind)
        check(problem, str(sizes))


@settings(max_examples=30)
@given(
    batch=SIZES,
    widths=st.lists(st.tuples(SIZES, st.integers(1, 3)), min_size=2, max_size=4),
    hidden=st.sampled_from(list(ACTIVATIONS)),
    output=st.sampled_from([None, *ACTIVATIONS]),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    residual=st.booleans(),
)
def test_networks(
    isa: str,
    dtype: torch.dtype,
    batch: int,
    widths: list[tuple[int, int]],
    hidden: str,
    output: str | None,
    bias: bool,
    dropout: float,
    residual: bool,
) -> None:
    sizes = [width for width, count in widths for _ in range(count)]
    check(
        Problem.random(
            batch, sizes, dtype, hidden=hidden, output=output, bias=bias, dropout=dropout,
            residual=residual,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [*LARGE, (300, [520, 520]), (1, [300] * 4), (50, [784, 300, 300, 10]), (2048, [9, 9, 9])],
)
def test_large(isa: str, batch: int, sizes: list[int]) -> None:
    check(Problem.random(batch, sizes, **BOTH))


@pytest.mark.parametrize("sizes", [[5, 5], [0, 0], [0, 0, 0], [5, 0, 0, 3], [5, 5, 0], [1, 1, 1]])
@pytest.mark.parametrize("batch", [0, 1, 4, (2, 0, 3)])
def test_next_to_nothing(
    batch: int | tuple[int, ...], sizes: list[int], kind: dict[str, Any]
) -> None:
    check(Problem.random(batch, sizes, **kind))
    check(Problem.random(batch, sizes, bias=False, **kind))


@pytest.mark.parametrize("combination", list(itertools.product([0, 1, 2, 3], repeat=3)), ids=str)
def test_each_layer_for_itself(isa: str, combination: tuple[int, ...]) -> None:
    """Neither, noise, the input, both: in each layer of three."""
    for hidden, output in (("relu", None), ("gelu", "relu")):
        full = Problem.random(9, [17] * 4, hidden=hidden, output=output, **BOTH)
        noises = [n if c & 1 else None for n, c in zip(full.noises, combination, strict=True)]
        problem = replace(full, noises=noises, skips=[c >= 2 for c in combination])
        program = arguments(problem)[2]
        assert program.count(SKIP) == sum(c >= 2 for c in combination)
        check(problem, f"{hidden} {output}")


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 3, 1, 2)])
def test_ranks(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(Problem.random(shape, [6, 6, 3], dtype, **BOTH))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(9,), (2, 3, 4), ()])
@pytest.mark.parametrize("sizes", [[17, 17, 5], [17, 17], [1, 1]], ids=str)
def test_layouts(
    isa: str, dtype: torch.dtype, layout: Layout, shape: tuple[int, ...], sizes: list[int]
) -> None:
    """Of the input, which is added, and of the output's gradient, which is added to dx."""
    for options, output in ((BOTH, None), (BOTH, "sigmoid"), (KINDS["skip"], None)):
        plain = Problem.random(shape, sizes, dtype, output=output, **options)
        check(replace(plain, x=layout(plain.x)), "input")
        check(replace(plain, x=layout(plain.x), grad_output=layout(plain.grad_output)), "both")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parameter_layouts(isa: str, dtype: torch.dtype, layout: Layout) -> None:
    for batch, sizes in ((1, [19, 19, 5]), (33, [40, 40, 20])):
        plain = Problem.random(batch, sizes, dtype, **BOTH)
        weights = [layout(w) for w in plain.weights]
        biases = [None if b is None else layout(b) for b in plain.biases]
        check(replace(plain, weights=weights, biases=biases), f"{batch} {sizes}")


@pytest.mark.parametrize("hidden", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("sizes", [[18, 18], [18, 18, 17], [7, 18, 18]], ids=str)
def test_each_subset_of_gradients(
    isa: str, hidden: str, sizes: list[int], kind: dict[str, Any]
) -> None:
    """What is asked for comes, and nothing else; the numbers do not depend on what else does."""
    problem = Problem.random(33, sizes, hidden=hidden, output=hidden, **kind)
    expected = [*problem.run(mlp(problem)).named().values()][1:]
    for needed in itertools.product([False, True], repeat=len(expected)):
        if not any(needed):
            continue
        given = leaves(problem, needed)
        function(problem)(*given).backward(problem.grad_output)
        for leaf, want, need in zip(given, expected, needed, strict=True):
            assert (leaf.grad is not None) == need, needed
            if leaf.grad is not None:
                assert torch.equal(leaf.grad, want), needed


def test_forward_is_the_same_with_and_without_backward(
    isa: str, dtype: torch.dtype, kind: dict[str, Any]
) -> None:
    for batch, sizes in [(9, [17, 33, 33, 5]), (50, [300, 300]), (1, [64] * 5)]:
        for hidden in ("relu", "gelu"):
            problem = Problem.random(batch, sizes, dtype, hidden=hidden, **kind)
            with torch.no_grad():
                y = check_forward(problem)
            assert torch.equal(problem.run(mlp(problem)).y, y), (batch, sizes)


def test_inputs_stay_as_they_are(isa: str, dtype: torch.dtype) -> None:
    problem = Problem.random(33, [40, 40, 17, 17], dtype, **BOTH)
    given = [*problem.tensors(), problem.grad_output, *(n for n in problem.noises if n is not None)]
    before = [t.clone() for t in given]
    results = check(problem).named().values()
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    memory = {t.untyped_storage().data_ptr() for t in results}
    assert len(memory) == len(results)
    assert memory.isdisjoint(t.untyped_storage().data_ptr() for t in given)


def test_error_beside_torchs(isa: str) -> None:
    """Of deep residual networks, whose sums pass through every layer."""
    for hidden in ("relu", "tanh", "gelu"):
        problem = Problem.random(64, [64] * 9, hidden=hidden, **BOTH)
        expected = problem.exact().named()
        ours, theirs = check(problem).named(), problem.eager().named()
        for name, want in expected.items():
            assert error(ours[name], want) <= AT_MOST * error(theirs[name], want), name


# Further derivatives


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradcheck(isa: str, name: str, kind: dict[str, Any]) -> None:
    # gradcheck steps by 1e-6: none of these few sums is that near a kink.
    problem = Problem.random(3, [4, 4, 3], torch.float64, hidden=name, output=name, **kind)
    assert gradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradgradcheck(name: str, kind: dict[str, Any]) -> None:
    for sizes in ([3, 3, 2], [2, 3, 3]):
        problem = Problem.random(2, sizes, torch.float64, hidden=name, output=name, **kind)
        assert gradgradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=5))[1:], ids=str)
def test_gradgradcheck_of_some(needed: tuple[bool, ...]) -> None:
    problem = Problem.random(2, [3, 3, 3], torch.float64, hidden="tanh", output="relu", **BOTH)
    given = leaves(problem, needed)
    assert gradcheck(function(problem), given)
    assert gradgradcheck(function(problem), given)


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (1,)])
def test_gradgradcheck_of_ranks(shape: tuple[int, ...]) -> None:
    problem = Problem.random(shape, [3, 3, 2], torch.float64, hidden="tanh", **BOTH)
    assert gradgradcheck(function(problem), leaves(problem))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_is_the_same_under_create_graph(name: str, kind: dict[str, Any]) -> None:
    problem = Problem.random(9, [8, 8, 8], torch.float64, hidden=name, output=name, **kind)
    given = leaves(problem)
    y = function(problem)(*given)
    once = torch.autograd.grad(y, given, problem.grad_output, retain_graph=True)
    again = torch.autograd.grad(y, given, problem.grad_output, retain_graph=True)
    twice = torch.autograd.grad(y, given, problem.grad_output, create_graph=True)
    for a, b, c in zip(once, twice, again, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)


# What is kept for backward


@pytest.mark.parametrize("output", [None, "relu", "gelu"])
def test_modified_in_place(output: str | None, kind: dict[str, Any]) -> None:
    """torch's own error where torch gives it; none, but the right numbers, where it gives none."""
    problem = Problem.random(4, [5, 5, 5], hidden="tanh", output=output, **kind)
    combinations = {(True,) * 5, (True, *(False,) * 4), (False, *(True,) * 4)}
    combinations |= {tuple(i == j for i in range(5)) for j in range(5)}
    combinations |= {tuple(i != j for i in range(5)) for j in range(5)}
    for needed in sorted(combinations):
        for which in range(-1, 5):
            fused, grads = outcome(mlp(problem), problem, needed, which)
            plain, expected = outcome(problem.network, problem, needed, which)
            assert fused == plain, f"needed {needed}, modified {which}"
            for a, b in zip(grads, expected, strict=True):
                torch.testing.assert_close(a, b)


def test_modified_noise() -> None:
    problem = Problem.random(4, [5, 5, 5], **BOTH)
    x, operands, program, constants = arguments(problem, needed=True)
    y = OPS.mlp(x, operands, program, constants)
    next(t for t in operands if not t.requires_grad).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("output", [None, "relu", "gelu"])
def test_kept_memory_is_at_most_eagers(
    hidden: str, output: str | None, kind: dict[str, Any]
) -> None:
    for sizes in ([40, 40, 30, 30], [20, 30, 30, 20], [30, 30, 30, 30]):
        problem = Problem.random(32, sizes, hidden=hidden, output=output, **kind)
        for needed in (
            (True,) * 7,
            (False, *(True,) * 6),
            (True, *(False,) * 6),
            (False, False, True, True, False, True, True),
            (False, False, False, True, False, False, True),
            (False, False, False, False, False, False, True),
            (False, *(False,) * 3, *(True,) * 3),
            (False,) * 7,
        ):
            fused = kept_bytes(mlp(problem), problem, needed)
            plain = kept_bytes(problem.network, problem, needed)
            # The noise is kept in one piece, with that of frozen layers which nothing goes through.
            first = next((i for i in range(3) if needed[0] or needed[1 + i] or needed[4 + i]), 3)
            frozen = [n.nbytes for n in problem.noises[:first] if n is not None]
            assert fused <= plain + (sum(frozen) if any(needed) else 0), (sizes, needed)


# NaN and inf


@pytest.mark.sweep
@pytest.mark.parametrize("hidden", TRAVELLERS)
@pytest.mark.parametrize("poison", POISONS)
def test_one_poisoned_number(isa: str, dtype: torch.dtype, hidden: str, poison: float) -> None:
    """0 · inf is NaN where a number is dropped, and a block passes all on that it adds."""
    sizes = [32, 32, 64, 32]  # see test_numerics
    for options in KINDS.values():
        for place in places(Problem.random(32, sizes, dtype)):
            problem = Problem.random(32, sizes, dtype, hidden=hidden, **options)
            numbers = places(problem)[place].view(-1)
            numbers[37 % len(numbers)] = poison
            assert_same_kinds(problem, f"{poison} in {place}")


@pytest.mark.parametrize("poison", POISONS)
def test_poisoned_noise(isa: str, dtype: torch.dtype, poison: float) -> None:
    for layer in range(3):
        problem = Problem.random(32, [32, 32, 64, 32], dtype, **BOTH)
        noise = problem.noises[layer]
        assert noise is not None
        noise[3, 5] = poison
        assert_same_kinds(problem, f"{poison} in noise {layer}")


def test_all_dropped(isa: str, dtype: torch.dtype) -> None:
    """Nothing is left, and no gradient; of a block, its input."""
    actual = check(Problem.random(9, [5, 8, 8, 3], dtype, dropout=1.0))
    assert not actual.y.any()
    assert not any(t.any() for name, t in actual.named().items() if name.startswith("d"))
    problem = Problem.random(9, [8, 8, 8], dtype, dropout=1.0, residual=True)
    actual = check(problem)
    assert torch.equal(actual.y, problem.x)


# Threads


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(1, [64] * 5), (50, [784, 300, 300, 10]), (300, [257, 257, 129]), (1100, [256, 256, 800])],
)
@pytest.mark.parametrize("hidden", ["relu", "gelu"])
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, threads: int, batch: int, sizes: list[int], hidden: str
) -> None:
    problem = Problem.random(batch, sizes, dtype, hidden=hidden, **BOTH)
    torch.set_num_threads(1)
    expected = problem.run(mlp(problem)).named()
    for count in (2, 3):
        torch.set_num_threads(count)
        for name, tensor in problem.run(mlp(problem)).named().items():
            assert torch.equal(tensor, expected[name]), f"{name}, {count} threads"


# The operators


def problems() -> Iterator[Problem]:
    for hidden in ("identity", "relu", "elu"):  # what is saved: nothing, the output, the sums
        yield Problem.random(4, [5, 5, 3, 3], hidden=hidden, output=hidden, **BOTH)
    for options in KINDS.values():
        yield Problem.random(4, [5, 5], **options)
        yield Problem.random((2, 3), [6, 6, 3], torch.float64, bias=False, **options)
    yield Problem.random((), [5, 5, 3], **BOTH)
    yield Problem.random((2, 0), [5, 5, 3], **BOTH)
    plain = Problem.random(4, [5, 5, 5], **BOTH)
    yield replace(plain, noises=[None, plain.noises[1]], skips=[True, False])
    for layout in ("transposed", "expanded", "offset"):
        yield replace(plain, x=LAYOUTS[layout](plain.x))


PROBLEMS = list(problems())


@pytest.mark.sweep
@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
@pytest.mark.parametrize("needed", [False, True], ids=["inference", "training"])
def test_opcheck(problem: Problem, needed: bool) -> None:
    torch.library.opcheck(OPS.mlp.default, arguments(problem, needed))


def needs_of(problem: Problem, wanted: Sequence[bool]) -> list[bool]:
    """Of input and operands, from those of input, weights and biases: noise has none."""
    layers = len(problem.weights)
    needs = [wanted[0]]
    for layer, bias in enumerate(problem.biases):
        needs.append(wanted[1 + layer])
        if bias is not None:
            needs.append(wanted[1 + layers + layer])
        if problem.noises and problem.noises[layer] is not None:
            needs.append(False)
    return needs


@pytest.mark.sweep
@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_opcheck_beneath(problem: Problem) -> None:
    both = 2 * len(problem.weights)
    has = needs_of(problem, [True] * (1 + both))
    for wanted in lowest_needs(both)[1:]:
        needs = needs_of(problem, wanted)
        torch.library.opcheck(OPS.mlp_forward.default, (*arguments(problem), needs))
    torch.library.opcheck(OPS.mlp_forward.default, (*arguments(problem), []))
    torch.library.opcheck(OPS.mlp_backward.default, backward_arguments(problem, has, has))


@pytest.mark.sweep
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_fakes_match(shape: tuple[int, ...], kind: dict[str, Any]) -> None:
    """Sizes, strides and offsets of what the fakes say are those of what the kernels give."""
    for hidden, output in (("relu", None), ("gelu", "tanh"), ("identity", "elu")):
        problem = Problem.random(shape, [5, 5, 3], hidden=hidden, output=output, **kind)
        for wanted in itertools.product([False, True], repeat=5):
            needs = needs_of(problem, wanted)
            forward = (*arguments(problem), needs)
            backward = backward_arguments(problem, needs, needs)
            for op, args in ((OPS.mlp_forward, forward), (OPS.mlp_backward, backward)):
                mode = FakeTensorMode()
                fakes = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, args)
                real = torch.utils._pytree.tree_leaves(op(*args))
                with mode:
                    pretended = torch.utils._pytree.tree_leaves(op(*fakes))
                assert [layout_of(t) for t in real] == [layout_of(t) for t in pretended], needs


def wrong() -> dict[str, tuple[list[Tensor], list[int], list[str]]]:
    """Noise and program for a batch of 4 of 5-5-3, and what the error has to tell."""
    first, second = torch.ones(4, 5), torch.ones(4, 3)
    noisy = [0, 1, NOISE, 0, 1, NOISE]
    return {
        "short": ([first[1:], second], noisy, ["[4, 5]", "[3, 5]"]),
        "long": ([first, torch.ones(4, 4)], noisy, ["[4, 3]", "[4, 4]"]),
        "flat": ([first.flatten(), second], noisy, ["[4, 5]", "[20]"]),
        "strided": ([torch.ones(4, 10)[:, ::2], second], noisy, ["contiguous", "[4, 5]"]),
        "double": ([first.double(), second], noisy, ["Float", "Double"]),
        "half": ([first.half(), second], noisy, ["Float", "Half"]),
        "requires a gradient": (
            [first.clone().requires_grad_(), second],
            noisy,
            ["requires no gradient"],
        ),
        "missing": ([first], noisy, ["6", "5"]),
        "superfluous": ([first, second], [0, 1, 0, 1], ["4", "6"]),
        "superfluous beside a skip": ([first], [0, 1, SKIP, 0, 1], ["4", "5"]),
        "an unknown op": ([], [0, 1, 0, 1, 99], ["99"]),
        "a negative op": ([], [0, 1, -1, 0, 1], ["-1"]),
        "a huge op": ([], [0, 1, 2**40, 0, 1], [str(2**40)]),
        "an op before a layer": ([], [SKIP, 0, 1, 0, 1], ["linear"]),
        "ops out of order": ([first], [0, 1, SKIP, NOISE, 0, 1], ["order"]),
        "noise twice": ([first, first], [0, 1, NOISE, NOISE, 0, 1], ["order"]),
        "an op without its number": ([], [0, 1, 0], ["ends"]),
        "an undrawn dropout": ([], [0, 1, 2, 0, 1], ["probability"]),
        "an unknown activation": ([], [0, 1, 1, 99, 0, 1], ["99"]),
        "an activation without its parameter": ([], [0, 1, 1, 2, 0, 1], ["parameter"]),
        "not square": ([], [0, 1, SKIP, 0, 1, SKIP], ["weight 1", "[3, 5]"]),
    }


def with_noise(problem: Problem, noises: list[Tensor], program: list[int]) -> list[Tensor]:
    """The operands of a program that has the noises in its places, as far as there are any."""
    (w0, w1), (b0, b1) = problem.weights, problem.biases
    assert b0 is not None
    assert b1 is not None
    first = program.index(0, 2) if 0 in program[2:] else len(program)
    early = program[:first].count(NOISE)
    return [w0, b0, *noises[:early], w1, b1, *noises[early:]]


@pytest.mark.parametrize("case", wrong())
@pytest.mark.parametrize("needed", [False, True])
def test_wrong_arguments(case: str, needed: bool) -> None:
    problem = Problem.random(4, [5, 5, 3])
    noises, program, told = wrong()[case]
    operands = with_noise(problem, noises, program)
    x = problem.x.detach().requires_grad_(needed)
    constants = [0.5] if "dropout" in case else []
    if "gradient" in case and not needed:
        return  # without a gradient of anything, noise is as good as any
    with pytest.raises(RuntimeError) as caught:
        OPS.mlp(x, operands, program, constants)
    message = str(caught.value).splitlines()[0]
    assert message.startswith("fastmlp: ")
    for part in told:
        assert re.search(rf"(?<!\w){re.escape(part)}", message), message
    if "gradient" in case:
        return
    needs = [True] * (1 + len(operands))
    with pytest.raises(RuntimeError):
        OPS.mlp_forward(problem.x, operands, program, constants, needs)
    x, right, *rest = arguments(problem)
    y, saved = OPS.mlp_forward(x, right, *rest, [True] * 5)
    with pytest.raises(RuntimeError):
        OPS.mlp_backward(
            problem.grad_output, x, operands, y, saved, program, constants, needs, needs
        )


def test_noise_has_no_gradient() -> None:
    problem = Problem.random(4, [5, 5, 5], **BOTH)
    given = arguments(problem)
    with pytest.raises(RuntimeError, match="noise has no gradient"):
        OPS.mlp_forward(*given, [True] * (1 + len(given[1])))


def test_backward_checks_what_was_saved() -> None:
    """A program unlike that of forward wants another number of saved activations: an error."""
    problem = Problem.random(4, [5, 5, 5], output="relu", **KINDS["skip"])
    has = [True] * 5
    given = backward_arguments(problem, has, has)
    assert len(OPS.mlp_backward(*given)) == 5
    without = encode(problem.weights, problem.biases, names(problem))
    with pytest.raises(RuntimeError, match="saved activations"):
        OPS.mlp_backward(*given[:5], *without[1:], has, has)
