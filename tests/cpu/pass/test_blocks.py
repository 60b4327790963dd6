"""Large batches of narrow layers, whose blocks of rows go through all layers one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from edges import NETWORKS
from fused import check, check_threads, mlp
from layouts import LAYOUTS, Layout
from reference import Problem
from torch import nn
from twins import EXACT, LOSSES, OPTIMIZERS, Twins

from fastmlp import _C, FusedMLP, TrainStep

CACHE = 1 << 20
LEAST = 4 * 192  # rows, from which on a batch is cut
SIZES = [17, 64, 64, 6]


@pytest.fixture(autouse=True)
def _cache() -> Iterator[None]:
    """One size on every machine: it says how many parameters are few."""
    _C.set_second_level_cache_bytes(CACHE)
    yield
    _C.set_second_level_cache_bytes(0)


def blocks(isa: str, dtype: torch.dtype, form: str = "blocks") -> set[tuple[int, int]]:
    """Rows and number of the blocks that ran since the record began, passes or whole steps."""
    found = [name.split("_") for name in _C.recorded_kernels() if name.startswith(f"{form}_")]
    kind = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    assert all(name[1] == kind and name[3] == isa for name in found)
    return {(int(rows), int(count)) for rows, count in (name[2].split("x") for name in found)}


@pytest.mark.parametrize("batch", [LEAST, LEAST + 1, 1000, 2 * LEAST - 1, 2 * LEAST, 6145, 20011])
def test_every_row_counts_once(isa: str, dtype: torch.dtype, batch: int) -> None:
    check(Problem.random(batch, SIZES, dtype, output="tanh"), str(batch))
    [(rows, count)] = blocks(isa, dtype)
    assert rows * (count - 1) < batch <= rows * count
    assert rows >= 192
    assert 4 <= count <= 128


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (6985, [35, 544, 34]),
        (7978, [5, 581, 4, 260, 19, 199]),
        (6982, [29, 488, 32, 38]),
        (6365, [55, 458, 29, 563, 16, 6]),
    ],
)
def test_a_smaller_last_block(isa: str, threads: int, batch: int, sizes: list[int]) -> None:
    """It may take another form of product, whose buffers are larger (seen by the sanitizers)."""
    _C.set_second_level_cache_bytes(2 << 20)
    problem = Problem.random(batch, sizes)
    for count in (1, 2):
        torch.set_num_threads(count)
        check(problem, f"{count} threads")
    assert blocks(isa, torch.float32)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (LEAST - 1, SIZES),
        (LEAST, [17, 64]),  # no layer waits for another
        (LEAST, [8] * 10),
        (LEAST, [64, 512, 64]),  # its gradients would fill the cache once for each block
    ],
)
def test_others_are_not_cut(isa: str, batch: int, sizes: list[int]) -> None:
    check(Problem.random(batch, sizes))
    assert not blocks(isa, torch.float32)


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_networks(isa: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(Problem.random(900, [33, 33, 33, 5], dtype, **options))
    assert blocks(isa, dtype)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["x", "grad_output"])
def test_layouts(isa: str, layout: Layout, which: str) -> None:
    plain = Problem.random((2, 450), [17, 16, 5])
    check(replace(plain, **{which: layout(getattr(plain, which))}))
    assert blocks(isa, torch.float32)


@pytest.mark.parametrize("frozen", ["0", "1", "2", "0 1", "bias", "all"])
def test_frozen_parameters(isa: str, frozen: str) -> None:
    model = FusedMLP(SIZES).double()
    twin = model.as_sequential()
    for network in (model, twin):
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(linear):
            for name, parameter in layer.named_parameters():
                stays = frozen == "all" or str(number) in frozen or name == frozen
                parameter.requires_grad_(not stays)
        parameters = [p for p in network.parameters() if p.requires_grad]
        x = torch.linspace(-1, 1, 1000 * SIZES[0], dtype=torch.float64).view(1000, -1)
        x.requires_grad_(True)
        gradients = torch.autograd.grad(network(x).square().sum(), [x, *parameters])
        if network is model:
            expected = gradients
    for one, other in zip(expected, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert blocks(isa, torch.float64)


@pytest.mark.parametrize("sizes", [SIZES, [64, 64, 6], [100, 33, 65, 3]])
def test_some_gradients_alone(isa: str, dtype: torch.dtype, sizes: list[int]) -> None:
    """Which are wanted changes no bit of them, whether or not the input may be sparse."""
    problem = Problem.random(1000, sizes, dtype)
    whole = problem.run(mlp(problem)).named()
    for wanted in range(len(problem.weights)):
        weights = [w.detach().requires_grad_(i == wanted) for i, w in enumerate(problem.weights)]
        y = mlp(problem)(problem.x, weights, list(problem.biases))
        [found] = torch.autograd.grad(y, [weights[wanted]], problem.grad_output)
        assert torch.equal(found, whole[f"dW{wanted}"])


@pytest.mark.parametrize("batch", [LEAST, 1001])
def test_bits_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, threads: int, batch: int
) -> None:
    check_threads(Problem.random(batch, SIZES, dtype), 2, 3, 8)
    assert blocks(isa, dtype)


# A block goes through the whole step: forward, loss, backward.


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_steps(isa: str, optimizer: str, max_grad_norm: float | None) -> None:
    model = FusedMLP(SIZES, activation="gelu", dtype=torch.float64)
    twins = Twins(LOSSES["ce"], OPTIMIZERS[optimizer], model=model, max_grad_norm=max_grad_norm)
    for rows in (1000, LEAST, 50, 1000):
        twins.check(2, EXACT, rows)
    assert blocks(isa, torch.float64, "steps")


@pytest.mark.parametrize("loss", [name for name, case in LOSSES.items() if case.size == 1])
def test_losses_of_steps(isa: str, loss: str) -> None:
    Twins(LOSSES[loss], OPTIMIZERS["adam"]).check(2, EXACT, 1001)
    assert blocks(isa, torch.float64, "steps")


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"residual": True},
        {"dropout": 0.3, "residual": True, "activation": "silu", "output_activation": "tanh"},
    ],
    ids=str,
)
def test_networks_of_steps(isa: str, options: dict[str, Any]) -> None:
    model = FusedMLP([13, 13, 13, 5], dtype=torch.float64, **{"activation": "gelu", **options})
    Twins(LOSSES["mse"], OPTIMIZERS["adam"], model=model).check(3, EXACT, 1000)
    assert blocks(isa, torch.float64, "steps")


@pytest.mark.parametrize("frozen", [(0,), (0, 1), (2, 3), (4, 5), (1, 3, 5), range(5)], ids=str)
def test_frozen_layers_of_steps(isa: str, frozen: Sequence[int]) -> None:
    twins = Twins(model=FusedMLP(SIZES, activation="gelu", dtype=torch.float64))
    for network in (twins.model, twins.plain):
        parameters = list(network.parameters())
        for index in frozen:
            parameters[index].requires_grad_(False)
    twins.check(2, EXACT, 1000)
    assert blocks(isa, torch.float64, "steps")


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_bits_of_steps_do_not_depend_on_threads(
    isa: str, dtype: torch.dtype, threads: int, max_grad_norm: float | None
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(1001, SIZES[0], dtype=dtype), torch.randint(SIZES[-1], (1001,))
    first = FusedMLP(SIZES, dtype=dtype)
    found = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        model = copy.deepcopy(first)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=max_grad_norm)
        losses = [step(x, y) for _ in range(2)]
        found.append([*losses, *(p.detach() for p in model.parameters())])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert blocks(isa, dtype, "steps")
