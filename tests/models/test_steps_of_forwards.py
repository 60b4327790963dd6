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
