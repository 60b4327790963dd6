"""Forwards that do more than compute, and what they depend on: a fused model does the same."""

from __future__ import annotations

import copy
import functools
import math
import os
import pickle
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmlp

SEEN: list[Any] = []
SETTINGS = {"k": 1.0}
CHANCE = random.Random(0)


class Pair(nn.Module):
    """Two layers, which every trap is around."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.c = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 8)
        self.drop, self.d = nn.Dropout(0.5), nn.Linear(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


def with_forward(forward: Callable[..., Any], **attributes: Any) -> nn.Module:
    """A module of a new class with this forward, and these attributes of the object."""
    module = type("Trap", (Pair,), {"forward": forward, "__module__": __name__})()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


# What a forward does beside computing ------------------------------------------------------------


def adds_in_place(self: Any, x: Tensor) -> Tensor:
    h = self.body(x)
    r = h
    h += 1
    return h + r


def scales_a_view(self: Any, x: Tensor) -> Tensor:
    h = self.fc1(x)
    v = h[:, :4]
    h *= 2
    return self.fc2(h) + v


def writes_the_input(self: Any, x: Tensor) -> Tensor:
    x -= 1
    return self.body(x)


def activates_what_is_added(self: Any, x: Tensor) -> Tensor:
    x = self.fc1(x)
    h = self.c(self.fc2(F.relu(x, inplace=True)))
    return F.relu(self.d(x + h))


def activates_the_input(self: Any, x: Tensor) -> Tensor:
    return self.body(F.elu(x.view(-1, 4), inplace=True))


def draws_in_turns(self: Any, x: Tensor) -> Tensor:
    h = F.dropout(self.fc1(x), 0.5, self.training)
    z = self.d(F.dropout(F.relu(self.c(x)), 0.5, self.training))
    return self.fc2(h) + z


def draws_modules_in_turns(self: Any, x: Tensor) -> Tensor:
    h = self.drop(torch.tanh(self.fc1(x)))
    z = self.d(self.drop(F.relu(self.c(x))))
    return self.fc2(h) + z


def draws_otherwise(self: Any, x: Tensor) -> Tensor:
    h = F.dropout(torch.tanh(self.fc1(x)), 0.5, self.training)
    z = F.gumbel_softmax(x)
    return self.fc2(h) + z


def flattens_to_one(self: Any, x: Tensor) -> Tensor:
    return self.body(x.view(-1, 2, 4).flatten(end_dim=1))


def flattens_by_torch(self: Any, x: Tensor) -> Tensor:
    return self.body(torch.flatten(x.view(-1, 2, 4), end_dim=1))


def by_chance(self: Any, x: Tensor) -> Tensor:
    if self.training and CHANCE.random() < 0.5:
        return self.c(x)[:, :4]
    return self.body(x)


def by_numpys_chance(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * float(np.random.rand())


def seeds(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(7)
    return self.drop(self.body(x))


def leaves_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.body(x.float())


def writes_a_weight(self: Any, x: Tensor) -> Tensor:
    self.fc1.weight.data = self.fc1.weight.data * 0.5
    return self.body(x)


def writes_a_child(self: Any, x: Tensor) -> Tensor:
    self.drop.p = self.pp
    return self.drop(self.body(x))


def tells_a_list(self: Any, x: Tensor) -> Tensor:
    h = self.body(x)
    SEEN.append(h.detach())
    return h


def tells_a_function(self: Any, x: Tensor) -> Tensor:
    return self.tell(self.body(x))


def prints(self: Any, x: Tensor) -> Tensor:
    print("called")
    return self.body(x)


def asks_its_type(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if type(x) is torch.Tensor else x


def asks_the_name_of_its_type(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if type(x).__name__ == "Tensor" else x


def asks_for_a_node(self: Any, x: Tensor) -> Tensor:
    return x if hasattr(x, "node") else self.body(x)


def asks_its_own_class(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * (2 if self.__class__.__name__.endswith("Trap") else 1)


def asks_for_autocast(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


def asks_the_environment(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * (2 if os.environ.get("FASTMLP_TRAP") else 1)


def scales_by_numpy(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * np.sqrt(2.0)


def scales_by_math(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * math.sqrt(2.0)


def drops_by_torch(self: Any, x: Tensor) -> Tensor:
    return self.fc2(torch.dropout(torch.tanh(self.fc1(x)), 0.3, train=True))


def loops_while(self: Any, x: Tensor) -> Tensor:
    i = 0
    while i < 2:
        x = self.body(x)
        i = i + 1
    return x


def tries(self: Any, x: Tensor) -> Tensor:
    try:
        return self.body(x) + self.nothing
    except AttributeError:
        return self.body(x)


def made_in_it(self: Any, x: Tensor) -> Tensor:
    return self.body(x) + torch.ones(4)


DOES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    one.__name__: (one, {})
    for one in (
        adds_in_place, scales_a_view, writes_the_input, activates_what_is_added,
        activates_the_input, draws_in_turns, draws_modules_in_turns,
        draws_otherwise, flattens_to_one, flattens_by_torch, by_chance, by_numpys_chance, seeds,
        leaves_autocast, writes_a_weight, tells_a_list, prints, asks_its_type,
        asks_the_name_of_its_type, asks_for_a_node, asks_its_own_class, asks_for_autocast,
        asks_the_environment, scales_by_numpy, scales_by_math, drops_by_torch, loops_while, tries,
        made_in_it,
    )
}  # fmt: skip
DOES["writes_a_child"] = (writes_a_child, {"pp": 0.25})
DOES["tells_a_function"] = (tells_a_function, {"tell": lambda h: SEEN.append(1) or h})
DOES["numpys_number"] = (lambda self, x: self.body(x) * self.k, {"k": np.float64(0.5)})


@pytest.mark.parametrize("what", DOES)
@pytest.mark.parametrize("training", [True, False])
def test_what_a_forward_does(what: str, training: bool, capsys: pytest.CaptureFixture[str]) -> None:
    forward, attributes = DOES[what]
    plain = with_forward(forward, **attributes).train(training)
    SEEN.clear()
    state = torch.get_rng_state(), random.getstate(), CHANCE.getstate()
    fused = fastmlp.fuse(copy.deepcopy(plain))
    assert not SEEN  # fusing runs nothing that anybody sees
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), CHANCE.getstate()) == state[1:]
    for turn in range(6):
        outcomes = []
        for net in (plain, fused):
            SEEN.clear()
            torch.manual_seed(turn)
            random.seed(turn)
            CHANCE.seed(turn)
            np.random.seed(turn)
            x = torch.randn(4, 4)
            given = x.clone()
            y = net(given)
            parameters = list(net.parameters())
            gradients = torch.autograd.grad(y.sum(), parameters, allow_unused=True)
            told = len(SEEN), capsys.readouterr().out
            outcomes.append([y, given, *(g if g is not None else y for g in gradients)])
            outcomes[-1].append(torch.tensor([len(told[1]), told[0]]))
            outcomes[-1].append(torch.get_rng_state())
        torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


def test_contexts_of_the_caller() -> None:
    for forward in (leaves_autocast, asks_for_autocast):
        plain = with_forward(forward)
        fused = fastmlp.fuse(plain)
        with torch.autocast("cpu", torch.bfloat16):
            a, b = plain(torch.ones(2, 4)), fused(torch.ones(2, 4))
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


# What it depends on -------------------------------------------------------------------------------


class Config:
    k = 1.0

    def __init__(self) -> None:
        self.sizes, self.on = [1.0], True


class Attributes(dict):
    """A dict whose items are attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Made(NamedTuple):
    a: float
    b: list[float]


