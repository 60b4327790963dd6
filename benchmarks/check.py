"""Whether a contestant computes what it should: only then is its time worth anything."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import LEARNING_RATE, Problem, Results

# Deep networks need this beside the bounds of each number, which are worst cases: they grow by
# about the square root of the width with each layer, until they allow anything. What rounding
# really does is far smaller, with one exception: a unit within rounding of 0 may be on in one
# computation and off in the other. A share p of such units moves a gradient by about √p of its
# norm; p is around 1e-6.
NORM_TOLERANCE = 0.01


@lru_cache
def reference() -> ModuleType:
    """The tests' float64 reference, which is no package."""
    path = Path(__file__).resolve().parents[1] / "tests" / "support" / "reference.py"
    spec = importlib.util.spec_from_file_location("float64_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def _expected(problem: Problem) -> dict[str, Any]:
    """Values and bounds of all results; of a step, those of its gradients."""
    ref, shape, task = reference(), problem.shape, problem.task
    weights = [torch.from_numpy(w) for w, _ in problem.parameters()]
    biases = [torch.from_numpy(b) for _, b in problem.parameters()]
    exact = partial(
        ref.exact, problem.x, weights, biases, ref.per_layer(len(weights)), skips=shape.skips
    )
    grad = problem.grad if task == "forward+backward" else None
    if task == "step":  # the derivative of the mean cross-entropy
        probability = torch.from_numpy(exact().y.value).softmax(1)
        hit = torch.nn.functional.one_hot(problem.labels, shape.sizes[-1])
        grad = (probability - hit) / shape.batch
    expected: dict[str, Any] = exact(grad_output=grad).named()
    return expected


def fault(problem: Problem, results: Results) -> str | None:
    """What is wrong with the results, on one line; None: nothing."""
    expected = _expected(problem)
    before: Results = {}
    if problem.task == "step":
        for i, (w, b) in enumerate(problem.parameters()):
            before |= {f"dW{i}": w.astype(np.float64), f"db{i}": b.astype(np.float64)}
    names = set(expected) - ({"dx", "y"} if before else {"dx"})
    if set(results) != names:
        return f"results {sorted(results)}, expected {sorted(names)}"
    for name, actual in results.items():
        want = expected[name]
        if actual.shape != want.value.shape:
            return f"{name}: shape {actual.shape}, expected {want.value.shape}"
        change = -LEARNING_RATE * want.value if before else want.value
        value = before.get(name, 0) + change
        off = float(np.linalg.norm(actual - value))
        rounding = float(np.finfo(np.float32).eps * np.linalg.norm(value)) if before else 0.0
        limit = NORM_TOLERANCE * float(np.linalg.norm(change)) + rounding
        if not off <= limit:  # a NaN is wrong too
            return f"{name}: off by {off:.3g} in the Euclidean norm, {limit:.3g} allowed"
        if not before:
            try:
                reference().assert_within(torch.from_numpy(actual), want, name)
            except AssertionError as error:
                return str(error)
    return None


# Of the length of the way, in the Euclidean norm, beside twice what rounding does to eager. Adam
# divides each gradient by its own size, so that anything may come of one within rounding of 0, and
# those of the first layers of large-1024 are all so small.
TOLERANCE = 0.01


class Trained(NamedTuple):
    """Where a training has to end.

    Attributes:
        parameters: in float64.
        limits: how far off each of them may be, in the Euclidean norm.
    """

    parameters: Results
    limits: dict[str, float]

    @classmethod
    def of(cls, start: Results, exact: Results, *rounded: Results) -> Trained:
        """From the parameters before, and after it in float64 and in eager's float32, whose sums
        may be in several orders."""

        def distance(other: Results) -> dict[str, float]:
            return {name: float(np.linalg.norm(exact[name] - other[name])) for name in exact}

        way, roundings = distance(start), [distance(one) for one in rounded]
        limits = {
            name: TOLERANCE * way[name] + 2 * max(one[name] for one in roundings) for name in exact
        }
        return cls(exact, limits)

    def fault(self, results: Results) -> str | None:
        """What is wrong with the parameters after a training, on one line; None: nothing."""
        if set(results) != set(self.parameters):
            return f"results {sorted(results)}, expected {sorted(self.parameters)}"
        for name, want in self.parameters.items():
            if results[name].shape != want.shape:
                return f"{name}: shape {results[name].shape}, expected {want.shape}"
            off = float(np.linalg.norm(results[name] - want))
            if not off <= self.limits[name]:  # a NaN is wrong too
                limit = self.limits[name]
                return f"{name}: off by {off:.3g} in the Euclidean norm, {limit:.3g} allowed"
        return None
