"""The reference is right, and what the other tests compare with can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from reference import ACTIVATIONS, Bounded, Problem, assert_within, eager, per_layer


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_and_its_limits(name: str) -> None:
    act = ACTIVATIONS[name]
    z = np.linspace(-12, 12, 24001, dtype=np.longdouble)
    for place, _ in act.kinks:
        z = z[abs(z - place) > 1e-3]  # not across it
    h = np.longdouble(1e-6)
    slope = (act.f(z + h) - act.f(z - h)) / (2 * h)
    assert np.abs(slope - act.df(z)).max() < 1e-11  # h² times f''' plus eps / h
    bend = (act.df(z + h) - act.df(z - h)) / (2 * h)
    assert np.abs(slope).max() <= act.sup_df + 1e-11
    assert np.abs(bend).max() <= act.sup_ddf + 1e-11
    for place, jump in act.kinks:
        near = place + np.array([-1e-12, 1e-12], np.longdouble)
        assert abs(float(np.diff(act.df(near))[0])) <= jump + 1e-11


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_torchs(name: str) -> None:
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    expected = ACTIVATIONS[name].module()(z)
    assert torch.equal(expected, ACTIVATIONS[name].eager(z))
    # torch's double functions are good to some units in the last place of the terms they add up.
    off = np.abs(ACTIVATIONS[name].f(z.numpy().astype(np.longdouble)) - expected.numpy())
    assert np.all(off <= 1e-14 * np.maximum(1, np.abs(z.numpy())))


def test_erf() -> None:
    z = np.linspace(-8, 8, 1601)
    off = np.abs(reference.erf(z) - np.vectorize(math.erf)(z))
    assert off.max() < 49 * np.finfo(np.float64).eps  # z² is rounded before its exponential: z² eps


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torch_is_within_the_bounds(name: str, dtype: torch.dtype) -> None:
    problem = Problem.random(33, [40, 50, 17, 9], dtype, hidden=name, output=name)
    actual, expected = problem.eager(), problem.exact()
    reference.assert_all_within(actual, expected)
    assert actual.named().keys() == expected.named().keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_torch_is_within_the_bounds_of_blocks(
    name: str, dtype: torch.dtype, dropout: float
) -> None:
    problem = Problem.random(
        33, [40, 40, 17, 17], dtype, hidden=name, output=name, dropout=dropout, residual=True
    )
    assert problem.skips == [True, False, True]
    reference.assert_all_within(problem.eager(), problem.exact())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bounds_are_tight(name: str, dtype: torch.dtype) -> None:
    """A fault of half a thousandth (float32) in one number stands out from the rounding allowed."""
    for problem in (
        Problem.random(8, [16, 12, 8], dtype, hidden=name, output=name),
        Problem.random(8, [16, 16, 8], dtype, hidden=name, output=name, dropout=0.3, residual=True),
    ):
        eps = torch.finfo(dtype).eps
        for key, result in problem.exact().named().items():
            largest = np.abs(result.value).max()
            # |z| < Δz at a kink lets a whole gradient through: then, and only then, a bound is
            # wide.
            assert np.median(result.bound) < 4000 * eps * float(largest), key


@pytest.mark.parametrize("residual", [False, True])
def test_a_wrong_result_is_rejected(dtype: torch.dtype, residual: bool) -> None:
    problem = Problem.random(8, [16, 16, 8], dtype, hidden="tanh", residual=residual)
    good = problem.eager().named()
    for name, bounded in problem.exact().named().items():
        for fault in (1.5, -1.5):
            off = good[name].clone()
            off.view(-1)[-1] = float(bounded.value.flat[-1]) + fault * bounded.bound.flat[-1]
            with pytest.raises(AssertionError, match="outside of their bounds"):
                assert_within(off, bounded)
        for wrong in (math.nan, math.inf):
            off = good[name].clone()
            off.view(-1)[0] = wrong
            with pytest.raises(AssertionError, match="outside of their bounds"):
                assert_within(off, bounded)
        with pytest.raises(AssertionError, match="shape"):
            assert_within(good[name].unsqueeze(0), bounded)


def test_a_wrong_network_is_rejected(dtype: torch.dtype) -> None:
    """Faults that kernels have: a term left out, a row mixed up, bias or activation forgotten."""
    problem = Problem.random(8, [17, 12, 8], dtype)
    y = problem.exact(backward=False).y
    x, acts, weights, biases = problem.x, problem.activations, problem.weights, problem.biases
    first, second = weights
    short = first.clone()
    short[:, -1] = 0
    for faulty in (
        eager(acts)(x, [short, second], biases),
        eager(acts)(x.roll(1, 0), weights, biases),
        eager(acts)(x, weights, [None, biases[1]]),
        eager(per_layer(2, "identity"))(x, weights, biases),
    ):
        with pytest.raises(AssertionError, match="outside of their bounds"):
            assert_within(faulty, y)


def test_wrong_noise_or_a_lost_input_is_rejected(dtype: torch.dtype) -> None:
    problem = Problem.random(8, [12, 12, 12], dtype, hidden="tanh", dropout=0.3, residual=True)
    expected = problem.exact()
    noises, skips = problem.noises, problem.skips
    first, second = noises
    assert first is not None
    assert second is not None
    flipped = first.clone()
    flipped[3, 4] = first.max() - flipped[3, 4]
    for faulty in (
        eager(problem.activations, noises, [False, True]),
        eager(problem.activations, noises, [True, False]),
        eager(problem.activations, [None, second], skips),
        eager(problem.activations, [first.roll(1, 0), second], skips),
        eager(problem.activations, [first, first], skips),
        eager(problem.activations, [(first > 0).to(dtype), second], skips),
        eager(problem.activations, [flipped, second], skips),
    ):
        with pytest.raises(AssertionError, match="outside of their bounds"):
            reference.assert_all_within(problem.run(faulty), expected)


def test_error_is_relative() -> None:
    expected = Bounded(np.array([3.0, 4.0]), np.zeros(2))
    assert reference.error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
