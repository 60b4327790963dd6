"""BatchNorm1d as a layer of a network: numbers, gradients and running averages are torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import assert_as_plain, assert_same_bits_on_threads
from numerics import POISONS
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from twins import OPTIMIZERS, Twins, assert_close

import fastmlp
from fastmlp import _C, FusedMLP, Residual, TrainStep

MODE = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def filled(model: nn.Module) -> nn.Module:
    """With norms whose numbers are not those that they begin with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0.5)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def fused(*modules: nn.Module) -> FusedMLP:
    return FusedMLP.from_sequential(filled(nn.Sequential(*modules)).double())  # type: ignore[arg-type]


def usual(n: int) -> FusedMLP:
    return fused(
        nn.Linear(5, n), nn.BatchNorm1d(n), nn.ReLU(), nn.Linear(n, n), nn.Tanh(),
        nn.BatchNorm1d(n), nn.Linear(n, 3),
    )  # fmt: skip


def assert_fused(model: FusedMLP, x: Tensor) -> None:
    """Both readers of modules agree, and numbers, gradients and buffers are the plain network's."""
    assert model.why_plain(x) is None
    twin = copy.deepcopy(model)
    assert _C.run_modules(twin._modules, x) is not None
    twin = copy.deepcopy(model)
    plain = twin.as_sequential()
    assert_as_plain(copy.deepcopy(model), x)
    for seed in range(3):
        for network in (model, plain):
            torch.manual_seed(seed)
            network(x + seed)
    assert_same_buffers(model, plain)


def assert_same_buffers(model: nn.Module, plain: nn.Module) -> None:
    ours, theirs = dict(model.named_buffers()), dict(plain.named_buffers())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@MODE
@pytest.mark.parametrize("rows", [2, 3, 17, 65])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70])
def test_sizes(isa: str, rows: int, n: int, training: bool) -> None:
    assert_fused(usual(n).train(training), torch.randn(rows, 5, dtype=torch.float64))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_in_evaluation(isa: str, rows: int) -> None:
    assert_fused(usual(9).eval(), torch.randn(rows, 5, dtype=torch.float64))


PLACES: dict[str, Callable[[], list[nn.Module]]] = {
    "front": lambda: [nn.BatchNorm1d(9), nn.Linear(9, 4)],
    "end": lambda: [nn.Linear(9, 4), nn.BatchNorm1d(4)],
    "before the activation": lambda: [
        nn.Linear(9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2),
    ],
    "after the activation": lambda: [
        nn.Linear(9, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2),
    ],
    "two in a row": lambda: [
        nn.Linear(9, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 2),
    ],
    "beside another norm": lambda: [
        nn.LayerNorm(9), nn.BatchNorm1d(9), nn.Linear(9, 4), nn.RMSNorm(4), nn.BatchNorm1d(4),
    ],
    "after dropout": lambda: [
        nn.Linear(9, 4), nn.SiLU(), nn.Dropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 2),
    ],
    "everywhere": lambda: [
        nn.BatchNorm1d(9), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2),
        nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(),
    ],
    "in blocks": lambda: [
        nn.Linear(9, 4),
        Residual(nn.BatchNorm1d(4), nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4)),
        Residual(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ELU()),
        Residual(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.BatchNorm1d(4)),
        nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2),
    ],
    "of one column": lambda: [
        nn.Linear(9, 1), nn.BatchNorm1d(1), nn.Tanh(), nn.Linear(1, 3), nn.BatchNorm1d(3),
    ],
}  # fmt: skip


@MODE
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("frozen", ["none", "norms", "linear layers", "lower"])
def test_places(place: str, frozen: str, training: bool) -> None:
    model = fused(*PLACES[place]()).train(training)
    modules = list(model)
    for i, module in enumerate(modules):
        if frozen == "lower":
            module.requires_grad_(i >= len(modules) // 2)
        elif frozen != "none":
            module.requires_grad_(isinstance(module, nn.BatchNorm1d) != (frozen == "norms"))
    x = torch.randn(11, 9, dtype=torch.float64)
    assert_fused(model, x)
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        return
    outcomes = []
    for network in (model, model.as_sequential()):  # an input that wants no gradient
        torch.manual_seed(3)
        outcomes.append(torch.autograd.grad(network(x).square().sum(), wanted))
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-11)


