"""Stable-Baselines3's agents with a fused policy: what they would have learnt without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastmlp

sb3 = pytest.importorskip("stable_baselines3")
pytest.importorskip("gymnasium")

# Of each, its environment, how it is made, for how many steps it learns, and its learning rate.
AGENTS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "PPO": ("CartPole-v1", {"n_steps": 64, "batch_size": 32, "n_epochs": 2}, 256, 3e-4),
    "DQN": ("CartPole-v1", {"learning_starts": 50, "train_freq": 4}, 200, 1e-4),
    "SAC": ("Pendulum-v1", {"learning_starts": 50, "batch_size": 64}, 60, 3e-4),
    "TD3": ("Pendulum-v1", {"learning_starts": 50, "batch_size": 64}, 60, 1e-3),
}
# Of an update: Adam's quotient makes of another gradient another whole update, of rounding little.
APART = 0.01


class Rewards(sb3.common.callbacks.BaseCallback):  # type: ignore[misc]
    """Notes all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[float] = []

    def _on_step(self) -> bool:
        self.all += self.locals["rewards"].tolist()
        return True


@pytest.mark.parametrize("kind", AGENTS)
def test_the_same_agent(kind: str) -> None:
    environment, options, steps, rate = AGENTS[kind]
    outcomes = []
    for fuses in (False, True):
        agent = getattr(sb3, kind)("MlpPolicy", environment, seed=3, device="cpu", **options)
        if fuses:
            fastmlp.fuse(agent.policy, inplace=True)
            assert fastmlp.explain(agent.policy).fused
        rewards = Rewards()
        agent.learn(steps, callback=rewards)
        outcomes.append((rewards.all, agent.policy.state_dict()))
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-3, atol=1e-3)
    for name, value in outcomes[0][1].items():
        difference = (value - outcomes[1][1][name]).abs().max()
        assert difference <= APART * rate, f"{name} is off by {difference}"
