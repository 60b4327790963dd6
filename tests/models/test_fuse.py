"""fuse(), unfuse() and explain(): what may change afterwards, and what is left alone."""

from __future__ import annotations

import copy
import inspect
import linecache
import random
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmlp
from fastmlp import FusedMLP

GAIN = 1.0


def scaled(x: Tensor) -> Tensor:
    """With a value of this module."""
    return x * GAIN


class Net(nn.Module):
    """What most of the tests change."""

    shift = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 3)
        self.slope, self.act, self.extra = 0.1, F.relu, [[0.5], 2]
        self.settings = types.SimpleNamespace(twice=False, sizes=[1, 2])

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.fc1(x), self.slope)
        x = self.act(self.fc2(x)) * self.extra[0][0] + self.shift
        x = self.fc3(scaled(x)) * self.settings.sizes[0]
        return 2 * x if self.settings.twice else x


def ran_fused(model: nn.Module, *inputs: Any) -> list[str]:
    return fastmlp.explain(model, *inputs).fused


def check(fused: nn.Module, plain: nn.Module, *inputs: Tensor) -> None:
    torch.testing.assert_close(fused(*inputs), plain(*inputs), rtol=1e-5, atol=1e-5)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a number": lambda net: setattr(net, "slope", 0.7),
    "a function": lambda net: setattr(net, "act", torch.tanh),
    "an item of a list": lambda net: net.extra.__setitem__(0, [3.0]),
    "an item of a list in a list": lambda net: net.extra[0].__setitem__(0, 3.0),
    "a setting": lambda net: setattr(net.settings, "twice", True),
    "an item of a setting": lambda net: net.settings.sizes.__setitem__(0, 7),
    "other settings": lambda net: setattr(
        net, "settings", types.SimpleNamespace(twice=True, sizes=[3])
    ),
    "a value of the class": lambda net: setattr(net, "shift", 0.75),
    "a layer": lambda net: setattr(net, "fc2", nn.Linear(9, 9, bias=False)),
    "a weight": lambda net: setattr(net.fc1, "weight", nn.Parameter(torch.ones(9, 6))),
    "a value in place": lambda net: net.fc3.weight.data.mul_(2),
    "a hook": lambda net: net.fc2.register_forward_hook(lambda m, x, y: y + 1),
    "a pre-hook": lambda net: net.fc2.register_forward_pre_hook(lambda m, x: (x[0] + 1,)),
    "a layer's forward": lambda net: setattr(net.fc2, "forward", lambda x: x * 2),
    "its forward": lambda net: setattr(net, "forward", lambda x: x * 2),
    "its hook": lambda net: net.register_forward_hook(lambda m, x, y: y + 1),
    "another dtype": lambda net: net.bfloat16().float(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_afterwards_counts(what: str) -> None:
    plain, x = Net(), torch.randn(5, 6)
    fused = fastmlp.fuse(copy.deepcopy(plain), inplace=True)
    assert ran_fused(fused, x) == ["fc1", "fc2"]
    check(fused, plain, x)
    torch.manual_seed(1)
    CHANGES[what](plain)
    torch.manual_seed(1)
    CHANGES[what](fused)
    check(fused, plain, x)
    check(copy.deepcopy(fused), plain, x)


def test_values_outside_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = Net(), torch.randn(5, 6)
    fused = fastmlp.fuse(plain)
    check(fused, plain, x)
    monkeypatch.setattr(Net, "shift", 3.0)
    check(fused, plain, x)
    monkeypatch.setitem(globals(), "GAIN", 5.0)
    check(fused, plain, x)


def made_with(factor: float) -> tuple[nn.Module, Callable[[float], None]]:
    """A module whose forward has a value of a function around it, and what changes that."""

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)) * factor)

    def change(to: float) -> None:
        nonlocal factor
        factor = to

    return Closed(), change


def test_a_value_of_a_function_around() -> None:
    plain, change = made_with(2.0)
    fused, x = fastmlp.fuse(plain), torch.randn(5, 6)
    assert ran_fused(fused, x) == ["a"]
    check(fused, plain, x)
    change(-3.0)
    check(fused, plain, x)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_a_list_that_grows() -> None:
    plain, x = Blocks(), torch.randn(4, 6)
    fused = fastmlp.fuse(plain)
    plain.layers.append(nn.Linear(6, 6))
    fused.layers.append(plain.layers[-1])
    check(fused, plain, x)


