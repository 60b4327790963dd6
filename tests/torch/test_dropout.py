"""Dropout: torch's own masks from torch's own generator, in the module, compiled, in training."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import assert_as_plain, hooked, with_its_own_forward
from fused import forced
from sparse_inputs import sparse
from sparse_twins import SparseTwins
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from twins import (
    EXACT,
    LOSSES,
    OPTIMIZERS,
    SMOOTH,
    Twins,
    assert_close,
    assert_same,
    float32_bound,
    plain_step,
    plain_twin,
)

from fastmlp import _C, FusedMLP, Residual, TrainStep
from fastmlp.data import Compose, ImageDataset, Normalize, ToTensor

SIZES = [12, 9, 9, 5]
PROBABILITIES = [0, 1e-300, 1e-9, 0.1, 0.3, 0.5, 0.9, 1 - 1e-9, 1]


@pytest.fixture(autouse=True)
def _one_thread(threads: int) -> None:
    """Unless a test sets more."""
    torch.set_num_threads(1)


# Masks --------------------------------------------------------------------------------------------


def bare(features: int, p: float, dtype: torch.dtype = torch.float32) -> FusedMLP:
    """Gives for any input (..., 1) what dropout multiplies by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters without elements
        linear = nn.Linear(1, features, dtype=dtype)
    nn.init.zeros_(linear.weight)
    nn.init.ones_(linear.bias)
    return FusedMLP.from_sequential(nn.Sequential(linear, nn.Dropout(p)))


def assert_torchs_mask(features: int, p: float, dtype: torch.dtype, rows: int = 1) -> Tensor:
    """And the generator ends as torch leaves it."""
    state = torch.get_rng_state()
    expected = F.dropout(torch.ones(rows, features, dtype=dtype), p)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model, x = bare(features, p, dtype), torch.zeros(rows, 1, dtype=dtype)
    torch.set_rng_state(state)  # which the model's own parameters were drawn from
    assert model.why_plain(x) is None
    with torch.no_grad():
        assert torch.equal(model(x), expected), (features, p)
    assert torch.equal(torch.get_rng_state(), after), (features, p)
    return expected


def left_of(words: str) -> None:
    """Brings the generator into a state that may be odd, or holds a number back."""
    if words == "one word":
        torch.rand(1)
    elif words == "two words":
        torch.rand(1, dtype=torch.float64)
    elif words == "three words":
        torch.rand(1)
        torch.rand(1, dtype=torch.float64)
    elif words == "a normal number":
        torch.randn(1, dtype=torch.float64)
    elif words == "a whole state":
        torch.rand(624)


WORDS = ["nothing", "one word", "two words", "three words", "a normal number", "a whole state"]


@pytest.mark.parametrize("p", PROBABILITIES)
def test_masks_are_torchs(isa: str, dtype: torch.dtype, p: float) -> None:
    """Around the generator's state of 624 words, of which a number takes two."""
    for words in WORDS:
        torch.manual_seed(3)
        left_of(words)
        for features in (1, 2, 311, 312, 313, 623, 624, 625, 5000):
            assert_torchs_mask(features, p, dtype)  # goes on from where the last one left it


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (311, 3), (50, 300), (0, 5), (5, 0)], ids=str)
def test_masks_of_any_shape(isa: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for p in (0.5, 1):
        assert_torchs_mask(shape[1], p, dtype, shape[0])
        assert_torchs_mask(3, 0.3, dtype)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2), (2, 0)], ids=str)
def test_masks_of_any_rank(shape: tuple[int, ...]) -> None:
    model = bare(7, 0.5)
    torch.manual_seed(1)
    expected = F.dropout(torch.ones(*shape, 7))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    y = model(torch.zeros(*shape, 1))
    assert torch.equal(y, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / 3, 0.7310585786300049])
def test_many_numbers(dtype: torch.dtype, p: float) -> None:
    """The same on each instruction set, and p of them dropped, give or take 6 deviations."""
    count = 200_000
    for isa in _C.available_isas():
        torch.manual_seed(5)
        with forced(isa):
            mask = assert_torchs_mask(count // 8, p, dtype, 8)
        dropped = int((mask == 0).sum())
        assert abs(dropped - count * p) <= 6 * math.sqrt(count * p * (1 - p))
        kept = mask[mask != 0]
        assert torch.equal(kept, torch.ones_like(kept) / (1 - p))


def test_a_state_that_was_set() -> None:
    model, x = bare(100, 0.5), torch.zeros(4, 1)
    model(x)
    torch.rand(3)
    state = torch.get_rng_state()
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model(x), first)
    assert torch.equal(model(x), second)
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model(x)
    torch.set_rng_state(state)
    assert torch.equal(model(x), first)


