"""NaN and infinities, where they are; and errors over a sweep beside torch's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fused import forced, mlp
from reference import ACTIVATIONS, Network, Problem, Results, assert_all_within, error
from torch import Tensor

from fastmlp import _C

# What the bounds of reference.py allow is proven; beside it, our errors are those of a good BLAS
# library. Which order it adds in is its own affair, and differs between processors: no single
# result may have more than twice its error, and all of a sweep no more in the geometric mean.
AT_MOST, AT_MOST_IN_THE_MEAN = 2, 1.05
ORDERS = 8  # in which torch's terms are added where its own error hangs on that


def shuffled(problem: Problem) -> Network:
    """torch's network with the terms of its sums in another order: as accurate, other roundings."""

    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        for weight, bias, act in zip(weights, biases, problem.activations, strict=True):
            order = torch.randperm(weight.shape[1])
            x = act.eager(F.linear(x[:, order], weight[:, order], bias))
        return x

    return network


class Sweep:
    """The ratios of our errors to torch's, by instruction set."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.least = torch.finfo(dtype).eps / 16  # of a norm: less is luck
        self.logs: dict[str, list[float]] = {}

    def add(self, problem: Problem, what: str) -> None:
        expected = problem.exact()

        def errors(results: Results[Tensor]) -> dict[str, float]:
            named = expected.named()
            return {k: max(error(t, named[k]), self.least) for k, t in results.named().items()}

        # Where a few numbers govern a result (sums near 0 among large ones, through layer after
        # layer) torch's own error varies tenfold with the order of its terms.
        orders = [errors(problem.eager())]
        orders += [errors(problem.run(shuffled(problem))) for _ in range(ORDERS - 1)]
        # All of a result hangs on as few independent roundings as its narrowest layer has sums. All
        # rows share those of a background.
        rows = 1 if problem.background != 0 else problem.x.shape[0]
        independent = rows * min(len(w) for w in problem.weights)
        for isa in _C.available_isas():
            with forced(isa):
                ours = problem.run(mlp(problem))
            assert_all_within(ours, expected, f"{isa}: {what}")
            for name, off in errors(ours).items():
                theirs = [one[name] for one in orders]
                if min(independent, ours.named()[name].numel()) >= 2000:
                    assert off <= AT_MOST * max(theirs), (
                        f"{isa}: {name} of {what}: {off / max(theirs):.2f}× torch's"
                    )
                typical = math.exp(sum(map(math.log, theirs)) / len(theirs))
                self.logs.setdefault(isa, []).append(math.log(off / typical))

    def check(self) -> None:
        """The geometric mean of the ratios, less two standard errors: as far as it is no chance."""
        for isa, logs in self.logs.items():
            values = torch.tensor(logs, dtype=torch.float64)
            mean, deviation = float(values.mean()), float(values.std())
            least = math.exp(mean - 2 * deviation / math.sqrt(len(logs)))
            assert least <= AT_MOST_IN_THE_MEAN, f"{isa}: {math.exp(mean):.2f} times torch's error"


def kinds(t: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 +inf, 3 -inf."""
    return t.isnan() + 2 * t.isposinf() + 3 * t.isneginf()


def assert_same_kinds(problem: Problem, what: str) -> None:
    ours, theirs = problem.run(mlp(problem)).named(), problem.eager().named()
    for name, tensor in theirs.items():
        assert torch.equal(kinds(ours[name]), kinds(tensor)), f"{what} {name}"


# gelu(inf) is inf or NaN in torch, by dtype and size: test_activations has that.
TRAVELLERS = [name for name in ACTIVATIONS if not name.startswith("gelu")]
POISONS = [math.nan, math.inf, -math.inf]


def places(problem: Problem) -> dict[str, Tensor]:
    tensors = {"x": problem.x, "g": problem.grad_output}
    tensors |= {f"w{i}": w for i, w in enumerate(problem.weights)}
    tensors |= {f"b{i}": b for i, b in enumerate(problem.biases) if b is not None}
    return tensors