class Outer(nn.Module):
    """A module with a forward of its own in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), Blocks(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(F.relu(self.first(x))))


@pytest.mark.parametrize("what", ["hook", "forward", "class", "list", "training"])
def test_what_changes_in_an_inner_module(what: str) -> None:
    plain, x = Outer(), torch.randn(4, 6)
    fused = fastmlp.fuse(copy.deepcopy(plain), inplace=True)
    assert len(ran_fused(fused, x)) == 4

    class Doubled(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for net in (plain, fused):
        if what == "hook":
            net.inner.register_forward_hook(lambda m, x, y: y + 1)
        elif what == "forward":
            net.inner.forward = lambda x: x * 3
        elif what == "class":
            net.inner.__class__ = Doubled
        elif what == "list":
            net.inner.layers[0] = nn.Identity()
        else:
            net.inner.eval()
    check(fused, plain, x)


class Refused(nn.Module):
    """One layer after the other, and something that must not be taken for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.calls, self.flag = nn.Linear(6, 6), nn.Linear(6, 6), 0, {}

    def layers(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Counts(Refused):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


class Noisy(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + torch.randn(6))


class Chance(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if random.random() < 0.5 else x


class Branches(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if x.sum() > 0 else x


class NoGrad(Refused):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layers(x)


class OfGradMode(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if torch.is_grad_enabled() else 2 * self.layers(x)


class OfType(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if isinstance(x, Tensor) else x


class OfSize(Refused):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if x.shape[0] > 4 else x


class Keywords(Refused):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.layers(x)


class Writes(Refused):
    def forward(self, x: Tensor) -> Tensor:
        self.flag["seen"] = 1
        return self.layers(x)


class Catches(Refused):
    def forward(self, x: Tensor) -> Tensor:
        try:
            shift = torch.randn(6)
        except Exception:
            shift = torch.zeros(6)
        return self.layers(x) + shift


REFUSED = [
    Counts, Noisy, Chance, Branches, NoGrad, OfGradMode, OfType, OfSize, Keywords, Writes, Catches,
]  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_stays(kind: type[Refused]) -> None:
    plain = kind()
    fused = fastmlp.fuse(copy.deepcopy(plain))
    assert type(fused) is kind
    for rows in (3, 5):
        x = torch.randn(rows, 6)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                outputs = []
                for net in (fused, plain):
                    torch.manual_seed(0)
                    random.seed(0)
                    outputs.append(net(x))
                torch.testing.assert_close(*outputs)
                assert outputs[0].requires_grad == outputs[1].requires_grad
    found = fastmlp.explain(kind())
    assert found.fused == []
    assert found.share == 0
    assert found.plain[""]
    assert found.plain.keys() == {"", "fc1", "fc2"}


def test_a_file_that_has_changed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is another than what was imported, as after an edit in a running session."""
    file = tmp_path / "changed_model.py"
    text = (
        "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)\n\n"
        "    def forward(self, x):\n        return self.b(F.relu(self.a(x)) * 2)\n"
    )
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import changed_model  # type: ignore[import-not-found]

    plain, x = changed_model.Net(), torch.randn(3, 6)
    assert ran_fused(plain, x) == ["a"]
    file.write_text(text.replace("* 2", "* 3"))
    linecache.checkcache()
    fused = fastmlp.fuse(plain)
    check(fused, plain, x)
    assert "another than its source" in fastmlp.explain(plain, x).plain[""]


class InPlace(nn.Module):
    """What is written between two layers is read by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        y.add_(1)
        z = self.c(y)
        return self.b(h) + z


def test_writing_in_place_keeps_its_place() -> None:
    plain = InPlace()
    fused = fastmlp.fuse(plain)
    x, y = torch.randn(3, 6), torch.randn(3, 6)
    ours, theirs = y.clone(), y.clone()
    with torch.no_grad():
        torch.testing.assert_close(fused(x, ours), plain(x, theirs))
    torch.testing.assert_close(ours, theirs)


class Interleaved(nn.Module):
    """Two branches that draw in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.drop(torch.tanh(self.a(x))), self.drop(torch.tanh(self.b(x)))
        left, right = self.drop(torch.tanh(self.c(left))), self.drop(torch.tanh(self.d(right)))
        return left + right


def test_the_order_of_random_numbers() -> None:
    plain, x = Interleaved(), torch.randn(7, 6)
    fused = fastmlp.fuse(plain)
    outputs = []
    for net in (plain, fused):
        torch.manual_seed(5)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs)


class Shared(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(x))))


def test_a_layer_that_is_used_twice() -> None:
    plain, x = Shared().double(), torch.randn(7, 6, dtype=torch.float64)
    fused = fastmlp.fuse(copy.deepcopy(plain))
    assert ran_fused(fused, x) == ["layer"]
    for net in (plain, fused):
        net(x).sum().backward()
    torch.testing.assert_close(fused.layer.weight.grad, plain.layer.weight.grad)


class ReadTwice(nn.Module):
    """What lies between two layers is an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.a(x))
        return self.b(h), h


def test_a_value_that_is_read_twice() -> None:
    plain, x = ReadTwice(), torch.randn(7, 6)
    for ours, theirs in zip(fastmlp.fuse(plain)(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class WithDefaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(h if mask is None else h * mask) * scale


def test_arguments() -> None:
    plain, x = WithDefaults(), torch.randn(7, 6)
    fused = fastmlp.fuse(plain)
    assert len(ran_fused(fused, x)) == 2
    assert inspect.signature(fused.forward) == inspect.signature(plain.forward)
    mask = torch.rand(7, 6)
    for args, kwargs in [
        ((x,), {}), ((), {"x": x}), ((x, mask), {}), ((x,), {"mask": mask, "scale": 2.0}),
    ]:  # fmt: skip
        torch.testing.assert_close(fused(*args, **kwargs), plain(*args, **kwargs))
    for wrong in [(), (x, mask, 1.0)]:
        with pytest.raises(TypeError, match=r"forward\(\)"):
            fused(*wrong)


def test_in_place_and_not() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    fused = fastmlp.fuse(model)
    assert type(model) is nn.Sequential
    assert type(fused) is not nn.Sequential
    assert isinstance(fused, nn.Sequential)
    assert repr(fused).startswith("FusedSequential(")
    assert fastmlp.fuse(model, inplace=True) is model
    assert isinstance(model, nn.Sequential)
    assert repr(model).startswith("FusedSequential(")
    assert fastmlp.fuse(model, inplace=True) is model  # once more
    back = fastmlp.unfuse(model)
    assert type(back) is nn.Sequential
    assert fastmlp.unfuse(model, inplace=True) is model
    assert type(model) is nn.Sequential


def test_hooks_stay() -> None:
    model, seen = Outer(), []
    model.register_forward_hook(lambda *_: seen.append("outer"))
    model.inner.register_forward_hook(lambda *_: seen.append("inner"))
    fastmlp.fuse(model)(torch.randn(2, 6))
    assert seen == ["inner", "outer"]


def test_a_model_already_of_ours() -> None:
    model = nn.ModuleDict({"net": FusedMLP([4, 8, 2])})
    fused = fastmlp.fuse(model)
    assert type(fused["net"]) is FusedMLP
    assert fastmlp.explain(model).share == 1


@pytest.mark.parametrize("function", [fastmlp.fuse, fastmlp.unfuse, fastmlp.explain])
def test_no_module(function: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
        function(3)


def test_other_dtypes_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    found = fastmlp.explain(model, torch.randn(3, 4, dtype=torch.bfloat16))
    assert found.share == 0
    assert "float32" in found.plain["0"]
    assert fastmlp.explain(model).share == 1  # would be, by its modules alone


def test_explain_leaves_no_trace() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5))
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fastmlp.explain(model, torch.randn(3, 4, generator=torch.Generator()))
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert [type(m) for m in model] == [nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.Dropout]


def test_reading_beside_other_threads() -> None:
    """torch.fx reads by way of nn.Module's own call, which all threads make."""
    other, x, stop, errors = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), torch.randn(2, 6), [], []

    def calls() -> None:
        while not stop:
            try:
                other(x)
                _ = other[0].weight
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=calls)
    thread.start()
    for _ in range(50):
        fastmlp.fuse(Net(), inplace=True)
    stop.append(1)
    thread.join()
    assert not errors


def test_transforms_see_the_plain_model() -> None:
    plain, x = Net().double(), torch.randn(5, 6, dtype=torch.float64)
    fused = fastmlp.fuse(plain)
    torch.testing.assert_close(torch.func.vmap(fused)(x), plain(x))
    jacobian = torch.func.jacfwd(fused)(x)
    torch.testing.assert_close(jacobian, torch.func.jacrev(plain)(x))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [net(x.float()) for net in (fastmlp.fuse(Net()), Net())]
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 2
    graph = torch.fx.symbolic_trace(fused)
    torch.testing.assert_close(graph(x), plain(x))
    exported = torch.export.export(fused, (x,)).module()
    torch.testing.assert_close(exported(x), plain(x))


def test_slices_of_a_fused_sequential() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    fused, x = fastmlp.fuse(model), torch.randn(3, 4)
    check(fused[:2], model[:2], x)
    fused.append(nn.LayerNorm(2))
    check(fused, nn.Sequential(*model, nn.LayerNorm(2)), x)
