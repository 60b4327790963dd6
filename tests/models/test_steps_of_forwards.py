"""TrainStep of models with a forward of their own that is one chain."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from twins import assert_same, plain_step

import fastmlp
from fastmlp import TrainStep


class Net(nn.Module):
    """As lessons have it."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 20), nn.Linear(20, 9), nn.Linear(9, 4)
        self.norm, self.p = nn.BatchNorm1d(20), p

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        x = F.relu(self.norm(self.fc1(x)))
        x = F.dropout(x, self.p, self.training)
        x = torch.tanh(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Holder(nn.Module):
    """A Sequential that runs by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3, 4, dtype=torch.float64), torch.arange(7) % 4


class Pair:
    """A model twice, one of them with a TrainStep."""

    def __init__(self, model: nn.Module, fuse: bool = False) -> None:
        model = model.double()
        self.plain = copy.deepcopy(model)
        self.model = fastmlp.fuse(model, inplace=True) if fuse else model
        self.optimizers = [SGD(one.parameters(), 0.1) for one in (self.plain, self.model)]
        self.step = TrainStep(self.model, nn.CrossEntropyLoss(), self.optimizers[1])

    def check(self) -> None:
        x, y = batch()
        torch.manual_seed(1)
        expected = plain_step(self.plain, nn.CrossEntropyLoss(), self.optimizers[0], x, y)
        torch.manual_seed(1)
        torch.testing.assert_close(self.step(x, y), expected, rtol=1e-9, atol=1e-12)
        assert_same(self.model, self.plain)
        ours, theirs = dict(self.model.named_buffers()), dict(self.plain.named_buffers())
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_layer_alone() -> None:
    model = nn.Linear(5, 3)
    twin, x, y = copy.deepcopy(model), torch.randn(6, 5), torch.arange(6) % 3
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
    loss = plain_step(twin, nn.CrossEntropyLoss(), SGD(twin.parameters(), 0.1), x, y)
    torch.testing.assert_close(step(x, y), loss)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("kind", [Net, Outer, Holder])
@pytest.mark.parametrize("fuse", [False, True])
def test_as_the_loop(kind: type[nn.Module], fuse: bool) -> None:
    pair = Pair(kind(), fuse)
    for training in (True, True, False, True):
        pair.plain.train(training), pair.model.train(training)
        pair.check()


def test_what_changes_afterwards_counts() -> None:
    pair = Pair(Net())
    changes: list[Any] = [
        lambda net: setattr(net, "p", 0.5),
        lambda net: setattr(net, "p", 0.0),
        lambda net: net.norm.eval(),
        lambda net: setattr(net.norm, "momentum", None),
        lambda net: net.fc2.requires_grad_(False),
        lambda net: net.fc1.weight.data.mul_(0.5),
    ]
    for change in changes:
        change(pair.plain), change(pair.model)
        pair.check()
    pair.model.fc2.register_forward_hook(lambda m, x, y: y + 1)
    with pytest.raises(RuntimeError, match="has a hook"):
        pair.step(*batch())


def test_a_forward_that_becomes_more_than_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(Holder())
    pair.check()
    monkeypatch.setattr(Holder, "forward", lambda self, x: self.layers(x) * x.mean())
    with pytest.raises(TypeError, match="forward of its own"):
        pair.step(*batch())
    monkeypatch.undo()
    pair.check()


def test_fit_copies_and_pickles() -> None:
    pair = Pair(Net(0.0))
    x, y = torch.randn(40, 3, 4, dtype=torch.float64), torch.arange(40) % 4
    pair.step.fit((x, y), 10, shuffle=False)
    for i in range(0, 40, 10):
        some = slice(i, i + 10)
        plain_step(pair.plain, nn.CrossEntropyLoss(), pair.optimizers[0], x[some], y[some])
    assert_same(pair.model, pair.plain)
    for again in (copy.deepcopy(pair.step), pickle.loads(pickle.dumps(pair.step))):
        torch.testing.assert_close(again(x, y), copy.deepcopy(pair.step)(x, y))
        assert_same(again.model, copy.deepcopy(again).model)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.fc(x)) + y


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x)) if x.mean() > 0 else x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x)) * self.scale


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(TwoInputs, ", which is more"), (Branches, ": "), (Scaled, ", which is more")],
)
def test_more_than_a_chain_is_refused(kind: type[nn.Module], reason: str) -> None:
    model = kind()
    with pytest.raises(TypeError, match=f"{kind.__name__} with a forward of its own{reason}"):
        TrainStep(model, nn.MSELoss(), SGD(model.parameters(), 0.1))


# What becomes of a step when its model changes ----------------------------------------------------


class Two(nn.Module):
    """Two layers, and a flag with which it does more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.k = nn.Linear(12, 8), nn.Linear(8, 4), 1

    def forward(self, x: Tensor) -> Tensor:
        if self.k != 1:
            return self.c(F.relu(self.a(x.flatten(1)))) * self.k
        return self.c(F.relu(self.a(x.flatten(1))))  # type: ignore[no-any-return]


def test_a_step_that_was_refused_is_refused_again() -> None:
    pair = Pair(Two())
    pair.model.k = 3
    x, y = batch()
    before = copy.deepcopy(pair.model.state_dict())
    for _ in range(2):
        with pytest.raises(TypeError, match="more than one chain"):
            pair.step(x, y)
        with pytest.raises(TypeError, match="more than one chain"):
            pair.step.fit((x, y), 3)
    torch.testing.assert_close(pair.model.state_dict(), before, rtol=0, atol=0)
    pair.model.k = 1
    pair.check()


def test_a_model_that_is_refused_is_not_taken() -> None:
    pair, other = Pair(Two()), Two()
    other.k = 3
    with pytest.raises(TypeError, match="more than one chain"):
        pair.step.model = other
    assert pair.step.model is pair.model
    pair.check()
    taken = copy.deepcopy(pair.model)
    pair.step.model, pair.step.optimizer = taken, SGD(taken.parameters(), 0.1)
    pair.model, pair.optimizers[1] = taken, pair.step.optimizer
    pair.check()


class Derived(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Described(Two):
    @property
    def act(self) -> Any:
        return F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.a(x.flatten(1))))  # type: ignore[no-any-return]


