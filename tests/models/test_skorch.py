"""A scikit-learn pipeline whose last step is a network by skorch, fused and plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmlp

skorch = pytest.importorskip("skorch")
pipeline = pytest.importorskip("sklearn.pipeline")
preprocessing = pytest.importorskip("sklearn.preprocessing")


class Classifier(nn.Module):
    """As skorch's quickstart has it."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.dense0, self.dense1 = nn.Linear(20, hidden), nn.Linear(hidden, 10)
        self.dropout, self.output = nn.Dropout(0.2), nn.Linear(10, 2)

    def forward(self, X: Tensor) -> Tensor:
        X = F.relu(self.dense0(X))
        X = self.dropout(X)
        X = F.relu(self.dense1(X))
        return F.softmax(self.output(X), dim=-1)


def fused(hidden: int = 16) -> nn.Module:
    model = fastmlp.fuse(Classifier(hidden))
    assert fastmlp.explain(model).fused == ["dense0", "dense1", "output"]
    return model


def test_a_pipeline() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(3, 2, (200, 20)).astype(np.float32)
    y = (x[:, :5].sum(1) > 15).astype(np.int64)
    outcomes: list[list[Any]] = []
    for module in (fused, Classifier):
        torch.manual_seed(3)
        net = skorch.NeuralNetClassifier(
            module, max_epochs=5, lr=0.1, module__hidden=24, train_split=None, verbose=0
        )
        steps = pipeline.Pipeline([("scale", preprocessing.StandardScaler()), ("net", net)])
        steps.fit(x, y)
        outcomes.append([net.history[:, "train_loss"], steps.predict_proba(x), steps.score(x, y)])
    # Ten steps of 128 rows at this rate, float32: off by what sums of some dozen terms are.
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-4)
    np.testing.assert_allclose(outcomes[0][1], outcomes[1][1], rtol=1e-3, atol=1e-5)
