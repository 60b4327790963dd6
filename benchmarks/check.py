"""Whether a contestant computes what it should: only then is its time worth anything."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peers import LEARNING_RATE, Problem, Results
from shapes import Shape

# Deep networks need this beside the bounds of each number, which are worst cases: they grow by
# about the square root of the width with each layer, until they allow anything. What rounding
# really does is far smaller, with one exception: a unit within rounding of 0 may be on in one
# computation and off in the other. A share p of such units moves a gradient by about √p of its
# norm; p is around 1e-6.
NORM_TOLERANCE = 0.01


@lru_cache
def reference() -> ModuleType:
    """The tests' float64 reference, which is no package."""
    path = Path(__file__).resolve().parents[1] / "tests" / "reference.py"
    spec = importlib.util.spec_from_file_location("float64_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def _expected(shape: Shape, task: str) -> dict[str, Any]:
    """Values and bounds of all results; of a step, those of its gradients."""
    ref, problem = reference(), Problem(shape, task)
    weights = [torch.from_numpy(w) for w, _ in problem.parameters()]
    biases = [torch.from_numpy(b) for _, b in problem.parameters()]
    args = (problem.x, weights, biases, ref.per_layer(len(weights)))
    grad = problem.grad if task == "forward+backward" else None
    if task == "step":  # the derivative of the mean cross-entropy
        probability = torch.from_numpy(ref.exact(*args).y.value).softmax(1)
        hit = torch.nn.functional.one_hot(problem.labels, shape.sizes[-1])
        grad = (probability - hit) / shape.batch
    expected: dict[str, Any] = ref.exact(*args, grad).named()
    return expected


def fault(problem: Problem, results: Results) -> str | None:
    """What is wrong with the results, on one line; None: nothing."""
    expected = _expected(problem.shape, problem.task)
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
