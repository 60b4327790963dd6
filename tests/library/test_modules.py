"""FusedMLP is the nn.Sequential, and FusedLinear the nn.Linear, that a PyTorch user expects."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import (
    ACTIVATIONS,
    Results,
    assert_all_within,
    assert_within,
    exact,
    per_layer,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from travels import through_pickle, through_save

import fastmlp
from fastmlp import FusedLinear, FusedMLP

SIZES = [12, 9, 7, 5]


def twin(
    sizes: list[int] = SIZES,
    hidden: str = "relu",
    output: str | None = None,
    bias: bool = True,
    **options: Any,
) -> nn.Sequential:
    """The plain network that FusedMLP(sizes, ...) stands for."""
    modules: list[nn.Module] = []
    for i, (m, n) in enumerate(pairwise(sizes)):
        modules.append(nn.Linear(m, n, bias, **options))
        name = hidden if i < len(sizes) - 2 else output
        if name is not None:
            modules.append(ACTIVATIONS[name].module())
    return nn.Sequential(*modules)


def check(model: nn.Sequential, x: Tensor, hidden: str = "relu", output: str | None = None) -> None:
    """Output and gradients are inside of the bounds of the plain network's."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    weights = [m.weight for m in linears]
    biases: list[Tensor | None] = [m.bias for m in linears]
    x = x.detach().requires_grad_()
    y = model(x)
    g = torch.randn_like(y)
    given = [x, *weights, *(b for b in biases if b is not None)]
    grads = iter(torch.autograd.grad(y, given, g))
    actual: Results[Tensor] = Results(
        y.detach(), next(grads), [next(grads) for _ in weights],
        [None if b is None else next(grads) for b in biases],
    )  # fmt: skip
    activations = per_layer(len(weights), hidden, output)
    assert_all_within(actual, exact(x, weights, biases, activations, g))


def assert_plain(model: FusedMLP, x: Tensor) -> None:
    """The model takes the plain path, says why, and gives to the last bit what it gives."""
    reason = model.why_plain(x)
    assert isinstance(reason, str)
    assert reason
    assert "\n" not in reason
    expected = model.as_sequential()(x)
    actual = model(x)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


# What it is