VARIANTS: dict[str, Callable[[], nn.BatchNorm1d]] = {
    "no weight": lambda: nn.BatchNorm1d(6, affine=False),
    "a large eps": lambda: nn.BatchNorm1d(6, eps=0.5),
    "another momentum": lambda: nn.BatchNorm1d(6, momentum=0.7),
    "momentum of 0": lambda: nn.BatchNorm1d(6, momentum=0.0),
    "a whole momentum": lambda: nn.BatchNorm1d(6, momentum=1),
    "cumulative": lambda: nn.BatchNorm1d(6, momentum=None),
    "no averages": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "nothing at all": lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False),
}


@MODE
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, training: bool) -> None:
    model = fused(nn.Linear(4, 6), VARIANTS[variant](), nn.ReLU()).train(training)
    assert_fused(model, torch.randn(5, 4, dtype=torch.float64))


def test_averages_that_are_no_longer_kept() -> None:
    model = usual(7)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.track_running_stats = False
    before = [buffer.clone() for buffer in model.buffers()]
    assert_fused(model, torch.randn(5, 5, dtype=torch.float64))
    torch.testing.assert_close(list(model.buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_count_that_is_not_there(momentum: float | None) -> None:
    model = usual(7)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.momentum, module.num_batches_tracked = momentum, None
    assert_fused(model, torch.randn(5, 5, dtype=torch.float64))


def test_averages_may_move_between_forward_and_backward() -> None:
    """As torch's operators have it: those of evaluation are not said to be written."""
    model = usual(7)
    plain, x = copy.deepcopy(model).as_sequential(), torch.randn(6, 5, dtype=torch.float64)
    outcomes = []
    for network in (model, plain):
        a, b = network.eval()(x), network.train()(x)
        outcomes.append(torch.autograd.grad((a - b).square().sum(), list(network.parameters())))
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-11)
    counts = [one.num_batches_tracked._version for one in model if isinstance(one, nn.BatchNorm1d)]
    model(x)
    again = [one.num_batches_tracked._version for one in model if isinstance(one, nn.BatchNorm1d)]
    assert all(new > old for new, old in zip(again, counts, strict=True))


@MODE
@pytest.mark.parametrize("eps", [0.0, -0.5, "small", 0])
def test_an_eps_that_torch_refuses(eps: object, training: bool) -> None:
    model, x = usual(7).train(training), torch.randn(6, 5, dtype=torch.float64)
    model[1].eps = eps
    outcomes: list[object] = []
    for network in (model, model.as_sequential(), fastmlp.fuse(model.as_sequential())):
        try:
            outcomes.append(network(x))
        except (ValueError, TypeError) as error:
            outcomes.append((type(error), str(error)))
    for other in outcomes[1:]:
        if isinstance(outcomes[0], Tensor):
            torch.testing.assert_close(outcomes[0], other)
        else:
            assert outcomes[0] == other


@pytest.mark.parametrize("momentum", [float("nan"), -0.5, 2, torch.tensor(0.3)])
def test_a_momentum_of_another_kind(momentum: float) -> None:
    model, x = usual(7), torch.randn(6, 5, dtype=torch.float64)
    model[1].momentum = momentum
    plain = copy.deepcopy(model).as_sequential()
    assert (model.why_plain(x) is None) == (momentum == 2)
    for network in (model, plain):
        network(x)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_count_without_averages() -> None:
    model, x = usual(7), torch.randn(6, 5, dtype=torch.float64)
    model[1].running_mean = model[1].running_var = None
    assert "counts batches" in str(model.why_plain(x))
    model(x)
    assert model[1].num_batches_tracked == 1


def test_one_norm_by_torch_and_in_a_chain() -> None:
    norm = filled(nn.BatchNorm1d(6))
    plain = nn.Sequential(norm, nn.LogSigmoid(), nn.Linear(6, 6), norm, nn.ReLU()).double()
    fused_model, x = fastmlp.fuse(copy.deepcopy(plain)), torch.randn(8, 6, dtype=torch.float64)
    outcomes = []
    for network in (fused_model, plain):
        y = network(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))])
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-11)
    assert_same_buffers(fused_model, plain)