def by_tanh(self: Any, x: Tensor) -> Tensor:
    return self.c(torch.tanh(self.a(x.flatten(1))))  # type: ignore[no-any-return]


def as_tanh(self: Any) -> Any:
    return torch.tanh


class Other(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x.flatten(1))))  # type: ignore[no-any-return]


def change_class(pair: Pair, patch: pytest.MonkeyPatch) -> None:
    for model in (pair.model, pair.plain):
        model.__class__ = Other


CHANGES: dict[str, tuple[type[nn.Module], Any]] = {
    "an inherited forward": (Derived, lambda pair, patch: patch.setattr(Two, "forward", by_tanh)),
    "a property": (
        Described,
        lambda pair, patch: patch.setattr(Described, "act", property(as_tanh)),
    ),
    "its class": (Two, change_class),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_in_its_classes_counts(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, change = CHANGES[what]
    pair, x = Pair(kind()), batch()[0]
    fused = fastmlp.fuse(pair.model)
    pair.check()
    torch.testing.assert_close(fused(x), pair.model(x))
    change(pair, monkeypatch)
    pair.check()
    if what != "its class":
        torch.testing.assert_close(fused(x), pair.model(x))


def test_a_sequential_that_becomes_another_class() -> None:
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)  # type: ignore[no-any-return]

    pair = Pair(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    pair.check()
    pair.model.__class__ = Doubled
    for _ in range(2):
        with pytest.raises(TypeError, match="forward of its own"):
            pair.step(*batch())
    pair.model.__class__ = nn.Sequential
    pair.check()


def test_a_call_of_its_own_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(Other())
    pair.check()
    monkeypatch.setattr(
        Other, "__call__", lambda self, x: nn.Module.__call__(self, x) * 2, raising=False
    )
    with pytest.raises(TypeError, match="a call of its own"):
        pair.step(*batch())


class Spare(Two):
    """With parameters that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "momentum": 0.9}])
def test_parameters_that_are_not_used_stay(options: dict[str, float]) -> None:
    pair = Pair(Spare())
    for optimizer in pair.optimizers:
        optimizer.param_groups[0].update(options)
    for _ in range(3):
        pair.check()
    assert torch.equal(pair.model.scale, torch.ones(3))
    assert pair.optimizers[1].state.keys() <= {
        *pair.model.a.parameters(),
        *pair.model.c.parameters(),
    }
    pair.optimizers[1].add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(RuntimeError, match="that is not the model's"):
        pair.step(*batch())


def test_a_hook_that_comes_and_goes() -> None:
    pair = Pair(Outer())
    pair.check()
    handle = pair.model.net.register_forward_hook(lambda m, x, y: y)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has a hook"):
            pair.step(*batch())
    handle.remove()
    pair.check()


class Inner(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x))) if self.k == 1 else x * self.k


def test_blocks_with_a_forward_of_their_own_in_a_sequential() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12))
    pair = Pair(model)
    pair.check()
    for one in (pair.model, pair.plain):
        torch.manual_seed(2)
        one.append(Inner().double())
    for i, one in enumerate((pair.plain, pair.model)):
        pair.optimizers[i].add_param_group({"params": list(one[2].parameters())})
    pair.check()
    pair.model[2].k = 2
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is not fused"):
            pair.step(*batch())
    pair.model[2].k = 1
    pair.check()