def helper(x: Tensor) -> Tensor:
    return x * SETTINGS["k"]


class Base(Pair):
    k: ClassVar[float] = 1.0

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.k

    @property
    def twice(self) -> float:
        return 2 * self.k


def attribute(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * self.k


def nested(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * self.t[0][0]


def config(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * self.cfg.sizes[0] * (2 if self.cfg.on else 1)


def config_class(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * self.cfg.k


def items(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * self.cfg["k"]


def global_settings(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * SETTINGS["k"]


def by_a_helper(self: Any, x: Tensor) -> Tensor:
    return helper(self.body(x))


def has(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * (self.later if hasattr(self, "later") else 1.0)


def mask(self: Any, x: Tensor) -> Tensor:
    h = self.body(x)
    return h if self.mask is None else h * self.mask


def of_a_child(self: Any, x: Tensor) -> Tensor:
    return self.fc2(F.dropout(F.relu(self.fc1(x)), self.drop.p, self.drop.training))


def of_a_list_of_modules(self: Any, x: Tensor) -> Tensor:
    for layer in self.net:
        x = layer(x)
    return self.fc2(F.relu(x))


def by_an_act(self: Any, x: Tensor) -> Tensor:
    return self.fc2(self.act(self.fc1(x)))


def mutable_default(self: Any, x: Tensor, k: list[float] = [1.0]) -> Tensor:  # noqa: B006
    return self.body(x) * k[0]


class Change(NamedTuple):
    make: Callable[[], Any]
    change: Callable[[Any], object]


def put(name: str, value: Any) -> Callable[[Any], object]:
    return lambda net: setattr(net, name, value)


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 8), nn.Sigmoid(), nn.SiLU())


def of_base() -> Any:
    return type("Derived", (Base,), {"forward": attribute, "__module__": __name__})()


CHANGES = {
    "an item of an item": Change(
        lambda: with_forward(nested, t=[[1.0, 2.0]]), lambda n: n.t[0].__setitem__(0, 5.0)
    ),
    "an item in a tuple": Change(
        lambda: with_forward(nested, t=([1.0],)), lambda n: n.t[0].__setitem__(0, 5.0)
    ),
    "a list in a config": Change(
        lambda: with_forward(config, cfg=Config()), lambda n: n.cfg.sizes.__setitem__(0, 5.0)
    ),
    "a config's attribute": Change(
        lambda: with_forward(config, cfg=Config()), lambda n: setattr(n.cfg, "on", False)
    ),
    "a config's default": Change(
        lambda: with_forward(config_class, cfg=Config()), lambda n: setattr(n.cfg, "k", 4.0)
    ),
    "a dict's item": Change(
        lambda: with_forward(items, cfg={"k": 1.0}), lambda n: n.cfg.__setitem__("k", 5.0)
    ),
    "an ordered dict's item": Change(
        lambda: with_forward(items, cfg=OrderedDict(k=1.0)), lambda n: n.cfg.__setitem__("k", 5.0)
    ),
    "a defaultdict's item": Change(
        lambda: with_forward(items, cfg=defaultdict(float, k=1.0)),
        lambda n: n.cfg.__setitem__("k", 5.0),
    ),
    "a dict of attributes": Change(
        lambda: with_forward(config_class, cfg=Attributes(k=1.0)),
        lambda n: n.cfg.__setitem__("k", 5.0),
    ),
    "a named tuple's list": Change(
        lambda: with_forward(lambda self, x: self.body(x) * self.m.b[0], m=Made(1.0, [1.0])),
        lambda n: n.m.b.__setitem__(0, 3.0),
    ),
    "a class's value": Change(
        of_base, lambda n: setattr(getattr(type(n), "unfused", type(n)), "k", 5.0)
    ),
    "over a class's value": Change(of_base, put("k", 5.0)),
    "a property's value": Change(
        lambda: type(
            "Derived",
            (Base,),
            {"forward": lambda s, x: s.body(x) * s.twice, "__module__": __name__},
        )(),
        put("k", 5.0),
    ),
    "a missing attribute": Change(lambda: with_forward(has), put("later", 5.0)),
    "a child's attribute": Change(
        lambda: with_forward(of_a_child).eval(), lambda n: setattr(n.drop, "training", True)
    ),
    "a child's number": Change(
        lambda: with_forward(of_a_child), lambda n: setattr(n.drop, "p", 0.0)
    ),
    "a child's child": Change(
        lambda: with_forward(of_a_list_of_modules, net=sequential()),
        lambda n: n.net.__setitem__(0, nn.Identity()),
    ),
    "one more child": Change(
        lambda: with_forward(of_a_list_of_modules, net=sequential()),
        lambda n: n.net.append(nn.Tanh()),
    ),
    "one child less": Change(
        lambda: with_forward(of_a_list_of_modules, net=sequential()), lambda n: n.net.pop(-1)
    ),
    "a function": Change(lambda: with_forward(by_an_act, act=torch.relu), put("act", torch.tanh)),
    "a method": Change(
        lambda: with_forward(lambda self, x: self.body(x)),
        put("body", lambda x: x * 2),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_forward_depends_on(what: str) -> None:
    make, change = CHANGES[what]
    torch.manual_seed(0)
    plain = make()
    fused = fastmlp.fuse(copy.deepcopy(plain), inplace=True)
    x = torch.randn(3, 4)
    for turn in range(2):
        outcomes = []
        for net in (plain, fused):
            torch.manual_seed(turn)
            outcomes.append(net(x))
        torch.testing.assert_close(*outcomes)
        for net in (plain, fused):
            change(net)
    outcomes = []
    for net in (plain, fused):
        torch.manual_seed(9)
        outcomes.append(net(x))
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_tensor_that_is_there_or_not(kind: str) -> None:
    plain = with_forward(mask)
    (plain.register_buffer if kind == "buffer" else plain.register_parameter)("mask", None)
    fused, x = fastmlp.fuse(plain), torch.randn(3, 4)
    for value in (torch.full((4,), 3.0), None, torch.zeros(4)):
        for net in (plain, fused):
            given = value if value is None or kind == "buffer" else nn.Parameter(value)
            setattr(net, "mask", given)  # noqa: B010
        torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("forward", [global_settings, by_a_helper, mutable_default])
def test_values_of_the_file(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = with_forward(forward), torch.randn(3, 4)
    fused = fastmlp.fuse(plain)
    torch.testing.assert_close(fused(x), plain(x))
    monkeypatch.setitem(SETTINGS, "k", 5.0)
    mutable_default.__defaults__[0][0] = 3.0  # type: ignore[index]
    torch.testing.assert_close(fused(x), plain(x))
    mutable_default.__defaults__[0][0] = 1.0  # type: ignore[index]


class OwnLinear(nn.Linear):
    """A Linear of another name."""


def test_another_forward_of_a_layer_s_class() -> None:
    plain = nn.Sequential(OwnLinear(4, 8), nn.ReLU(), OwnLinear(8, 4))
    fused, x = fastmlp.fuse(plain), torch.randn(3, 4)
    assert fastmlp.explain(fused, x).share == 1
    torch.testing.assert_close(fused(x), plain(x))
    OwnLinear.forward = lambda self, x: 2 * F.linear(x, self.weight)  # type: ignore[method-assign]
    try:
        torch.testing.assert_close(fused(x), plain(x))
    finally:
        del OwnLinear.forward


def test_a_list_of_parameters_that_grows() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.body(x)
        for p in self.scales:
            x = x * p
        return x

    plain = with_forward(forward, scales=nn.ParameterList([torch.full((4,), 2.0)]))
    fused, x = fastmlp.fuse(plain), torch.randn(3, 4)
    torch.testing.assert_close(fused(x), plain(x))
    for net in (plain, fused):
        net.scales.append(torch.full((4,), 3.0))
    torch.testing.assert_close(fused(x), plain(x))


def in_a_set(self: Any, x: Tensor) -> Tensor:
    for i in range(3):
        if i in self.which:
            x = self.body(x)
    return x


def test_a_set() -> None:
    plain = with_forward(in_a_set, which={0})
    fused, x = fastmlp.fuse(copy.deepcopy(plain)), torch.randn(3, 4)
    assert len(fastmlp.explain(fused, x).fused) == 2
    torch.testing.assert_close(fused(x), plain(x))
    for net in (plain, fused):
        net.which.add(2)
    torch.testing.assert_close(fused(x), plain(x))


def test_another_forward_of_the_class() -> None:
    plain, x = with_forward(attribute, k=2.0), torch.randn(3, 4)
    fused = fastmlp.fuse(plain)
    torch.testing.assert_close(fused(x), plain(x))
    type(plain).forward = lambda self, x, scale=3.0: self.body(x) * scale  # type: ignore[assignment]
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused(x, scale=1.0), plain(x, scale=1.0))


# The objects --------------------------------------------------------------------------------------


class Writer(nn.Module):
    def __init__(self, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.shared, self.a, self.b = shared, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.shared["y"] = x
        return self.b(F.relu(self.a(x)))


class Reads(nn.Module):
    def __init__(self, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shared["y"]


def test_objects_that_modules_share() -> None:
    shared: dict[str, Tensor] = {}
    plain, x = nn.Sequential(Writer(shared), Reads(shared)), torch.randn(3, 4)
    torch.testing.assert_close(fastmlp.fuse(plain)(x), plain(x))


def test_what_refers_to_modules() -> None:
    class Both(NamedTuple):
        one: nn.Module
        other: nn.Module

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.call(self.both.other(F.relu(self.both.one(x))))

    plain = with_forward(forward)
    plain.both = Both(plain.fc1, plain.fc2)
    plain.call = functools.partial(plain.drop)
    fused, x = fastmlp.fuse(plain).eval(), torch.randn(3, 4)
    torch.testing.assert_close(fused(x), copy.deepcopy(plain).eval()(x))
    assert plain.training


def test_a_list_that_holds_itself() -> None:
    plain = with_forward(attribute, k=1.0)
    plain.tree = [plain]
    plain.tree.append(plain.tree)
    x = torch.randn(3, 4)
    torch.testing.assert_close(fastmlp.fuse(plain)(x), plain(x))


REGISTRY: dict[str, type] = {}


class Registered(Pair):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY[cls.__name__] = cls


class OfARegistry(Registered):
    forward = attribute  # type: ignore[assignment]
    k = 1.0


class Final(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], parts: dict[str, Any]) -> Any:
        if any(isinstance(base, Final) for base in bases):
            raise TypeError(f"{name} cannot be derived from")
        return super().__new__(mcs, name, bases, parts)


class OfAFinalClass(Pair, metaclass=Final):
    forward = attribute  # type: ignore[assignment]
    k = 1.0


class Slotted(Pair):
    __slots__ = ("k",)
    forward = attribute  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "k", 2.0)


class Reduced(Pair):
    forward = attribute  # type: ignore[assignment]
    k = 1.0

    def __reduce__(self) -> Any:
        return type(self), (), self.__dict__


@pytest.mark.parametrize("kind", [OfARegistry, OfAFinalClass, Slotted, Reduced])
def test_classes(kind: type[nn.Module]) -> None:
    before = dict(REGISTRY)
    plain, x = kind(), torch.randn(3, 4)
    torch.testing.assert_close(fastmlp.fuse(plain)(x), plain(x))
    if kind is not Slotted:  # which copies take nothing of
        for fused in (fastmlp.fuse(plain), fastmlp.fuse(copy.deepcopy(plain), inplace=True)):
            for other in (
                pickle.loads(pickle.dumps(fused)),
                copy.deepcopy(fused),
                copy.copy(fused),
            ):
                torch.testing.assert_close(other(x), plain(x))
    assert before == REGISTRY


def test_lazy_modules_are_to_be_called_first() -> None:
    lazy, x = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4)), torch.randn(3, 5)
    for function in (fastmlp.fuse, fastmlp.explain):
        with pytest.raises(ValueError, match="Call the model once before"):
            function(lazy)
    y = lazy(x)
    torch.testing.assert_close(fastmlp.fuse(lazy)(x), y)


def test_explain_calls_a_copy() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model.register_buffer("wide", torch.ones(1, 4).expand(3, 4))
    x = torch.randn(3, 4)
    loss = model(x).sum()
    fastmlp.explain(model, x)
    loss.backward()
    written = with_forward(writes_the_input)
    before = x.clone()
    fastmlp.explain(written, x)
    assert torch.equal(x, before)