def test_averages_move_without_gradients_too() -> None:
    model = usual(7)
    plain, x = copy.deepcopy(model).as_sequential(), torch.randn(6, 5, dtype=torch.float64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(x), plain(x))
    assert_same_buffers(model, plain)
    assert model[1].num_batches_tracked == 2


def test_averages_that_want_a_gradient_are_left_to_torch() -> None:
    model, x = usual(7).eval(), torch.randn(4, 5, dtype=torch.float64)
    model[1].running_mean.requires_grad_()
    assert "mean requires a gradient" in str(model.why_plain(x))
    for network in (model, model.as_sequential()):
        with pytest.raises(RuntimeError, match="not differentiable with respect to argument"):
            network(x)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_one_is_torchs(rows: int) -> None:
    """An error of torch's, or its numbers, and torch's averages."""
    model, x = usual(7), torch.randn(rows, 5, dtype=torch.float64)
    plain = copy.deepcopy(model).as_sequential()
    assert "fewer than two rows" in str(model.why_plain(x))
    if rows == 1:
        for network in (model, plain):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                network(x)
    else:
        torch.testing.assert_close(model(x), plain(x), equal_nan=True)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@MODE
def test_other_dimensions_are_torchs(training: bool) -> None:
    """The second of three dimensions is that of the channels."""
    model = fused(nn.Linear(5, 4), nn.BatchNorm1d(3)).train(training)
    plain, x = copy.deepcopy(model).as_sequential(), torch.randn(6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x))
    assert_same_buffers(model, plain)
    model = fused(nn.Linear(5, 3), nn.BatchNorm1d(3)).train(training)
    plain = copy.deepcopy(model).as_sequential()
    assert "two dimensions" in str(model.why_plain(x))
    torch.testing.assert_close(model(x), plain(x))
    assert_same_buffers(model, plain)
    for bad in (torch.randn(5).double(), torch.randn(2, 2, 3, 5).double()):
        for network in (model, plain):
            with pytest.raises(ValueError, match="expected 2D or 3D input"):
                network(bad)


def test_of_another_width_raises_as_torch() -> None:
    for modules in ([nn.Linear(4, 6), nn.BatchNorm1d(5)], [nn.BatchNorm1d(5), nn.Linear(5, 2)]):
        model, x = fused(*modules), torch.randn(3, 4).double()
        for network in (model, model.as_sequential()):
            with pytest.raises(RuntimeError, match="running_mean should contain"):
                network(x)


@MODE
@pytest.mark.parametrize("poison", POISONS)
def test_nan_and_infinity(isa: str, poison: float, training: bool) -> None:
    model, x = usual(19).train(training), torch.randn(9, 5, dtype=torch.float64)
    x[4, 2] = poison
    outcomes = []
    for network in (copy.deepcopy(model), copy.deepcopy(model).as_sequential()):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        grads = torch.autograd.grad(y.sum(), [leaf, *network.parameters()])
        outcomes.append([y, *grads, *network.buffers()])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("rows", [3, 64, 1000, 5000])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_float32_is_as_accurate_as_arithmetic_allows(isa: str, rows: int, shift: float) -> None:
    """As of LayerNorm in test_norms.py, of sums that are formed in pairs of runs of 32 rows.

    With u = eps / 2, gamma = (depth + 8) u, m the mean and d = x - m:

        Δd = gamma mean|x| + u |d|
        Δv = gamma v + 2 mean(|d| Δd) + mean(Δd²)            v: mean of d², and eps
        Δz = |w| (Δd s + |d| s Δv / (2 v) + 6 u |d| s) + u |z|   s = 1 / sqrt(v + eps)
    """
    n = 21
    norm = filled(nn.BatchNorm1d(n))
    pick = nn.Linear(n, n, bias=False)
    model = FusedMLP.from_sequential(nn.Sequential(norm, pick))
    with torch.no_grad():
        pick.weight.copy_(torch.eye(n))
        x = torch.randn(rows, n) + shift
        z = model(x).double()
        w, b = norm.weight.double(), norm.bias.double()  # type: ignore[operator]
    depth = 32 + max(0, rows - 1).bit_length()
    u = torch.finfo(torch.float32).eps / 2
    gamma = (depth + 8) * u / (1 - (depth + 8) * u)
    wide = x.double()
    d = wide - wide.mean(0)
    off_d = gamma * wide.abs().mean(0) + u * d.abs()
    v = d.square().mean(0) + 1e-5
    off_v = gamma * v + 2 * (d.abs() * off_d).mean(0) + off_d.square().mean(0)
    s = v.rsqrt()
    exact = d * s * w + b
    bound = w.abs() * s * (off_d + d.abs() * off_v / (2 * v) + 6 * u * d.abs())
    assert ((z - exact).abs() <= bound + 3 * u * exact.abs()).all()


