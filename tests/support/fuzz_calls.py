"""Random calls beside plain torch: shapes, strides, dtypes, values and options.

    python tests/support/fuzz_calls.py --seed 1 --count 100000

Each call follows from the seed and its number alone, so that one of them can be made again
(`--first N --count 1`). What is not as torch has it, within bounds, ends the program with the
call's number and description.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import torch
from fused import LIBRARY_ALONE, check, mlp
from layouts import LAYOUTS
from reference import ACTIVATIONS, Problem
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from twins import EXACT, LOSSES, OPTIMIZERS, Twins, assert_close, plain_twin

from fastmlp import _C, FusedMLP, Residual, TrainStep

# Around the widths of vectors and of tiles, and some in between.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100, 129)
LARGE = (255, 300, 385, 513, 784, 1000)
SPECIAL = (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 2.0)

SMOOTH: tuple[Callable[[random.Random], nn.Module], ...] = (
    lambda _: nn.Tanh(),
    lambda _: nn.Sigmoid(),
    lambda _: nn.GELU(),
    lambda _: nn.GELU(approximate="tanh"),
    lambda _: nn.SiLU(),
    lambda draw: nn.ELU(draw.choice((0.5, 1.0))),
    lambda _: nn.Mish(),
    lambda draw: nn.Softplus(draw.choice((0.5, 1.0)), draw.choice((5.0, 20.0))),
    lambda draw: nn.CELU(draw.choice((0.5, 1.0))),
)
KINKED: tuple[Callable[[random.Random], nn.Module], ...] = (
    lambda _: nn.ReLU(),
    lambda draw: nn.LeakyReLU(draw.choice((0.01, 0.3))),
    lambda _: nn.ReLU6(),
    lambda _: nn.Hardswish(),
    lambda _: nn.SELU(),
)


def width(draw: random.Random) -> int:
    return draw.choice(LARGE) if draw.random() < 0.05 else draw.choice(EDGES)


def sizes(draw: random.Random, deepest: int = 5) -> list[int]:
    several = [width(draw) for _ in range(draw.randint(2, deepest + 1))]
    if draw.random() < 0.3:  # equal ones, as residual layers are
        several = [several[0]] * (len(several) - 1) + [several[-1]]
    return several


def rows(draw: random.Random) -> int:
    return 0 if draw.random() < 0.02 else width(draw)


def mostly_one_value(draw: random.Random, x: Tensor) -> Tensor:
    """What a first layer multiplies in another way."""
    background = draw.choice((0.0, 0.0, -0.5, 2.0))
    return torch.where(torch.rand_like(x) < draw.choice((0.02, 0.1, 0.3)), x, background)


def dtype(draw: random.Random) -> torch.dtype:
    return draw.choice((torch.float32, torch.float64))


def laid_out(draw: random.Random, tensor: Tensor) -> Tensor:
    name = draw.choice([name for name in LAYOUTS if tensor.dim() > 1 or name != "windows"])
    return LAYOUTS[name](tensor) if tensor.numel() else tensor


def network(draw: random.Random) -> str:
    """Forward and backward as an operator, within the bounds of its arithmetic."""
    shape = [draw.randint(1, 3) for _ in range(draw.randint(0, 2))]
    problem = Problem.random(
        [*shape, width(draw)] if draw.random() < 0.95 else [],
        sizes(draw), dtype(draw),
        hidden=draw.choice(list(ACTIVATIONS)), output=draw.choice([None, *ACTIVATIONS]),
        bias=draw.random() < 0.8, dropout=draw.choice((0.0, 0.0, 0.3)),
        residual=draw.random() < 0.3,
    )  # fmt: skip
    if draw.random() < 0.25:
        x = mostly_one_value(draw, problem.x)
        values, counts = x.unique(return_counts=True)
        background = float(values[counts.argmax()]) if counts.numel() else 0.0
        problem = replace(problem, x=x, background=background)
    problem = replace(
        problem,
        x=laid_out(draw, problem.x) if problem.background == 0 else problem.x,
        weights=[laid_out(draw, w) for w in problem.weights],
        biases=[b if b is None else laid_out(draw, b) for b in problem.biases],
        grad_output=laid_out(draw, problem.grad_output),
    )
    check(problem)
    # As much with only some gradients wanted: to the bit, but for the library's products.
    if draw.random() < 0.3 and _C.get_tuning()["library_least"] > 1:
        whole, chosen = problem.run(mlp(problem)).named(), {}
        x = problem.x.detach().requires_grad_(draw.random() < 0.5)
        weights = [w.detach().requires_grad_(draw.random() < 0.5) for w in problem.weights]
        biases = [b if b is None else b.detach() for b in problem.biases]
        y = mlp(problem)(x, weights, list(biases))
        wanted = {"dx": x, **{f"dW{i}": w for i, w in enumerate(weights)}}
        wanted = {name: t for name, t in wanted.items() if t.requires_grad}
        if wanted:
            found = torch.autograd.grad(y, list(wanted.values()), problem.grad_output)
            chosen = dict(zip(wanted, found, strict=True))
        for name, tensor in chosen.items():
            assert torch.equal(tensor, whole[name]), f"{name} of some gradients alone"
    return f"network {tuple(problem.x.shape)} of {len(problem.weights)} layers"


def modules(draw: random.Random, kinks: bool) -> list[nn.Module]:
    """Layers in torch's modules, all of float64."""
    options = SMOOTH + KINKED if kinks else SMOOTH
    dropout = draw.choice((0.0, 0.0, 0.2))
    made: list[nn.Module] = []
    for m, n in pairwise(sizes(draw, 4)):
        layer: list[nn.Module] = [nn.Linear(m, n, bias=draw.random() < 0.8)]
        if draw.random() < 0.8:
            layer.append(draw.choice(options)(draw))
        if dropout:
            layer.append(nn.Dropout(dropout))
        if draw.random() < 0.1:
            layer.append(nn.Identity())
        residual = m == n and draw.random() < 0.5
        made += [Residual(*layer)] if residual else layer
    return [module.double() for module in made]


