"""The network and its training step in JAX, whose weights are (in, out)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import BETAS, EPS, Problem


def started(threads: int) -> Any:
    """The module ``jax``, with so many threads: that counts the first time only."""
    # Read once, when JAX starts: the size of its thread pool, and no other device.
    os.environ["NPROC"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    # Dispatched to another thread, a call that is waited for at once takes up to four times longer.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return jax


def parameters(problem: Problem) -> Any:
    """Weight and bias of each layer."""
    import jax.numpy as jnp

    return [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in problem.parameters()]


def arrays(parameters: Any) -> list[np.ndarray[Any, Any]]:
    """Weight (out, in) and bias, or the gradients of these, of each layer in turn."""
    return [np.array(array).T for layer in parameters for array in layer]


def network(problem: Problem) -> Callable[[Any, Any], Any]:
    """The function of parameters and input."""
    import jax

    def output(parameters: Any, x: Any) -> Any:
        for (w, b), skip in zip(parameters[:-1], problem.shape.skips, strict=False):
            y = jax.nn.relu(x @ w + b)
            x = x + y if skip else y
        w, b = parameters[-1]
        return x @ w + b

    return output


def training(problem: Problem, optimizer: str, lr: float) -> tuple[Any, Callable[..., Any]]:
    """A state, whose first part are the parameters, and the step from state and batch to the next.

    The step returns the loss and the new state.
    """
    import jax
    import jax.numpy as jnp

    output, start = network(problem), parameters(problem)

    def mean_loss(parameters: Any, x: Any, y: Any) -> Any:
        scores = jax.nn.log_softmax(output(parameters, x))
        return -scores[jnp.arange(len(y)), y].mean()

    def sgd(state: Any, gradients: Any) -> Any:
        return (jax.tree.map(lambda p, g: p - lr * g, state[0], gradients),)

    def adam(state: Any, gradients: Any) -> Any:
        parameters, count, mean, square = state
        count = count + 1
        mean = jax.tree.map(lambda m, g: m + (1 - BETAS[0]) * (g - m), mean, gradients)
        square = jax.tree.map(lambda s, g: BETAS[1] * s + (1 - BETAS[1]) * g * g, square, gradients)
        # 1 - beta ** count, of whose digits float32 would leave four at first.
        bias = [-jnp.expm1(count * math.log(beta)) for beta in BETAS]
        rate, root = lr / bias[0], jnp.sqrt(bias[1])

        def updated(p: Any, m: Any, s: Any) -> Any:
            return p - rate * m / (jnp.sqrt(s) / root + EPS)

        return jax.tree.map(updated, parameters, mean, square), count, mean, square

    update = {"sgd": sgd, "adam": adam}[optimizer]

    def step(state: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(mean_loss)(state[0], x, y)
        return value, update(state, gradients)

    if optimizer == "sgd":
        return (start,), step
    moments = (jax.tree.map(jnp.zeros_like, start) for _ in range(2))
    return (start, jnp.zeros(()), *moments), step