@MODE
def test_bits_do_not_hang_on_threads(training: bool) -> None:
    for n, rows in ((40, 1000), (300, 200), (24, 4096)):
        model = usual(n).float().train(training)
        assert_same_bits_on_threads(model, torch.randn(rows, 5))


@MODE
def test_a_large_batch_of_narrow_layers(training: bool) -> None:
    """In evaluation it goes through the layers in blocks of rows."""
    model, x = usual(24).train(training), torch.randn(3000, 5, dtype=torch.float64)
    plain, wanted = model.as_sequential(), list(model.parameters())
    assert model.why_plain(x) is None
    outcomes = []
    for network in (model, plain):
        y = network(x)
        outcomes.append([y, *torch.autograd.grad(y.square().mean(), wanted)])
    # Of a bias before a norm it is zero, but for what terms of 1/3000 in the mean are rounded to.
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


@MODE
def test_a_sparse_input(isa: str, training: bool) -> None:
    model = fused(
        nn.Linear(200, 90), nn.BatchNorm1d(90), nn.ReLU(), nn.Linear(90, 4)
    ).train(training)  # fmt: skip
    x = torch.zeros(64, 200, dtype=torch.float64)
    x[:, ::9] = torch.rand(64, 23, dtype=torch.float64)
    assert_fused(model, x)


@MODE
def test_second_derivatives(training: bool) -> None:
    model = fused(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).train(training)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


def test_statistics_that_are_written_before_backward_are_an_error() -> None:
    model, x = usual(6).eval(), torch.randn(4, 5, dtype=torch.float64)
    for network in (model, model.as_sequential()):
        y = network(x).sum()
        with torch.no_grad():
            model[1].running_var.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam"])
@pytest.mark.parametrize("rows", [9, 1000])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_steps(optimizer: str, rows: int, clip: float | None) -> None:
    model = fused(
        nn.Linear(7, 19, bias=False), nn.BatchNorm1d(19), nn.GELU(), nn.Dropout(0.2),
        nn.Linear(19, 12), nn.ReLU(), nn.BatchNorm1d(12, affine=False), nn.Linear(12, 5),
    )  # fmt: skip
    twins = Twins(make_optimizer=OPTIMIZERS[optimizer], model=model, max_grad_norm=clip)
    twins.check(4, 1e-8, rows)
    assert_same_buffers(twins.model, twins.plain)
    assert model[1].num_batches_tracked == 4
    twins.model.eval(), twins.plain.eval()  # fine-tuning with averages that stay
    twins.check(2, 1e-8, rows)
    assert_same_buffers(twins.model, twins.plain)


def test_frozen_all_but_averages() -> None:
    model = usual(6).requires_grad_(False)
    plain = copy.deepcopy(model).as_sequential()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    x = torch.randn(5, 5, dtype=torch.float64)
    loss = step(x, torch.zeros(5, 3, dtype=torch.float64))
    torch.testing.assert_close(loss, plain(x).square().mean())
    assert_same_buffers(model, plain)


def test_fit_is_the_loop() -> None:
    model = filled(FusedMLP([7, 12, 5], norm="batch"))
    plain = copy.deepcopy(model).as_sequential()
    x, y = torch.randn(40, 7), torch.randint(5, (40,))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    step.fit((x, y), 8, shuffle=False, epochs=2)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(2):
        for i in range(0, 40, 8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[i : i + 8]), y[i : i + 8]).backward()
            optimizer.step()
    # Ten steps, each off by at most what float32 sums of forty terms are, and not amplified much.
    for (name, ours), theirs in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert_close(ours, theirs, 10 * 100 * torch.finfo(torch.float32).eps, name)