@pytest.mark.parametrize("hidden", ["relu", "gelu_tanh", "identity"])
@pytest.mark.parametrize("output", [None, "sigmoid", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_same_as_sequential(hidden: str, output: str | None, bias: bool) -> None:
    torch.manual_seed(5)
    plain = twin(hidden=hidden, output=output, bias=bias)
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    model = FusedMLP(SIZES, activation=hidden, output_activation=output, bias=bias)
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(model, nn.Sequential)
    assert list(model.state_dict()) == list(plain.state_dict())
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert [type(m) for m in model] == [type(m) for m in plain]
    assert repr(model).split("\n")[1:] == repr(plain).split("\n")[1:]
    assert repr(model).split("\n")[0] == "FusedMLP("
    check(model, torch.randn(4, 12), hidden, output)


def test_lectures_network() -> None:
    model = FusedMLP([784, 300, 10])
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model.why_plain(torch.randn(50, 784)) is None
    assert model(torch.randn(50, 784)).shape == (50, 10)


def test_state_dict_both_ways() -> None:
    model, plain = FusedMLP(SIZES), twin()
    plain.load_state_dict(model.state_dict())
    other = FusedMLP(SIZES)
    assert str(other.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(4, 12)
    assert torch.equal(model(x), other(x))
    check(other, x)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(FusedMLP([12, 8, 7, 5]).state_dict())
    meta = FusedMLP(SIZES, device="meta")
    meta.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(meta(x), model(x))


def test_as_and_from_sequential() -> None:
    model = FusedMLP(SIZES)
    plain = model.as_sequential()
    assert type(plain) is nn.Sequential
    assert all(a is b for a, b in zip(plain, model, strict=True))
    assert list(plain.state_dict()) == list(model.state_dict())
    back = FusedMLP.from_sequential(plain)
    assert isinstance(back, FusedMLP)
    assert all(a is b for a, b in zip(back, model, strict=True))
    x = torch.randn(4, 12)
    assert back.why_plain(x) is None
    assert torch.equal(back(x), model(x))
    named = nn.Sequential(OrderedDict(first=nn.Linear(12, 9), act=nn.Tanh(), last=nn.Linear(9, 5)))
    fused = FusedMLP.from_sequential(named)
    assert list(fused.state_dict()) == list(named.state_dict())
    check(fused, x, "tanh")


@pytest.mark.parametrize("sizes", [[], [5]])
def test_too_few_sizes(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        FusedMLP(sizes)


def test_one_layer_is_a_network() -> None:
    check(FusedMLP([12, 5]), torch.randn(4, 12))
    check(FusedMLP([12, 5], output_activation="tanh"), torch.randn(4, 12), output="tanh")


def test_sizes_may_be_any_sequence() -> None:
    assert repr(FusedMLP(tuple(SIZES))) == repr(FusedMLP(SIZES))


# Copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_save])
@pytest.mark.parametrize("used", [False, True])
def test_copies(duplicate: Callable[[FusedMLP], FusedMLP], used: bool) -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    if used:  # whatever the first call remembers must not be in the way
        model(x).sum().backward()
    other = duplicate(model)
    assert type(other) is FusedMLP
    assert repr(other) == repr(model)
    assert torch.equal(other(x), model(x))
    check(other, x)
    if duplicate is copy.copy:
        return
    assert other[0].weight is not model[0].weight
    before = model(x)
    with torch.no_grad():
        other[0].weight.add_(1)
    assert torch.equal(model(x), before)
    assert not torch.equal(other(x), before)


def test_state_dict_through_a_file(tmp_path: Path) -> None:
    model, other = FusedMLP(SIZES), FusedMLP(SIZES)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = torch.randn(4, 12)
    assert torch.equal(other(x), model(x))


def test_subclass() -> None:
    class Mine(FusedMLP):
        def __init__(self) -> None:
            super().__init__(SIZES)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    assert torch.equal(Mine()(torch.ones(2)), torch.tensor([2.0, 2.0]))


# nn.Sequential's methods


@pytest.mark.parametrize(
    "part",
    [slice(0, 2), slice(2, None), slice(None, -1), slice(1, 4), slice(None, None, 2), slice(0, 0)],
    ids=str,
)
def test_slices(part: slice) -> None:
    model = FusedMLP(SIZES)
    piece, plain = model[part], model.as_sequential()[part]
    assert isinstance(piece, nn.Sequential)
    assert list(piece.state_dict()) == list(plain.state_dict())
    assert all(a is b for a, b in zip(piece, plain, strict=True))
    linear = next((m for m in piece if isinstance(m, nn.Linear)), None)
    x = torch.randn(4, linear.in_features if linear else 9)
    torch.testing.assert_close(piece(x), plain(x))
    assert piece(x).shape == plain(x).shape


def test_slice_in_the_middle_stays_fused() -> None:
    model = FusedMLP(SIZES)
    piece = model[2:]
    x = torch.randn(4, 9)
    assert isinstance(piece, FusedMLP)
    assert piece.why_plain(x) is None
    check(piece, x)


def edited(edit: Callable[[nn.Sequential], Any]) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(1)
    model: nn.Sequential = FusedMLP(SIZES)
    torch.manual_seed(1)
    plain = twin()
    model(torch.randn(4, 12))  # whatever the first call remembers has to be forgotten
    torch.manual_seed(2)
    model = edit(model) or model
    torch.manual_seed(2)
    return model, edit(plain) or plain


def put(where: int | slice, module: nn.Module) -> Callable[[nn.Sequential], None]:
    def edit(model: nn.Sequential) -> None:
        model[where] = copy.deepcopy(module)  # type: ignore[index]

    return edit


def remove(where: int | slice) -> Callable[[nn.Sequential], None]:
    def edit(model: nn.Sequential) -> None:
        del model[where]

    return edit


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Squared(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


EDITS: dict[str, Callable[[nn.Sequential], Any]] = {
    "append": lambda m: m.append(nn.Linear(5, 4)),
    "append two": lambda m: m.append(nn.Tanh()).append(nn.Linear(5, 4)),
    "insert": lambda m: m.insert(1, nn.Linear(9, 9)),
    "extend": lambda m: m.extend([nn.Sigmoid(), nn.Linear(5, 2)]),
    "pop": lambda m: (m.pop(-1), None)[1],
    "delete": remove(4),
    "delete activation": remove(1),
    "another activation": put(1, nn.Tanh()),
    "inplace": put(1, nn.ReLU(inplace=True)),
    "unfused activation": put(1, nn.Softshrink()),
    "softmax at the end": lambda m: m.append(nn.Softmax(-1)),
    "dropout": lambda m: m.insert(2, nn.Dropout(0.5)).eval(),
    "layer norm": lambda m: m.insert(1, nn.LayerNorm(9)),
    "nested": put(0, nn.Sequential(nn.Linear(12, 9), nn.Tanh())),
    "nested fused": put(0, FusedMLP([12, 6, 9])),
    "fused linear": put(0, FusedLinear(12, 9, activation="tanh")),
    "bilinear's subclass": put(0, Doubled(12, 9)),
    "activation's subclass": put(1, Squared()),
    "other slope": put(1, nn.LeakyReLU(0.3)),
    "other alpha": put(1, nn.ELU(0.3)),
    "prelu": put(1, nn.PReLU()),
    "no bias": lambda m: m[2].register_parameter("bias", None),
    "wider": lambda m: (put(2, nn.Linear(9, 70))(m), put(4, nn.Linear(70, 5))(m), None)[2],
    "product": lambda m: m * 1,
    "sum": lambda m: m[:2] + m[2:],
    "add_module": lambda m: m.add_module("extra", nn.Tanh()),
    "setattr": lambda m: setattr(m, "1", nn.Tanh()),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_after_use(edit: Callable[[nn.Sequential], Any]) -> None:
    """The result is the edited network's, fused or not."""
    model, plain = edited(edit)
    x = torch.randn(4, 12, requires_grad=True)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    y, expected = model(x), plain(x)
    # float32 with at most six sums of at most 70 terms of moderate size
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    g = torch.randn_like(y)
    actual_grads = torch.autograd.grad(y, [x, *model.parameters()], g)
    expected_grads = torch.autograd.grad(expected, [x, *plain.parameters()], g)
    for a, b in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_alike() -> None:
    model, plain = edited(EDITS["dropout"])
    plain.load_state_dict(model.state_dict())
    model.train()
    plain.train()
    x = torch.randn(64, 12)
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(y, plain(x), rtol=1e-4, atol=1e-5)


def test_empty() -> None:
    model = FusedMLP(SIZES)[0:0]
    x = torch.randn(3)
    assert model(x) is x


# Types and devices


def test_arguments_for_parameters() -> None:
    assert FusedMLP(SIZES, dtype=torch.float64)[2].weight.dtype == torch.float64
    assert FusedMLP(SIZES, device="meta")[2].bias.device.type == "meta"
    assert FusedMLP(SIZES, bias=False)[2].bias is None


def test_to_and_back() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    y = model(x)
    for dtype in (torch.float64, torch.float32):
        model = model.to(dtype)
        assert model(x.to(dtype)).dtype == dtype
        check(model, x.to(dtype))
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes_run_plain(dtype: torch.dtype) -> None:
    model = FusedMLP(SIZES, activation="tanh").to(dtype)
    x = torch.randn(4, 12, dtype=dtype)
    assert_plain(model, x)
    model(x).abs().sum().backward()
    expected = copy.deepcopy(model.as_sequential())
    expected.zero_grad()
    expected(x).abs().sum().backward()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_half_method() -> None:
    assert_plain(FusedMLP(SIZES).half(), torch.randn(4, 12).half())


def test_meta() -> None:
    model = FusedMLP(SIZES, device="meta")
    y = model(torch.empty(2, 4, 12, device="meta"))
    assert y.shape == (2, 4, 5)
    assert y.device.type == "meta"
    y.sum().backward()
    assert model[0].weight.grad.shape == (9, 12)
    real = model.to_empty(device="cpu")
    assert real(torch.randn(4, 12)).device.type == "cpu"


def test_default_dtype_and_device() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = FusedMLP(SIZES)
        check(model, torch.randn(4, 12))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert FusedMLP(SIZES)[0].weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype):
        assert model(x).dtype == dtype
        assert_plain(model, x)
        linear = FusedLinear(12, 9)
        assert torch.equal(linear(x), F.relu(F.linear(x, linear.weight, linear.bias)))
        y = fastmlp.functional.mlp(x, [linear.weight], [linear.bias])
        assert torch.equal(y, F.linear(x, linear.weight, linear.bias))
        with torch.autocast("cpu", enabled=False):
            assert model.why_plain(x) is None
            check(model, x)
    assert model(x).dtype == torch.float32


def test_input_that_is_a_subclass() -> None:
    class Mine(torch.Tensor):
        pass

    model = FusedMLP(SIZES)
    x = torch.randn(4, 12).as_subclass(Mine)
    y, expected = model(x), model.as_sequential()(x)
    assert type(y) is type(expected)
    torch.testing.assert_close(y, expected)
    assert isinstance(model(nn.Parameter(torch.randn(4, 12))), Tensor)


def test_sparse_and_odd_inputs_as_plain() -> None:
    model = FusedMLP(SIZES)
    sparse = torch.eye(12).to_sparse()
    assert_plain(model, sparse)
    conj = FusedMLP(SIZES, activation="tanh").to(torch.complex64)
    assert_plain(conj, torch.randn(4, 12, dtype=torch.complex64).conj())


def test_negated_view() -> None:
    """The imaginary part of a conjugated tensor is float32 with a lazy minus sign."""
    x = torch.randn(4, 12, dtype=torch.complex64).conj().imag
    weight = torch.randn(5, 12, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert weight.is_neg()
    model = FusedMLP(SIZES)
    torch.testing.assert_close(model(x), model(x.resolve_neg()))
    ones = torch.ones(2, 12)
    y = fastmlp.functional.linear(ones, weight)
    torch.testing.assert_close(y, fastmlp.functional.linear(ones, weight.resolve_neg()))


# Hooks


def test_forward_hooks_on_children() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    fused = model(x)
    seen = []
    handle = model[1].register_forward_hook(lambda m, args, out: seen.append(out) or 2 * out)
    assert_plain(model, x)
    assert seen
    assert not torch.equal(model(x), fused)
    handle.remove()
    assert model.why_plain(x) is None
    assert torch.equal(model(x), fused)


def hook_kinds() -> dict[str, Callable[[nn.Module, list[str]], Any]]:
    def note(calls: list[str], kind: str) -> Callable[..., None]:
        return lambda *args, **kwargs: calls.append(kind)

    def kinds(kind: str, **options: Any) -> Callable[[nn.Module, list[str]], Any]:
        return lambda m, calls: getattr(m, f"register_{kind}")(note(calls, kind), **options)

    return {
        "pre": kinds("forward_pre_hook"),
        "pre kwargs": kinds("forward_pre_hook", with_kwargs=True),
        "forward": kinds("forward_hook"),
        "always": kinds("forward_hook", always_call=True),
        "backward": kinds("full_backward_hook"),
        "backward pre": kinds("full_backward_pre_hook"),
    }


@pytest.mark.parametrize("register", hook_kinds().values(), ids=hook_kinds())
@pytest.mark.parametrize("child", [0, 1, 4])
def test_each_kind_of_hook(register: Callable[[nn.Module, list[str]], Any], child: int) -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12, requires_grad=True)
    model(x)
    calls: list[str] = []
    handle = register(model[child], calls)
    assert model.why_plain(x) is not None
    model(x).sum().backward()
    assert len(calls) == 1
    handle.remove()
    model(x).sum().backward()
    assert len(calls) == 1
    assert model.why_plain(x) is None


def global_hooks() -> dict[str, Callable[[list[Any]], Any]]:
    module = nn.modules.module
    return {
        "pre": lambda c: module.register_module_forward_pre_hook(lambda m, *a: c.append(m)),
        "forward": lambda c: module.register_module_forward_hook(lambda m, *a: c.append(m)),
        "backward": lambda c: module.register_module_full_backward_hook(lambda m, *a: c.append(m)),
        "backward pre": lambda c: module.register_module_full_backward_pre_hook(
            lambda m, *a: c.append(m)
        ),
    }


@pytest.mark.parametrize("register", global_hooks().values(), ids=global_hooks())
def test_global_hooks(register: Callable[[list[Any]], Any]) -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12, requires_grad=True)
    model(x)
    calls: list[nn.Module] = []
    handle = register(calls)
    try:
        model(x).sum().backward()
    finally:
        handle.remove()
    assert {id(m) for m in calls} == {id(model), *(id(m) for m in model)}
    assert model.why_plain(x) is None


def test_hooks_on_the_model_itself_stay_fused() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    y = model(x)
    calls = []
    model.register_forward_pre_hook(lambda m, args: calls.append("pre"))
    model.register_forward_hook(lambda m, args, out: calls.append("post") or out + 1)
    model.register_full_backward_hook(lambda m, gi, go: calls.append("back"))
    assert model.why_plain(x) is None
    out = model(x)
    assert torch.equal(out, y + 1)
    out.sum().backward()
    assert calls == ["pre", "post", "back"]


def test_capture_of_hidden_activations() -> None:
    """What a user of hooks wants: features of a layer, with gradients."""
    model = FusedMLP(SIZES)
    kept: dict[str, Tensor] = {}
    for name, child in model.named_children():
        child.register_forward_hook(lambda m, a, out, name=name: kept.__setitem__(name, out))
    y = model(torch.randn(4, 12))
    assert list(kept) == [str(i) for i in range(5)]
    assert kept["4"] is y
    kept["2"].retain_grad()
    y.sum().backward()
    assert kept["2"].grad is not None


def test_patched_forward_of_a_child() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    model(x)
    original = model[0].forward
    model[0].forward = lambda x: 2 * original(x)
    assert_plain(model, x)
    del model[0].forward
    assert model.why_plain(x) is None


# Parametrisation, pruning and their like


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


def test_parametrization() -> None:
    model = FusedMLP([6, 6, 6])
    x = torch.randn(4, 6)
    model(x)
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    assert torch.equal(model[0].weight, model[0].weight.mT)
    torch.testing.assert_close(model(x), model.as_sequential()(x))
    model(x).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None
    with parametrize.cached():
        torch.testing.assert_close(model(x), model.as_sequential()(x))
    parametrize.remove_parametrizations(model[0], "weight")
    check(model, x)


@pytest.mark.parametrize("norm", ["new", "old", "spectral", "orthogonal"])
def test_norms(norm: str) -> None:
    model = FusedMLP(SIZES).eval()
    x = torch.randn(4, 12)
    model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        apply = {
            "new": parametrizations.weight_norm,
            "old": nn.utils.weight_norm,
            "spectral": parametrizations.spectral_norm,
            "orthogonal": parametrizations.orthogonal,
        }[norm]
        apply(model[2])
    y = model(x)
    torch.testing.assert_close(y, model.as_sequential()(x))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    # An optimizer's step has to show in the next forward.
    torch.optim.SGD(model.parameters(), 0.1).step()
    changed = model(x)
    assert not torch.equal(changed, y)
    torch.testing.assert_close(changed, model.as_sequential()(x))


def test_pruning() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    y = model(x)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "bias", 0.5)
    torch.testing.assert_close(model(x), model.as_sequential()(x))
    assert not torch.equal(model(x), y)
    model(x).sum().backward()
    gradient = model[0].weight_orig.grad
    assert (gradient[model[0].weight_mask == 0] == 0).all()
    prune.remove(model[0], "weight")
    prune.remove(model[2], "bias")
    check(model, x)


def test_replaced_parameters() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    model(x)
    model[0].weight = nn.Parameter(torch.randn(9, 12))
    model[2].bias = None
    check(model, x)
    model[4].weight.data = torch.randn(5, 7)
    check(model, x)
    model[0].weight.data = torch.randn(12, 9).t()
    check(model, x)
    model[0].weight.requires_grad_(False)
    y = model(x)
    y.sum().backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None


def test_tied_layers() -> None:
    model = FusedMLP([6, 6, 6])
    model[2] = model[0]
    x = torch.randn(4, 6)
    plain = copy.deepcopy(model.as_sequential())
    torch.testing.assert_close(model(x), plain(x))
    model(x).sum().backward()
    plain(x).sum().backward()
    # Two sums of 24 terms each.
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad, rtol=1e-5, atol=1e-5)


def test_lazy_linear() -> None:
    model = FusedMLP.from_sequential(nn.Sequential(nn.LazyLinear(9), nn.ReLU(), nn.LazyLinear(5)))
    x = torch.randn(4, 12)
    assert model(x).shape == (4, 5)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model.why_plain(x) is None
    check(model, x)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantization() -> None:
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    if torch.backends.quantized.engine == "none":
        pytest.skip("no quantized engine")
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    torch.manual_seed(0)
    quantized = quantize(copy.deepcopy(model), {nn.Linear})
    expected = quantize(copy.deepcopy(model.as_sequential()), {nn.Linear})
    assert torch.equal(quantized(x), expected(x))


def test_share_memory() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    y = model(x)
    model.share_memory()
    assert model[0].weight.is_shared()
    assert torch.equal(model(x), y)


# torch.func


def test_functional_call() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    model(x)
    other = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    y = torch.func.functional_call(model, other, (x,))
    weights = [other["0.weight"], other["2.weight"], other["4.weight"]]
    biases: list[Tensor | None] = [other["0.bias"], other["2.bias"], other["4.bias"]]
    assert_within(y, exact(x, weights, biases, per_layer(3)).y)
    check(model, x)


def plain_function(model: FusedMLP) -> Callable[..., Tensor]:
    plain = model.as_sequential()
    return lambda params, x: torch.func.functional_call(plain, params, (x,))


def fused_function(model: FusedMLP) -> Callable[..., Tensor]:
    return lambda params, x: torch.func.functional_call(model, params, (x,))


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": lambda f: torch.func.grad(lambda p, x: f(p, x).square().sum()),
    "vjp": lambda f: lambda p, x: torch.func.vjp(f, p, x)[1](torch.ones(4, 5)),
    "jvp": lambda f: lambda p, x: torch.func.jvp(lambda x: f(p, x), (x,), (torch.ones_like(x),)),
    "vmap": lambda f: torch.func.vmap(f, (None, 0)),
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f, argnums=1),
    "hessian": lambda f: torch.func.hessian(lambda x_p, x: f(x_p, x).square().sum(), argnums=1),
    "per sample": lambda f: torch.func.vmap(
        torch.func.grad(lambda p, x: f(p, x).square().sum()), (None, 0)
    ),
    "functionalize": lambda f: torch.func.functionalize(f),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_transforms(transform: Callable[..., Any], activation: str) -> None:
    model = FusedMLP(SIZES, activation=activation)
    params = {k: v.detach() for k, v in model.named_parameters()}
    x = torch.randn(4, 12)
    actual = transform(fused_function(model))(params, x)
    expected = transform(plain_function(model))(params, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_ensemble_by_vmap() -> None:
    models = [FusedMLP(SIZES) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x = torch.randn(4, 12)

    def one(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], (params, buffers), (x,))

    y = torch.func.vmap(one, (0, 0, None))(params, buffers, x)
    torch.testing.assert_close(y, torch.stack([m(x) for m in models]), rtol=1e-4, atol=1e-5)


def test_forward_mode() -> None:
    model = FusedMLP(SIZES, activation="tanh")
    plain = model.as_sequential()
    x, direction = torch.randn(4, 12), torch.randn(4, 12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        actual = torch.autograd.forward_ad.unpack_dual(model(dual))
        expected = torch.autograd.forward_ad.unpack_dual(plain(dual))
    torch.testing.assert_close(actual.primal, expected.primal)
    torch.testing.assert_close(actual.tangent, expected.tangent)


# What a program does with a model


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.Adam(p, 0.01, fused=True),
    ],
    ids=["SGD", "foreach", "AdamW", "fused Adam"],
)
def test_optimizers(optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, plain = FusedMLP(SIZES, dtype=torch.float64), twin(dtype=torch.float64)
    plain.load_state_dict(model.state_dict())
    x, labels = torch.randn(16, 12, dtype=torch.float64), torch.randint(5, (16,))
    for m in (model, plain):
        steps = optimizer(m.parameters())
        for _ in range(5):
            steps.zero_grad()
            F.cross_entropy(m(x), labels).backward()
            nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            steps.step()
    # Adam divides by the gradient's size, which makes a relative error of eps one of eps too.
    pairs = list(model.parameters()), list(plain.parameters())
    torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-9)


def test_inside_another_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = FusedMLP(SIZES, output_activation="relu")
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(1)))

    net = Net()
    net(torch.randn(4, 3, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert list(net.state_dict())[:2] == ["body.0.weight", "body.0.bias"]


def test_train_and_eval_flags_reach_children() -> None:
    model = FusedMLP(SIZES)
    model.eval()
    assert not any(m.training for m in model.modules())
    model.train()
    assert all(m.training for m in model.modules())
    model.requires_grad_(False)
    assert not model(torch.randn(4, 12)).requires_grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trace() -> None:
    model = FusedMLP(SIZES)
    x = torch.randn(4, 12)
    traced = torch.jit.trace(model, x)
    other = torch.randn(7, 12)
    torch.testing.assert_close(traced(other), model(other))


def test_symbolic_trace() -> None:
    """torch.fx sees the children, as it does in an nn.Sequential."""
    model = FusedMLP(SIZES)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(4, 12)
    torch.testing.assert_close(traced(x), model(x))


def test_log_tells_the_path(caplog: pytest.LogCaptureFixture) -> None:
    model = FusedMLP(SIZES)
    with caplog.at_level(logging.DEBUG, "fastmlp"):
        model(torch.randn(4, 12))
        model.half()(torch.randn(4, 12).half())
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("fastmlp")]
    assert any("plain" in m and "float32" in m for m in messages), messages
    assert all(r.levelno == logging.DEBUG for r in caplog.records)


def test_says_nothing_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = FusedMLP(SIZES)
        model(torch.randn(4, 12)).sum().backward()
        model.half()(torch.randn(4, 12).half())
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


# FusedLinear


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_linear(isa: str, activation: str, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    layer = FusedLinear(12, 9, bias, activation, dtype=dtype)
    torch.manual_seed(3)
    plain = nn.Linear(12, 9, bias, dtype=dtype)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 12, dtype=dtype)
    expected = exact(x, [layer.weight], [layer.bias], per_layer(1, output=activation))
    assert_within(layer(x), expected.y)


def test_fused_linear_is_relu_by_default() -> None:
    assert (FusedLinear(12, 9)(torch.randn(4, 12)) >= 0).all()


def test_fused_linear_copies() -> None:
    layer = FusedLinear(12, 9, activation="gelu")
    x = torch.randn(4, 12)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is FusedLinear
        assert torch.equal(other(x), layer(x))
    assert "in_features=12, out_features=9, bias=True" in repr(layer)
    assert "gelu" in repr(layer)
    assert torch.equal(layer.half()(x.half()), F.gelu(F.linear(x.half(), layer.weight, layer.bias)))
    assert FusedLinear(12, 9, device="meta")(torch.empty(4, 12, device="meta")).shape == (4, 9)


def test_fused_linear_in_a_sequential() -> None:
    model = nn.Sequential(FusedLinear(12, 9), FusedLinear(9, 5, activation="identity"))
    plain = twin([12, 9, 5])
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    x = torch.randn(4, 12)
    torch.testing.assert_close(model(x), plain(x))


def test_calls_that_are_not_only_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """`__call__` goes past nn.Module's own where there is nothing to see on the way."""
    model, x = FusedMLP([5, 4, 3]), torch.randn(2, 5)
    expected = model.as_sequential()(x)

    def same(output: Tensor) -> bool:
        return torch.allclose(output, expected)

    assert same(model(x))
    assert same(model(input=x))
    for wrong in (lambda: model(), lambda: model(x, x), lambda: model(x, other=x)):
        with pytest.raises(TypeError):
            wrong()
    seen: list[str] = []
    handles = [
        model.register_forward_hook(lambda *_: seen.append("hook")),
        model.register_forward_pre_hook(lambda *_: seen.append("pre-hook")),
        model.register_full_backward_hook(lambda *_: seen.append("backward")),
        torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append("global")),
    ]
    model(x).sum().backward()
    assert {"hook", "pre-hook", "backward", "global"} <= set(seen)
    for handle in handles:
        handle.remove()
    seen.clear()

    own = nn.Module.__call__

    def traced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(module).__name__)
        return own(module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", traced)
        assert same(model(x))
        assert "FusedMLP" in seen
    with monkeypatch.context() as patch:
        patch.setattr(FusedMLP, "forward", lambda self, x: x + 1)
        assert torch.equal(model(x), x + 1)
    model.forward = lambda x: x + 2  # type: ignore[method-assign, assignment]
    assert torch.equal(model(x), x + 2)
    del model.forward
    assert same(model(x))
    model._compiled_call_impl = lambda x: x + 3  # what model.compile() sets
    assert torch.equal(model(x), x + 3)


def test_a_derived_class_takes_the_arguments_of_its_forward() -> None:
    class Two(FusedMLP):
        def forward(self, x: Tensor, input: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return x if input is None else x + input

    class Nothing(FusedMLP):
        def forward(self) -> int:  # type: ignore[override]
            return 7

    x = torch.ones(2, 5)
    assert torch.equal(Two([5, 3])(x), x)
    assert torch.equal(Two([5, 3])(x, input=x), 2 * x)
    assert torch.equal(Two([5, 3])(input=x, x=3 * x), 4 * x)
    assert Nothing([5, 3])() == 7