def test_two_threads_share_the_generator() -> None:
    """Each mask is drawn as a whole: after as many numbers, the generator is where it has to be."""
    model, x, calls = bare(313, 0.5), torch.zeros(7, 1), 40
    torch.manual_seed(1)
    expected = [F.dropout(torch.ones(7, 313), 0.5) for _ in range(4 * calls)]
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: model(x).detach(), range(4 * calls)))
    assert torch.equal(torch.get_rng_state(), after)
    assert {y.numpy().tobytes() for y in drawn} == {y.numpy().tobytes() for y in expected}


def test_threads_draw_the_same(threads: int, dtype: torch.dtype) -> None:
    model = FusedMLP([300, 257, 257, 10], dropout=0.4, residual=True, dtype=dtype)
    x = torch.randn(300, 300, dtype=dtype)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        y = model(x)
        grads = torch.autograd.grad(y.sum(), list(model.parameters()))
        results.append([y.detach(), *grads, torch.get_rng_state()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# The module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("p", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("activation", ["relu", "gelu", "identity", None])
def test_as_the_plain_network(isa: str, activation: str | None, p: float, residual: bool) -> None:
    model = FusedMLP(
        SIZES, activation=activation, output_activation="tanh", dropout=p, residual=residual,
        dtype=torch.float64,
    )  # fmt: skip
    for shape in ((4, 12), (1, 12), (12,), (2, 3, 12), (0, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        assert model.why_plain(x) is None
        assert_as_plain(model, x)


def test_what_is_made() -> None:
    model = FusedMLP([6, 5, 4, 3], dropout=0.25, output_activation="tanh")
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear", "Tanh"]
    assert [m.p for m in model if isinstance(m, nn.Dropout)] == [0.25] * 2
    assert list(model.state_dict()) == [f"{i}.{n}" for i in (0, 3, 6) for n in ("weight", "bias")]
    assert "(2): Dropout(p=0.25, inplace=False)" in repr(model)
    assert [type(m).__name__ for m in FusedMLP([6, 5, 3], activation=None, dropout=0)] == [
        "Linear", "Dropout", "Linear",
    ]  # fmt: skip
    assert not any(isinstance(m, nn.Dropout) for m in FusedMLP([6, 5, 3]))
    assert not any(isinstance(m, nn.Dropout) for m in FusedMLP([6, 3], dropout=0.5))
    torch.manual_seed(2)
    first = FusedMLP([6, 5, 3], dropout=0.5)
    torch.manual_seed(2)
    assert torch.equal(first[3].weight, FusedMLP([6, 5, 3])[2].weight)


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, "x"])
@pytest.mark.parametrize("sizes", [[6, 5, 3], [6, 3]], ids=str)
def test_a_wrong_probability(wrong: Any, sizes: list[int]) -> None:
    """As nn.Dropout has it, but for NaN, which that takes."""
    expected = TypeError if wrong == "x" else ValueError
    with pytest.raises(expected, match="'str'" if wrong == "x" else f"between 0 and 1.* {wrong}"):
        FusedMLP(sizes, dropout=wrong)


def test_off_in_evaluation() -> None:
    model = FusedMLP(SIZES, dropout=0.5, dtype=torch.float64).eval()
    x = torch.randn(4, 12, dtype=torch.float64)
    state = torch.get_rng_state()
    without = FusedMLP.from_sequential(
        nn.Sequential(*(m for m in model if not isinstance(m, nn.Dropout)))
    )
    assert model.why_plain(x) is None
    assert torch.equal(model(x), without(x))
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model(x), without(x))
    assert not torch.equal(torch.get_rng_state(), state)


def test_no_probability_draws_nothing() -> None:
    model = FusedMLP(SIZES, dropout=0.0)
    state = torch.get_rng_state()
    model(torch.randn(0, 12)).sum().backward()
    y = model(torch.ones(4, 12))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(y, model.eval()(torch.ones(4, 12)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_on_in_training_mode_without_gradients(mode: Callable[[], Any]) -> None:
    model = FusedMLP(SIZES, dropout=0.5)
    x = torch.randn(50, 12)
    torch.manual_seed(1)
    expected = model(x).detach()
    torch.manual_seed(1)
    with mode():
        assert torch.equal(model(x), expected)
        assert not torch.equal(model(x), expected)


def test_changes_take_effect_at_the_next_call() -> None:
    """Of a probability, of the mode of one module, of the modules."""
    model = FusedMLP(SIZES, dropout=0.5, residual=True, dtype=torch.float64)
    x = torch.randn(33, 12, dtype=torch.float64)
    first, second = (m for m in model.modules() if isinstance(m, nn.Dropout))
    edits: list[Callable[[], object]] = [
        lambda: setattr(first, "p", 0.9),
        lambda: setattr(first, "p", 0),
        lambda: setattr(first, "p", 1),
        lambda: setattr(first, "p", 0.1),
        lambda: second.eval(),
        lambda: second.train(),
        lambda: first.eval(),
        lambda: model.eval(),
        lambda: second.train(),
        lambda: model.train(),
        lambda: setattr(second, "training", False),
    ]
    seen = [assert_as_plain(model, x)]
    for edit in edits:
        edit()
        assert model.why_plain(x) is None
        seen.append(assert_as_plain(model, x))
    assert not any(torch.equal(a, b) for a, b in pairwise(seen))


def linear() -> nn.Linear:
    return nn.Linear(9, 9)


class Mine(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


SHARED = nn.Dropout(0.5)
# The modules, and what why_plain tells in training and in evaluation; None: they run fused.
ARRANGEMENTS: dict[str, tuple[Callable[[], list[nn.Module]], str | None, str | None]] = {
    "after an activation": (lambda: [linear(), nn.Tanh(), nn.Dropout(), linear()], None, None),
    "after a linear layer": (lambda: [linear(), nn.Dropout(), linear()], None, None),
    "after an identity": (lambda: [linear(), nn.Identity(), nn.Dropout(), linear()], None, None),
    "before an identity": (
        lambda: [linear(), nn.ReLU(), nn.Dropout(), nn.Identity(), linear()], None, None,
    ),
    "at the end": (lambda: [linear(), nn.ReLU(), linear(), nn.Dropout(0.3)], None, None),
    "at the very end": (lambda: [linear(), nn.ReLU(), nn.Dropout(0.3)], None, None),
    "one in two places": (lambda: [linear(), SHARED, linear(), SHARED, linear()], None, None),
    "in a block": (lambda: [Residual(linear(), nn.SiLU(), nn.Dropout()), linear()], None, None),
    "in a block of a sum": (lambda: [Residual(linear(), nn.Dropout())], None, None),
    "of everything": (lambda: [linear(), nn.ReLU(), nn.Dropout(1.0), linear()], None, None),
    "first": (lambda: [nn.Dropout(), linear()], None, None),
    "two in a row": (lambda: [linear(), nn.Dropout(), nn.Dropout()], None, None),
    "a second one with p = 0": (lambda: [linear(), nn.Dropout(), nn.Dropout(0.0)], None, None),
    "before the activation": (
        lambda: [linear(), nn.Dropout(), nn.ReLU(), linear()], None, None,
    ),
    "before a block's activation": (
        lambda: [Residual(linear(), nn.Dropout(), nn.ReLU())], None, None,
    ),
    "after a block": (
        lambda: [Residual(linear(), nn.ReLU()), nn.Dropout(), linear()], None, None,
    ),
    "first in a block": (
        lambda: [linear(), Residual(nn.Dropout(), linear())], None, None,
    ),
    "in place": (
        lambda: [linear(), nn.SiLU(), nn.Dropout(inplace=True), linear()], "in place", "in place",
    ),
    "subclass": (lambda: [linear(), Mine(), linear()], "not fused", "not fused"),
    "alpha": (lambda: [linear(), nn.AlphaDropout(), linear()], "not fused", "not fused"),
    "of features": (lambda: [linear(), nn.Dropout1d(), linear()], "not fused", "not fused"),
    "with a hook": (lambda: [linear(), hooked(nn.Dropout()), linear()], "a hook", "a hook"),
    "with its own forward": (
        lambda: [linear(), with_its_own_forward(nn.Dropout()), linear()], "of its own",
        "of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_arrangements(name: str, training: bool) -> None:
    """Fused or plain, and the plain Sequential's numbers in each case."""
    make, *reasons = ARRANGEMENTS[name]
    modules = nn.Sequential(*make()).double().train(training)
    model, x = FusedMLP.from_sequential(modules), torch.randn(6, 9, dtype=torch.float64)
    reason = reasons[not training]
    told = model.why_plain(x)
    assert (told is None) == (reason is None), told
    if reason is not None:
        assert reason in str(told)
    assert_as_plain(model, x)


def test_global_hooks() -> None:
    model, x = FusedMLP(SIZES, dropout=0.5).double(), torch.randn(6, 12, dtype=torch.float64)
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, out: None)
    try:
        assert "hook" in str(model.why_plain(x))
        assert_as_plain(model, x)
    finally:
        handle.remove()
    assert model.why_plain(x) is None


@pytest.mark.parametrize("p", [1.5, -0.1, math.nan, "x", None])
@pytest.mark.parametrize("training", [True, False])
def test_a_probability_that_became_wrong(p: Any, training: bool) -> None:
    """torch's own error, in evaluation as well, and nothing drawn."""
    model, x = FusedMLP(SIZES, dropout=0.5).train(training), torch.randn(6, 12)
    model[2].p = p
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        model.as_sequential()(x)
    state = torch.get_rng_state()
    with pytest.raises(expected.type):
        model(x)
    assert torch.equal(torch.get_rng_state(), state)


def through_pickle(model: FusedMLP) -> FusedMLP:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies(duplicate: Callable[[FusedMLP], FusedMLP]) -> None:
    model = FusedMLP(SIZES, dropout=0.3, residual=True, dtype=torch.float64)
    x = torch.randn(4, 12, dtype=torch.float64)
    model(x).sum().backward()
    other = duplicate(model)
    assert repr(other) == repr(model)
    assert other.why_plain(x) is None
    assert torch.equal(assert_as_plain(other, x), assert_as_plain(model, x))
    other.eval()
    assert all(m.training for m in model.modules())


def test_kept_memory_is_at_most_eagers() -> None:
    for activation, residual in itertools.product(("relu", "gelu", "tanh"), (False, True)):
        model = FusedMLP([30, 20, 20, 20, 5], activation=activation, dropout=0.5, residual=residual)
        x = torch.randn(32, 30)
        own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
        counts = []
        for network in (model, model.as_sequential()):
            kept: dict[int, int] = {}

            def pack(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with saved_tensors_hooks(pack, lambda t: t):
                y = network(x)
            counts.append(sum(n for p, n in kept.items() if p not in own))
            del y
        assert 0 < counts[0] <= counts[1], (activation, residual)


def test_second_derivatives() -> None:
    """A penalty on the input's gradient, through the same masks as in the plain network."""
    model = FusedMLP([5, 8, 8, 1], activation="silu", dropout=0.3, residual=True).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    results = []
    for network in (model, model.as_sequential()):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        results.append(torch.autograd.grad(penalty, list(model.parameters())[:-1]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    model = FusedMLP([4, 5, 5, 3], activation="tanh", dropout=0.4, residual=True).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(4)
        return model(x)

    given = (x, *model.parameters())
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_checkpointed() -> None:
    """torch.utils.checkpoint puts the generator back: backward meets forward's masks."""
    model = FusedMLP(SIZES, dropout=0.5, residual=True, dtype=torch.float64)
    x = torch.randn(9, 12, dtype=torch.float64)
    results = []
    for run in (model, partial(checkpoint, model, use_reentrant=False)):
        torch.manual_seed(1)
        results.append(torch.autograd.grad(run(x).square().sum(), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# torch.compile ------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str, dynamic: bool) -> None:
    """With torch's random numbers, those of eager; in evaluation, eager's as well."""
    import torch._inductor.config as inductor

    model = FusedMLP([6, 8, 8, 5], activation="gelu", dropout=0.4, residual=True).double()
    plain = model.as_sequential()
    with inductor.patch(fallback_random=True):
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
        for training in (True, False):
            model.train(training)
            for rows in (9, 17) if dynamic else (9, 9):
                x = torch.randn(rows, 6, dtype=torch.float64)
                outcomes = []
                for network in (compiled, plain):
                    torch.manual_seed(rows)
                    y = network(x)
                    grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
                    outcomes.append([y.detach(), *grads, torch.get_rng_state()])
                torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_with_the_compilers_random_numbers() -> None:
    """Forward and backward meet the same mask, each call another, p of it dropped."""
    model, p, rows = bare(5000, 0.3), 0.3, 4
    compiled = torch.compile(model, fullgraph=True)
    seen = []
    for _ in range(3):
        y = compiled(torch.zeros(rows, 1))
        values = torch.tensor([0, 1 / (1 - p)])
        assert torch.isin(y.detach(), values).all()
        dropped = int((y == 0).sum())
        assert abs(dropped - y.numel() * p) <= 6 * math.sqrt(y.numel() * p * (1 - p))
        (grad,) = torch.autograd.grad(y.sum(), model[0].bias)
        # A sum of at most four equal numbers is off by three roundings.
        torch.testing.assert_close(grad, y.detach().sum(0), rtol=1e-6, atol=0)
        seen.append(y.detach())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    model.eval()
    assert torch.equal(compiled(torch.zeros(rows, 1)), torch.ones(rows, 5000))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_graph_holds_the_operator() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        graphs.append(graph)
        return graph

    model = FusedMLP([6, 8, 8, 5], dropout=0.5, residual=True)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(torch.randn(3, 6))
    called = [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]
    assert sum("fastmlp" in name for name in called) == 1, called
    assert not any("relu" in name or "linear" in name for name in called), called


# TrainStep ----------------------------------------------------------------------------------------


def train_twins(
    optimizer: str = "sgd", residual: bool = False, dtype: torch.dtype = torch.float64, **more: Any
) -> Twins:
    model = FusedMLP([7, 19, 19, 5], activation="gelu", dropout=0.3, residual=residual, dtype=dtype)
    return Twins(LOSSES["ce"], OPTIMIZERS[optimizer], dtype, model, **more)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, residual: bool) -> None:
    """Twins start each of their steps from the same state of the generator."""
    train_twins(optimizer, residual).check(8)
    train_twins(optimizer, residual, max_grad_norm=0.05).check(4)


@pytest.mark.parametrize("optimizer", SMOOTH)
def test_in_float32(isa: str, optimizer: str) -> None:
    twins = Twins(
        LOSSES["mse"], SMOOTH[optimizer], torch.float32,
        FusedMLP([7, 19, 19, 5], activation="gelu", dropout=0.3, residual=True),
    )  # fmt: skip
    twins.check(4, float32_bound(4, [7, 19, 19, 5]))


def test_a_step_by_modes_and_probabilities() -> None:
    """Whatever the modules are at the time of a step."""
    twins = train_twins("sgd-momentum", residual=True)
    twins.check(2)
    twins.step.model.eval()
    twins.plain.eval()
    state = torch.get_rng_state()
    x, y = twins.batch()
    torch.set_rng_state(state)
    twins.train(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    for model in (twins.model, twins.plain):
        model.train()
        one, two = (m for m in model.modules() if isinstance(m, nn.Dropout))
        one.p, two.training = 0.8, False
    twins.check(2)


def test_a_trained_part() -> None:
    """Frozen layers, with dropout before and after what is trained."""
    for frozen in ((0, 1), (0, 1, 2, 3), (4, 5), (2, 3), (1, 3), (0, 2, 4), (2, 3, 4, 5)):
        twins = train_twins("adam", residual=True)
        for model in (twins.model, twins.plain):
            for index, p in enumerate(model.parameters()):
                p.requires_grad_(index not in frozen)
        before = [p.detach().clone() for p in twins.model.parameters()]
        twins.check(3)
        for index, p in enumerate(twins.model.parameters()):
            assert torch.equal(before[index], p) == (index in frozen), (frozen, index)


SPARSE_SIZES = [90, 200, 200, 5]  # where leaving steps out pays in both products


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("value", [0.0, -0.4242])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_sparse_inputs(isa: str, optimizer: str, value: float, clip: float | None) -> None:
    """Steps are left out, and dropout follows the first layer, whose weight is kept in panels."""
    model = FusedMLP(SPARSE_SIZES, activation="gelu", dropout=0.5, residual=True).double()
    twins = SparseTwins(
        make_optimizer=OPTIMIZERS[optimizer], sizes=SPARSE_SIZES, max_grad_norm=clip, value=value,
        model=model,
    )  # fmt: skip
    twins.check(3)
    _C.record_kernels(True)
    twins.train(*twins.batch())


@pytest.mark.parametrize("residual", [False, True])
def test_one_sparse_layer(isa: str, residual: bool) -> None:
    """… that is the first and the last, and where it adds its input, square."""
    for sizes in ([200, 200], [90, 200]):
        layers: list[nn.Module] = [nn.Linear(*sizes), nn.GELU(), nn.Dropout(0.4)]
        block = [Residual(*layers)] if residual and sizes[0] == sizes[1] else layers
        model = FusedMLP.from_sequential(nn.Sequential(*block).double())
        for value in (0.0, -0.4242):
            twins = SparseTwins(LOSSES["mse"], sizes=sizes, model=copy.deepcopy(model), value=value)
            twins.check(3)
    _C.record_kernels(True)
    twins.train(*twins.batch())


def test_what_a_step_needs_is_told() -> None:
    """A dropout that does not run fused is an error that says so, when made and later."""
    bad = nn.Sequential(nn.Linear(7, 5), nn.AlphaDropout())
    with pytest.raises(ValueError, match=r"module 1, AlphaDropout.* is not fused"):
        TrainStep(bad, nn.CrossEntropyLoss(), SGD(bad.parameters(), 0.1))
    model = FusedMLP([7, 6, 5], dropout=0.5)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
    before = [p.detach().clone() for p in model.parameters()]
    model[2].inplace = True
    with pytest.raises(RuntimeError, match="module 2 works in place"):
        step(torch.randn(4, 7), torch.randint(5, (4,)))
    with pytest.raises(RuntimeError, match="module 2 works in place"):
        step.fit((torch.randn(4, 7), torch.randint(5, (4,))), 2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_nested_sequentials() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(7, 8), nn.ReLU()), nn.Dropout(0.3),
        nn.Sequential(Residual(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2))), nn.Linear(8, 5),
    )  # fmt: skip
    Twins(LOSSES["ce"], OPTIMIZERS["adam"], model=model.double()).check(10)


# fit ----------------------------------------------------------------------------------------------


def pair(optimizer: str = "adam", **options: Any) -> tuple[TrainStep, nn.Sequential, Any]:
    """A step, and a plain twin of its model with an optimizer of its own."""
    torch.manual_seed(5)
    model = FusedMLP([12, 9, 9, 3], dropout=0.3, residual=True, dtype=torch.float64)
    twin = plain_twin(model)
    make = OPTIMIZERS[optimizer]
    step = TrainStep(model, nn.CrossEntropyLoss(), make(model, 1), **options)
    return step, twin, make(twin, 1)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator"])
@pytest.mark.parametrize("batch_size", [1, 10, 53, 100])
def test_fit_is_the_loop_over_a_data_loader(batch_size: int, own: bool, shuffle: bool) -> None:
    """The order from a generator of its own, or from the one that dropout draws from."""
    x, y = torch.randn(53, 12, dtype=torch.float64), torch.randint(3, (53,))
    step, twin, optimizer = pair()
    orders = [torch.Generator().manual_seed(7) if own else None for _ in range(2)]
    torch.manual_seed(11)
    loader = DataLoader(TensorDataset(x, y), batch_size, shuffle, generator=orders[0])
    losses = []
    for _ in range(2):
        for inputs, labels in loader:
            loss = plain_step(twin, nn.CrossEntropyLoss(), optimizer, inputs, labels)
            losses.append(loss.item() * len(labels))
    after = torch.get_rng_state()
    torch.manual_seed(11)
    reports = step.fit((x, y), batch_size, epochs=2, shuffle=shuffle, generator=orders[1])
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(step.model, twin)
    total = sum(report.loss for report in reports)
    assert total == pytest.approx(sum(losses) / len(x), rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
def test_fit_is_steps(isa: str, dtype: torch.dtype, optimizer: str) -> None:
    """Bit for bit, on inputs with and without steps to leave out; clipped as well."""
    for density, clip in ((0.02, None), (1.0, None), (0.02, 0.05)):
        x = sparse(409, 90, density, 0.0, dtype) if density < 1 else torch.randn(409, 90).to(dtype)
        y = torch.randint(5, (len(x),))
        results = []
        for fits in (True, False):
            torch.manual_seed(2)
            model = FusedMLP(SPARSE_SIZES, dropout=0.5, residual=True, dtype=dtype)
            step = TrainStep(
                model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1), max_grad_norm=clip
            )
            torch.manual_seed(9)
            if fits:
                step.fit((x, y), 100, epochs=2, shuffle=False, generator=torch.Generator())
            else:
                for batch in 2 * list(zip(x.split(100), y.split(100), strict=True)):
                    step(*batch)
            results.append([p.detach() for p in model.parameters()] + [torch.get_rng_state()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), (density, clip)


@pytest.mark.parametrize("drawn_on", [0.06, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_on_bytes(isa: str, drawn_on: float, optimizer: str) -> None:
    """Images, the zeros of most of which become one value: steps are left out then."""
    images = torch.randint(1, 256, (310, 28, 28), dtype=torch.uint8)
    images[torch.rand(images.shape) >= drawn_on] = 0
    labels = torch.randint(5, (310,))
    floats = ((images.double() / 255) - 0.13) / 0.31
    transform = Compose([ToTensor(), Normalize((0.13,), (0.31,))])
    results = []
    for data in ((floats, labels), ImageDataset(images, labels, transform)):
        torch.manual_seed(3)
        model = FusedMLP([784, 200, 200, 5], dropout=0.5, residual=True, dtype=torch.float64)
        step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1))
        _C.record_kernels(True)
        step.fit(data, 100, epochs=2)
        assert any(name.startswith("listed") for name in _C.recorded_kernels()) == (drawn_on < 1)
        results.append([p.detach() for p in model.parameters()])
    # The inputs differ by three roundings, which eight steps hand on; Adam divides by a gradient's
    # size, however small.
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_fit_in_evaluation_mode_draws_no_masks() -> None:
    x, y = torch.randn(53, 12, dtype=torch.float64), torch.randint(3, (53,))
    step, twin, optimizer = pair("sgd-momentum", max_grad_norm=0.1)
    step.model.eval()
    state = torch.get_rng_state()
    step.fit((x, y), 10, shuffle=False, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)
    twin.eval()
    for batch in zip(x.split(10), y.split(10), strict=True):
        plain_step(twin, nn.CrossEntropyLoss(), optimizer, *batch, 0.1)
    assert_same(step.model, twin)


def test_fit_sees_what_a_callback_changes() -> None:
    """A probability that grows, and then a mode."""
    x, y = torch.randn(60, 12, dtype=torch.float64), torch.randint(3, (60,))
    step, twin, optimizer = pair()

    def change(model: nn.Module, batch: int) -> None:
        for dropout in model.modules():
            if isinstance(dropout, nn.Dropout):
                dropout.p = batch / 8
                dropout.train(batch < 4)

    torch.manual_seed(1)
    for number, batch in enumerate(zip(x.split(10), y.split(10), strict=True), 1):
        plain_step(twin, nn.CrossEntropyLoss(), optimizer, *batch)
        if number % 2 == 0:
            change(twin, number)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    step.fit(
        (x, y), 10, shuffle=False, generator=torch.Generator(), callback_every=2,
        callback=lambda report: change(step.model, report.batch),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(step.model, twin)


def test_steps_on_any_number_of_threads(threads: int) -> None:
    x, y = sparse(300, 300, 0.05), torch.randint(10, (300,))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        model = FusedMLP([300, 257, 257, 10], dropout=0.5, residual=True)
        step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
        step.fit((x, y), 128, epochs=2)
        step(x[:77], y[:77])
        results.append([p.detach() for p in model.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_an_error_leaves_the_generator_as_it_was() -> None:
    model = FusedMLP([5, 4, 3], dropout=0.5)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    state = torch.get_rng_state()
    for call in (model, lambda x: step(x, torch.zeros(2, dtype=torch.int64))):
        with pytest.raises(RuntimeError, match="shape"):
            call(torch.randn(2, 4, generator=torch.Generator()))
        assert torch.equal(torch.get_rng_state(), state)


def test_a_wrong_mask_shows() -> None:
    """The comparison can fail: with the generator one word further, it does."""
    twins = train_twins()
    twins.check(1)
    x, y = twins.batch()
    expected = plain_step(twins.plain, twins.plain_loss, twins.plain_optimizer, x, y)
    torch.manual_seed(1)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(twins.step(x, y), expected, EXACT, "loss")