def model_of(draw: random.Random, kinks: bool) -> FusedMLP:
    model = FusedMLP.from_sequential(nn.Sequential(*modules(draw, kinks)))
    for parameter in model.parameters():
        parameter.requires_grad_(draw.random() < 0.85)
    return model.train(draw.random() < 0.8)


def features_of(model: nn.Module) -> tuple[int, int]:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[0].in_features, linears[-1].out_features


def module(draw: random.Random) -> str:
    """A model of modules against its plain Sequential, under torch's modes."""
    model = model_of(draw, kinks=True)
    plain = plain_twin(model)
    x = laid_out(draw, torch.randn(rows(draw), features_of(model)[0]).double())
    mode = draw.choice((torch.enable_grad, torch.enable_grad, torch.no_grad, torch.inference_mode))
    seed, results = draw.getrandbits(32), []
    for network in (model, plain):
        torch.manual_seed(seed)
        x = x.detach().requires_grad_(draw.random() < 0.5 if network is model else x.requires_grad)
        with mode():
            y = network(x)
        wanted = [t for t in (x, *network.parameters()) if t.requires_grad]
        gradients: tuple[Tensor, ...] = ()
        if y.requires_grad:
            gradients = torch.autograd.grad(y.square().sum(), wanted)
        results.append((y, *gradients))
    assert len(results[0]) == len(results[1]), "other gradients"
    for number, (a, b) in enumerate(zip(*results, strict=True)):
        # A dimension of one element may have any stride.
        a, b = (t.clone(memory_format=torch.contiguous_format) for t in (a, b))
        assert_close(a, b, EXACT, f"result {number}")
    return f"module {model} on {tuple(x.shape)}"


def step(draw: random.Random) -> str:
    """Training steps against the plain loop."""
    model = model_of(draw, kinks=False)
    loss = draw.choice(list(LOSSES))
    features, outputs = features_of(model)
    if "weight" in loss or "all" in loss or loss in ("ce-ignore",):  # weights of five classes
        last = nn.Linear(outputs, 5).double()
        model.append(last)
    next(model.parameters()).requires_grad_()  # else the plain loop has nothing to derive
    optimizer = draw.choice(list(OPTIMIZERS))
    if optimizer.endswith("groups") and any(
        m.bias is None for m in model.modules() if isinstance(m, nn.Linear)
    ):
        optimizer = "sgd"
    clip = draw.choice((None, None, 0.1))
    twins = Twins(LOSSES[loss], OPTIMIZERS[optimizer], model=model, max_grad_norm=clip)
    count = draw.choice(EDGES)
    sparse = draw.random() < 0.3
    for number in range(draw.randint(1, 3)):
        x, y = twins.batch(count)
        x = laid_out(draw, mostly_one_value(draw, x) if sparse else x)
        if isinstance(y, Tensor) and y.is_floating_point() and draw.random() < 0.5:
            y = LAYOUTS[draw.choice(("offset", "padded", "strided"))](y)
        actual, expected = twins.train(x, y)
        assert_close(actual, expected, EXACT, f"loss of step {number}")
    # All but SGD divide a gradient by its size.
    twins.compare(EXACT if optimizer.startswith("sgd") else 1e-7)
    return f"step {loss} {optimizer} {model} on {count} rows of {features}"