def test_a_last_batch_of_one_row_is_an_error_as_in_torch() -> None:
    model = FusedMLP([7, 12, 5], norm="batch")
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    x, y = torch.randn(9, 7), torch.randint(5, (9,))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step.fit((x, y), 8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step(x[:1], y[:1])
    assert model[1].num_batches_tracked == 1
    with pytest.raises(RuntimeError, match="two dimensions"):
        step(x.view(3, 3, 7), y.view(3, 3))


def operators(graphs: list[torch.fx.GraphModule]) -> set[str]:
    """Names of those of fastmlp in what was traced."""
    nodes = (node for graph in graphs for node in graph.graph.nodes)
    return {
        node.target.name().split("::")[1]
        for node in nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "fastmlp"
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "momentum None": {"momentum": None},
    "momentum 0": {"momentum": 0.0},
    "not affine": {"affine": False},
    "without averages": {"track_running_stats": False},
}


@MODE
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("uses", ["FusedMLP", "fuse"])
def test_compiled(training: bool, options: str, uses: str) -> None:
    model = usual(8)
    for place in (1, 5):
        model[place] = nn.BatchNorm1d(8, dtype=torch.float64, **OPTIONS[options])
    plain = copy.deepcopy(model).as_sequential().train(training)
    network: nn.Module = model if uses == "FusedMLP" else fastmlp.fuse(model.as_sequential())
    network.train(training)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    for rows in (6, 6, 9):
        x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
        outcomes = []
        for one in (compiled, plain):
            y = one(x)
            outcomes.append([y, *torch.autograd.grad(y.sum(), [x, *one.parameters()])])
        torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(dict(network.named_buffers()), dict(plain.named_buffers()))
    if options != "without averages":
        assert operators(graphs) == {"mlp_forward", "mlp_backward"}
        assert not any("batch_norm" in str(node.target) for g in graphs for node in g.graph.nodes)


@pytest.mark.parametrize("counts", [True, False])
def test_compiled_gradients_as_functions(counts: bool) -> None:
    """torch.func takes a BatchNorm that writes nothing, and so do we."""
    norm = nn.BatchNorm1d(8, track_running_stats=counts)
    norm.num_batches_tracked = None
    model = fused(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(model).as_sequential()
    x = torch.randn(6, 5, dtype=torch.float64)
    outcomes = []
    torch._dynamo.reset()
    for network in (model, plain):
        parameters = {name: p.detach() for name, p in network.named_parameters()}

        def loss(values: dict[str, Tensor], network: nn.Module = network) -> Tensor:
            y: Tensor = torch.func.functional_call(network, values, (x,))
            return y.square().sum()

        outcomes.append(torch.compile(torch.func.grad(loss), backend="aot_eager")(parameters))
    torch.testing.assert_close(*outcomes)


def test_compiled_of_three_dimensions() -> None:
    """Of three dimensions a norm is of dimension 1."""
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    torch._dynamo.reset()
    model = fused(nn.BatchNorm1d(3), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    plain = copy.deepcopy(model).as_sequential()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), plain(x))
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))


@MODE
@pytest.mark.parametrize("grad", [True, False])
def test_operators(training: bool, grad: bool) -> None:
    model = usual(8).train(training).requires_grad_(grad)
    network = model._network()
    assert not isinstance(network, str)
    x = torch.randn(6, 5, dtype=torch.float64)
    arguments = (x, *network.encoded())
    torch.library.opcheck(torch.ops.fastmlp.mlp_train.default, arguments)
    torch.library.opcheck(torch.ops.fastmlp.mlp.default, arguments)
    output, statistics = torch.ops.fastmlp.mlp_train(*arguments)
    torch.testing.assert_close(output, model.as_sequential()(x))
    assert statistics.shape == ((4 * 8,) if training else (0,))
    if training:
        z = model[0](x)
        torch.testing.assert_close(statistics[:8], z.mean(0))
        torch.testing.assert_close(statistics[8:16], z.var(0, correction=0))
