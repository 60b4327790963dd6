"""A soft actor-critic with classes of its own, as CleanRL writes it, fused and plain.

T. Haarnoja, A. Zhou, P. Abbeel, S. Levine, Soft Actor-Critic, ICML 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

import fastmlp

STATE, ACTION, BATCH, UPDATES = 11, 3, 64, 8


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(STATE + ACTION, 32)
        self.fc2 = nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        x = torch.cat([x, a], 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(STATE, 32), nn.Linear(32, 32)
        self.fc_mean, self.fc_logstd = nn.Linear(32, ACTION), nn.Linear(32, ACTION)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), -5 + 0.5 * (2 + 5) * (log_std + 1)

    def get_action(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self(x)
        normal = torch.distributions.Normal(mean, log_std.exp())
        z = normal.rsample()
        action = torch.tanh(z)
        log_prob = normal.log_prob(z) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(1, keepdim=True)


def train(fuse: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
    """Some updates; the losses, and all that was trained."""
    torch.manual_seed(5)
    made: list[nn.Module] = [Actor().double(), Critic().double(), Critic().double()]
    actor, qf1, qf2 = map(fuse, made)
    targets = [fuse(copy.deepcopy(qf)) for qf in (qf1, qf2)]
    q_optimizer = Adam([*qf1.parameters(), *qf2.parameters()], lr=1e-3)
    actor_optimizer = Adam(actor.parameters(), lr=3e-4)
    losses = []
    for update in range(UPDATES):
        state, following = torch.randn(2, BATCH, STATE, dtype=torch.float64)
        action = torch.rand(BATCH, ACTION, dtype=torch.float64) * 2 - 1
        reward, done = torch.randn(BATCH, dtype=torch.float64), (torch.rand(BATCH) < 0.1).double()
        with torch.no_grad():
            next_action, next_log_pi = actor.get_action(following)  # type: ignore[operator]
            next_q = torch.min(*(target(following, next_action) for target in targets))
            value = reward + (1 - done) * 0.99 * (next_q - 0.2 * next_log_pi).view(-1)
        q_loss = sum(F.mse_loss(qf(state, action).view(-1), value) for qf in (qf1, qf2))
        q_optimizer.zero_grad()
        q_loss.backward()  # type: ignore[union-attr]
        q_optimizer.step()
        if update % 2 == 0:
            for _ in range(2):
                pi, log_pi = actor.get_action(state)  # type: ignore[operator]
                actor_loss = (0.2 * log_pi - torch.min(qf1(state, pi), qf2(state, pi))).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()
        for qf, target in zip((qf1, qf2), targets, strict=True):
            for ours, theirs in zip(qf.parameters(), target.parameters(), strict=True):
                theirs.data.copy_(0.005 * ours.data + 0.995 * theirs.data)
        losses += [torch.as_tensor(q_loss).detach(), actor_loss.detach()]
    models = (actor, qf1, qf2, *targets)
    return [*losses, *(parameter.detach() for one in models for parameter in one.parameters())]


@pytest.mark.parametrize("inplace", [False, True])
def test_the_same_updates(inplace: bool) -> None:
    def fuse(model: nn.Module) -> nn.Module:
        fused = fastmlp.fuse(model, inplace=inplace)
        assert fastmlp.explain(fused).fused
        return fused

    # Adam divides by the root of a gradient's square, which makes of 1e-13 at most 1e-9 here.
    torch.testing.assert_close(train(fuse), train(lambda model: model), rtol=1e-8, atol=1e-9)