def fit(draw: random.Random) -> str:
    """An epoch of fit against the plain loop over its batches."""
    features, classes = draw.choice(EDGES), draw.choice(EDGES)
    model = FusedMLP(
        [features, width(draw), classes], activation="tanh", dropout=draw.choice((None, 0.2)),
        dtype=dtype(draw),
    )  # fmt: skip
    kind = next(model.parameters()).dtype
    plain = plain_twin(model)
    count, size = draw.choice(EDGES) + 20, draw.choice(EDGES)
    bytes_ = draw.random() < 0.4
    x: Tensor = torch.randint(256, (count, features), dtype=torch.uint8)
    x = x if bytes_ else mostly_one_value(draw, torch.randn(count, features, dtype=kind))
    y = torch.randint(classes, (count,))
    optimizer = OPTIMIZERS[draw.choice(("sgd", "sgd-momentum", "sgd-nesterov-decay"))]
    ours, theirs = optimizer(model, 1), optimizer(plain, 1)
    loss = nn.CrossEntropyLoss()
    seed = draw.getrandbits(32)
    torch.manual_seed(seed)
    drop_last = draw.random() < 0.3 and size <= count
    TrainStep(model, loss, ours).fit(
        (x, y), size, shuffle=False, drop_last=drop_last, progress=False
    )
    torch.manual_seed(seed)
    batches = DataLoader(TensorDataset(x, y), size, drop_last=drop_last)
    for batch, labels in batches:
        theirs.zero_grad()
        loss(plain(batch.to(kind) / 255 if bytes_ else batch), labels).backward()
        theirs.step()
    steps, eps = len(batches), torch.finfo(kind).eps
    # As float32_bound() of test_train_step.py has it, in the depth of these sums.
    bound = max(EXACT, steps * eps * (features + model[0].out_features + classes + size + 30))
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert_close(a, b, bound if kind == torch.float32 else EXACT, name)
    return f"fit {model} on {count} rows, {size} a batch"


def special(draw: random.Random) -> str:
    """NaN, infinities and zeros in every operand: in the same places as with torch."""
    # What torch derives of these at NaN depends on whether a vector or the rest computes it.
    unsettled = ("elu", "selu", "celu", "hardswish", "relu6")
    activation = draw.choice([name for name in ACTIVATIONS if name not in unsettled])
    model = FusedMLP(sizes(draw, 3), activation=activation, dtype=torch.float64)
    plain = plain_twin(model)
    x = torch.randn(draw.choice(EDGES), features_of(model)[0]).double()
    if draw.random() < 0.3:
        x = mostly_one_value(draw, x)
    operands = [x, *(p.data for p in model.parameters())]
    for tensor in draw.sample(operands, draw.randint(1, min(2, len(operands)))):
        for _ in range(draw.randint(1, 3)):
            tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(SPECIAL)
    plain.load_state_dict(model.state_dict())
    results = []
    for network in (model, plain):
        given = x.detach().requires_grad_()
        y = network(given)
        results.append((y.detach(), *torch.autograd.grad(y.sum(), [given, *network.parameters()])))
    for number, (a, b) in enumerate(zip(*results, strict=True)):
        assert torch.equal(a.isnan(), b.isnan()), f"result {number}: NaN elsewhere"
        infinite = b.isinf()
        assert torch.equal(a[infinite], b[infinite]), f"result {number}: other infinities"
        finite = b.isfinite()
        assert bool(a[finite].isfinite().all()), f"result {number}: more infinities"
        if finite.any():
            off = (a[finite] - b[finite]).abs().max()
            assert off <= EXACT * max(1.0, float(b[finite].abs().max())), f"result {number}: {off}"
    return f"special {activation} {tuple(x.shape)}"


CALLS: dict[Callable[[random.Random], str], int] = {
    network: 4, module: 3, step: 4, fit: 1, special: 3,
}  # fmt: skip


@contextmanager
def setting(draw: random.Random, library: bool) -> Iterator[str]:
    """An instruction set, a number of threads, and whether all products are the library's."""
    isa, threads = _C.get_isa(), torch.get_num_threads()
    chosen, count = draw.choice(_C.available_isas()), draw.choice((1, 1, 2, 3))
    if library:
        count = 1  # more of its threads than cores wait for each other in every product
    _C.set_isa(chosen)
    torch.set_num_threads(count)
    _C.allow_library(library)
    if library:
        _C.set_tuning(LIBRARY_ALONE)
    try:
        yield f"{chosen}, {count} threads" + (", library" if library else "")
    finally:
        _C.set_isa(isa)  # and its tuning
        _C.allow_library(False)
        torch.set_num_threads(threads)


def run(seed: int, first: int, count: int, tell: Callable[[str], object] | None = None) -> Counter:
    """Makes calls number first … first + count - 1.

    Raises:
        AssertionError: one was not as it should be; says which.
    """
    made: Counter[str] = Counter()
    kinds, weights = list(CALLS), list(CALLS.values())
    for number in range(first, first + count):
        draw = random.Random(f"{seed}/{number}")
        torch.manual_seed(draw.getrandbits(63))
        call = draw.choices(kinds, weights)[0]
        # Drawn apart, so that the calls are those that they were before there was a library.
        library = random.Random(f"{seed}/{number}/library").random() < 0.3
        with setting(draw, library) as where:
            try:
                call(draw)
            except Exception as error:
                raise AssertionError(
                    f"call {number} of seed {seed} ({call.__name__}, {where}): {error}"
                ) from error
        made[call.__name__] += 1
        if tell is not None:
            tell(f"{number}: {dict(made)}")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(line, flush=True)

    print(dict(run(options.seed, options.first, options.count, tell)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
