"""A reference of the network in wider arithmetic, and how far rounding may take a kernel from it.

Values are computed with numpy in a type with more bits than the one under test: float64 for
float32, ``np.longdouble`` for float64. The formulas are written out here, so nothing is shared with
the kernels or with torch.

Bounds follow N. J. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition, SIAM
2002, section 3. With the unit roundoff u = eps/2, a sum of k products in any order, with or without
FMA, is off by at most gamma_k Σ|a_i||b_i|, where gamma_k = k·u/(1 − k·u) (eq. 3.5 and the remark on
order after it), and by at most k times the smallest subnormal where products underflow. So, when a
layer's input a is known to within Δa:

    z  = W a + b      Δz  = |W| Δa + gamma_{k+1} (|W| (|a| + Δa) + |b|)
    f(z)              Δf = sup|f'| Δz + c u s(z)
    a' = n f(z) + a   Δa' = |n| (Δf + u (|f| + Δf)), plus Δa + u (|a'| + Δa') for the sum
    f'(z)             Δf' = sup|f''| Δz + 3 c u s'(z), and a jump of f' at k where |z − k| <= Δz
    h = n g           Δh = |n| (Δg + u (|g| + Δg))
    dz = h f'(z)      Δdz = Δh (|f'| + Δf') + |h| Δf' + 2u (|h| + Δh) (|f'| + Δf')
    dW = dzᵀ a        ΔdW = Δdzᵀ (|a| + Δa) + |dz|ᵀ Δa + gamma_batch (|dz| + Δdz)ᵀ (|a| + Δa)
    db = Σ dz         Δdb = Σ Δdz + gamma_batch Σ (|dz| + Δdz)
    dx = dz W + g     Δdx = Δdz |W| + gamma_out (|dz| + Δdz) |W|, plus Δg + u (|dx| + Δdx)

n is dropout's noise, and the last terms of a' and dx are those of a residual layer, whose input is
added to its output; where a layer has neither, these steps and their roundings are left out.

c = 8 roundings is what evaluating an activation may cost (range reduction, polynomial, scaling,
division, the products around it), each relative to the magnitude s of the greatest term in its
formula; a derivative may be computed from the rounded f(z), as in 1 − tanh², where twice f's error
joins its own.

An input x = β + s that is mostly β may be multiplied as s W and β Σ W, and in dW as dzᵀ s and β db.
Then |β| + |s| stands in the first layer's products where |a| stood, and three more roundings may
follow on one another: those of s, of the product with β, and of the sum of both. They are the
same sums where β = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Function = Callable[[Array], Array]
Network = Callable[[Tensor, list[Tensor], list["Tensor | None"]], Tensor]
T = TypeVar("T")

ROUNDINGS = 8  # c above
WIDER: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float64,
    torch.float64: np.longdouble,
}
SQRT_2 = np.sqrt(np.longdouble(2))
PI = np.arctan(np.longdouble(1)) * 4


# Activations


@dataclass(frozen=True)
class Activation:
    """A function of one number, with what the bounds have to know about it."""

    f: Function
    df: Function
    sup_df: float  # greatest |f'|
    sup_ddf: float  # greatest |f''| outside of the kinks
    kinks: Sequence[tuple[float, float]]  # where f' jumps, and by how much
    scale: Function | None  # s: greatest magnitude met while computing f; None: f is exact
    scale_d: Function | None  # s', the same of f'
    module: Callable[[], nn.Module]
    eager: Callable[[Tensor], Tensor]


def one(z: Array) -> Array:
    return np.ones_like(z)


def sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)))


def erf(z: Array) -> Array:
    """2/√π e^(-z²) Σ 2ⁿ z^(2n+1) / (2n+1)!!: terms of one sign, so nothing cancels."""
    z = np.asarray(z)
    x = np.clip(z, -7, 7)  # beyond, 1 − |erf| < 5e-23
    term = total = x
    n = 0
    while np.any(np.abs(term) > np.finfo(z.dtype).eps * np.abs(total) / 2):
        n += 1
        term = term * (2 * x * x / (2 * n + 1))
        total = total + term
    return total * np.exp(-x * x) * (2 / np.sqrt(PI)).astype(z.dtype)


def cdf(z: Array) -> Array:
    """Φ, the normal distribution function."""
    return (1 + erf(z / SQRT_2.astype(z.dtype))) / 2


def pdf(z: Array) -> Array:
    return np.exp(-z * z / 2) / np.sqrt(2 * PI).astype(z.dtype)


def gelu_inner(z: Array) -> Array:
    return np.sqrt(2 / PI).astype(z.dtype) * z * (1 + np.asarray("0.044715", z.dtype) * z * z)


def gelu_inner_d(z: Array) -> Array:
    return np.sqrt(2 / PI).astype(z.dtype) * (1 + 3 * np.asarray("0.044715", z.dtype) * z * z)


def gelu_tanh(z: Array) -> Array:
    return z * sigmoid(2 * gelu_inner(z))


def gelu_tanh_d(z: Array) -> Array:
    s = sigmoid(2 * gelu_inner(z))
    return s + 2 * z * s * sigmoid(-2 * gelu_inner(z)) * gelu_inner_d(z)


def silu_d(z: Array) -> Array:
    return sigmoid(z) * (1 + z * sigmoid(-z))


def leaky_relu(slope: float = 0.01) -> Activation:
    def f(z: Array) -> Array:
        return np.where(z > 0, z, slope * z)

    def df(z: Array) -> Array:
        return np.where(z > 0, np.ones_like(z), np.full_like(z, slope))

    return Activation(
        f, df, max(1, abs(slope)), 0, [(0, abs(1 - slope))], f, df,
        lambda: nn.LeakyReLU(slope), lambda z: F.leaky_relu(z, slope),
    )  # fmt: skip


def elu(alpha: float = 1.0) -> Activation:
    def f(z: Array) -> Array:
        return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))

    def df(z: Array) -> Array:
        return np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0)))

    a = abs(alpha)
    return Activation(
        f, df, max(1, a), a, [(0, abs(1 - alpha))], f, lambda z: np.maximum(a, one(z)),
        lambda: nn.ELU(alpha), lambda z: F.elu(z, alpha),
    )  # fmt: skip


def log1p_exp(z: Array) -> Array:
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0)


def mish_d(z: Array) -> Array:
    t = np.tanh(log1p_exp(z))
    return t + z * sigmoid(z) / np.cosh(np.minimum(log1p_exp(z), 300)) ** 2


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    def f(z: Array) -> Array:
        return np.where(beta * z > threshold, z, log1p_exp(beta * z) / beta)

    def df(z: Array) -> Array:
        return np.where(beta * z > threshold, 1, sigmoid(beta * z))

    return Activation(
        f, df, 1, abs(beta) / 4, [(threshold / beta, float(sigmoid(np.array(-threshold))))], f, df,
        lambda: nn.Softplus(beta, threshold), lambda z: F.softplus(z, beta, threshold),
    )  # fmt: skip


def selu_f(z: Array) -> Array:
    scale, alpha = (np.asarray(text, z.dtype) for text in SELU)
    return scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


def selu_d(z: Array) -> Array:
    scale, alpha = (np.asarray(text, z.dtype) for text in SELU)
    return scale * np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0)))


SELU = "1.0507009873554804934193349852946", "1.6732632423543772848170429916717"


def celu(alpha: float = 1.0) -> Activation:
    def f(z: Array) -> Array:
        return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0) / alpha))

    def df(z: Array) -> Array:
        return np.where(z > 0, 1, np.exp(np.minimum(z, 0) / alpha))

    return Activation(
        f, df, 1, 1 / alpha, [(0, 0)], f, one, lambda: nn.CELU(alpha), lambda z: F.celu(z, alpha)
    )


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z: z, one, 1, 0, [], None, None, nn.Identity, lambda z: z),
    "relu": Activation(
        lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype), 1, 0, [(0, 1)], None, None,
        nn.ReLU, F.relu,
    ),
    "leaky_relu": leaky_relu(),
    "elu": elu(),
    "sigmoid": Activation(
        sigmoid, lambda z: sigmoid(z) * sigmoid(-z), 0.25, 0.1, [], sigmoid, sigmoid,
        nn.Sigmoid, torch.sigmoid,
    ),
    "tanh": Activation(
        np.tanh, lambda z: 1 / np.cosh(np.clip(z, -300, 300)) ** 2, 1, 0.77, [], np.tanh, one,
        nn.Tanh, torch.tanh,
    ),
    "gelu": Activation(
        lambda z: z * cdf(z), lambda z: cdf(z) + z * pdf(z), 1.13, 0.8, [], lambda z: z, one,
        nn.GELU, F.gelu,
    ),
    # 1 − tanh² meets z times the derivative of tanh's argument; past |z| = 8 it is 0 in float64.
    "gelu_tanh": Activation(
        gelu_tanh, gelu_tanh_d, 1.13, 0.81, [], lambda z: z,
        lambda z: 1 + np.minimum(abs(z), 8) * gelu_inner_d(np.minimum(abs(z), 8)) / 2,
        lambda: nn.GELU(approximate="tanh"), lambda z: F.gelu(z, approximate="tanh"),
    ),
    # 1 − sigmoid meets z; past 40 it is 0 in float64.
    "silu": Activation(
        lambda z: z * sigmoid(z), silu_d, 1.1, 0.51, [], lambda z: z * sigmoid(z),
        lambda z: 1 + np.clip(z, 0, 40), nn.SiLU, F.silu,
    ),
    # … as 1 − tanh² does.
    "mish": Activation(
        lambda z: z * np.tanh(log1p_exp(z)), mish_d, 1.09, 0.65, [],
        lambda z: z * np.tanh(log1p_exp(z)), lambda z: 1 + np.clip(z, 0, 40), nn.Mish, F.mish,
    ),
    "softplus": softplus(),
    "hardswish": Activation(
        lambda z: z * np.clip(z + 3, 0, 6) / 6,
        lambda z: np.where(z <= -3, 0, np.where(z >= 3, 1, z / 3 + one(z) / 2)),
        1.5, 1 / 3, [(-3, 0.5), (3, 0.5)], lambda z: z, one, nn.Hardswish, F.hardswish,
    ),
    "selu": Activation(
        selu_f, selu_d, 1.76, 1.76, [(0, 0.71)], selu_f, lambda z: 1 + one(z), nn.SELU, F.selu
    ),
    "celu": celu(),
    "relu6": Activation(
        lambda z: np.clip(z, 0, 6), lambda z: ((z > 0) & (z < 6)).astype(z.dtype),
        1, 0, [(0, 1), (6, 1)], None, None, nn.ReLU6, F.relu6,
    ),
}  # fmt: skip


# The network


@dataclass(frozen=True)
class Bounded:
    """Values in the wider type, and how far the type under test may be from them (float64)."""

    value: Array
    bound: Array


@dataclass(frozen=True)
class Results(Generic[T]):
    """What a network's forward and backward give."""

    y: T
    x: T | None = None  # the gradients, None where not computed
    weights: Sequence[T | None] = ()
    biases: Sequence[T | None] = ()

    def named(self) -> dict[str, T]:
        """Those that were computed: "y", "dx", "dW0", "db0", ..."""
        everything = {"y": self.y, "dx": self.x}
        everything |= {f"dW{i}": w for i, w in enumerate(self.weights)}
        everything |= {f"db{i}": b for i, b in enumerate(self.biases)}
        return {name: value for name, value in everything.items() if value is not None}


def lookup(activation: str | Activation | None) -> Activation:
    return (
        activation if isinstance(activation, Activation) else ACTIVATIONS[activation or "identity"]
    )


def per_layer(
    layers: int, hidden: str | Activation = "relu", output: str | Activation | None = None
) -> list[Activation]:
    """The activations of a network that has one kind inside and another at its end."""
    return [lookup(hidden)] * (layers - 1) + [lookup(output)]


@np.errstate(over="ignore", under="ignore")
def exact(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[Activation],
    grad_output: Tensor | None = None,
    background: float = 0.0,
    noises: Sequence[Tensor | None] = (),
    skips: Sequence[bool] = (),
) -> Results[Bounded]:
    """Output and all gradients of a network.

    Args:
        x: input (..., in), float32 or float64: the type under test.
        weights: one (out, in) a layer.
        biases: one (out,) a layer, or None.
        activations: one a layer.
        grad_output: gradient of the output, (..., out); None: forward only.
        background: β above.
        noises: what dropout multiplies by, one (..., out) or None a layer; empty: none anywhere.
        skips: whether its input is added, one a layer; empty: nowhere.
    """
    wider = WIDER[x.dtype]
    # Half the spacing at 1, and as much of the reference's own arithmetic.
    u = torch.finfo(x.dtype).eps / 2 + float(np.finfo(wider(0)).eps) / 2
    subnormal = float(torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps)

    def wide(t: Tensor) -> Array:
        return t.detach().numpy().astype(wider)

    def gamma(k: int) -> float:
        return k * u / (1 - k * u)

    def size(values: Array) -> Array:
        return np.abs(values).astype(np.float64)

    def rounding(scale: Function | None, z: Array, dz: Array, roundings: int) -> Array | float:
        """c u s(z), s taken where z may lie; what would be subnormal may be flushed to 0."""
        if scale is None:
            return 0.0
        s = np.maximum(size(scale(z)), np.maximum(size(scale(z - dz)), size(scale(z + dz))))
        return roundings * u * s + float(torch.finfo(x.dtype).smallest_normal)

    def product(a: Array, b: Array, da: Array, db: Array, roundings: int | None = None) -> Array:
        """Bound of a computed a @ b whose factors are off by da and db."""
        k = a.shape[-1] if roundings is None else roundings
        a, b = size(a), size(b)
        return a @ db + da @ (b + db) + gamma(k) * ((a + da) @ (b + db)) + k * subnormal

    def terms(layer: int, a: Array) -> Array:
        """The magnitude of what a layer multiplies with its weight."""
        if layer > 0 or background == 0:
            return size(a)
        return size(a - wider(background)) + abs(background)

    more = 3 if background != 0 else 0  # roundings of the first layer's products

    def dropped(layer: int, b: Array, db: Array) -> tuple[Array, Array]:
        """n b and its bound."""
        noise = noises[layer] if noises else None
        if noise is None:
            return b, db
        n = wide(noise).reshape(b.shape)
        return n * b, size(n) * (db + u * (size(b) + db)) + subnormal

    def added(layer: int, b: Array, db: Array, a: Array, da: Array) -> tuple[Array, Array]:
        """b + a and its bound."""
        if not (skips and skips[layer]):
            return b, db
        b, db = b + a, db + da
        return b, db + u * (size(b) + db)

    batch = x.shape[:-1]
    a = wide(x).reshape(int(np.prod(batch)), x.shape[-1])
    da = np.zeros(a.shape)
    inputs, sums = [], []  # (a, Δa) and (z, Δz) of each layer
    for i, (weight, bias, act) in enumerate(zip(weights, biases, activations, strict=True)):
        w = wide(weight).T
        b = wide(bias) if bias is not None else np.zeros(w.shape[1], wider)
        z = a @ w + b
        k = w.shape[0] + 1 + (more if i == 0 else 0)
        dz = product(terms(i, a), w, da, np.zeros(w.shape), k) + gamma(k) * size(b)
        inputs.append((a, da))
        sums.append((z, dz))
        y, dy = act.f(z), act.sup_df * dz + rounding(act.scale, z, dz, ROUNDINGS)
        a, da = added(i, *dropped(i, y, dy), a, da)
    output = Bounded(a.reshape(*batch, a.shape[1]), da.reshape(*batch, a.shape[1]))
    if grad_output is None:
        return Results(output)

    g = wide(grad_output).reshape(a.shape)
    dg = np.zeros(g.shape)
    weight_grads: list[Bounded | None] = []
    bias_grads: list[Bounded | None] = []
    for i in reversed(range(len(weights))):
        (a, da), (z, dz), act = inputs[i], sums[i], activations[i]
        slope = act.df(z)
        dslope = act.sup_ddf * dz + rounding(act.scale_d, z, dz, 3 * ROUNDINGS)
        for place, jump in act.kinks:
            dslope = dslope + jump * (size(z - wider(place)) <= dz)
        steepest = size(slope) + dslope
        skipped = g, dg
        g, dg = dropped(i, g, dg)
        dg = dg * steepest + size(g) * dslope + 2 * u * (size(g) + dg) * steepest + subnormal
        g = g * slope
        k = g.shape[0] + (more if i == 0 else 0)
        weight_grads.append(Bounded(g.T @ a, product(g.T, terms(i, a), dg.T, da, k)))
        column = np.ones((1, g.shape[0]))
        db = product(column, g, np.zeros(column.shape), dg)
        bias_grads.append(Bounded(g.sum(0), db[0]) if biases[i] is not None else None)
        w = wide(weights[i])
        g, dg = added(i, g @ w, product(g, w, dg, np.zeros(w.shape)), *skipped)
    dx = Bounded(g.reshape(x.shape), dg.reshape(x.shape))
    return Results(output, dx, weight_grads[::-1], bias_grads[::-1])


# Runs to compare


def eager(
    activations: Sequence[Activation],
    noises: Sequence[Tensor | None] = (),
    skips: Sequence[bool] = (),
) -> Network:
    """The network as torch computes it."""

    def network(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        for i, (weight, bias, act) in enumerate(zip(weights, biases, activations, strict=True)):
            y = act.eager(F.linear(x, weight, bias))
            if noises and (noise := noises[i]) is not None:
                y = y * noise
            x = x + y if skips and skips[i] else y
        return x

    return network


def differentiate(
    network: Network,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    grad_output: Tensor,
) -> Results[Tensor]:
    """Output and all gradients; the arguments stay as they are, strides and all."""
    x = x.detach().requires_grad_()
    weights = [w.detach().requires_grad_() for w in weights]
    biases = [b if b is None else b.detach().requires_grad_() for b in biases]
    y = network(x, weights, biases)
    given = [x, *weights, *(b for b in biases if b is not None)]
    grads = iter(torch.autograd.grad(y, given, grad_output))
    return Results(
        y.detach(), next(grads), [next(grads) for _ in weights],
        [None if b is None else next(grads) for b in biases],
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A network with its input and the gradient of its output."""

    x: Tensor  # (..., in)
    weights: Sequence[Tensor]  # (out, in) of each layer
    biases: Sequence[Tensor | None]  # (out,) of each layer
    grad_output: Tensor  # (..., out)
    hidden: str = "relu"
    output: str | None = None
    background: float = 0.0  # of x, as `exact` takes it,
    noises: Sequence[Tensor | None] = ()  # and these
    skips: Sequence[bool] = ()

    @classmethod
    def random(
        cls,
        batch: int | Sequence[int],
        sizes: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        hidden: str = "relu",
        output: str | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> Problem:
        """Normal numbers, weights scaled so that no layer grows them.

        Args:
            dropout: after every layer, the last as well.
            residual: whether every layer that can does add its input.
        """
        shape = (batch,) if isinstance(batch, int) else tuple(batch)
        pairs = list(pairwise(sizes))
        weights = [torch.randn(n, m, dtype=dtype) / max(m, 1) ** 0.5 for m, n in pairs]
        return cls(
            torch.randn(*shape, sizes[0], dtype=dtype),
            weights,
            [torch.randn(n, dtype=dtype) if bias else None for _, n in pairs],
            torch.randn(*shape, sizes[-1], dtype=dtype),
            hidden,
            output,
            noises=[F.dropout(torch.ones(*shape, n, dtype=dtype), dropout) for _, n in pairs]
            if dropout > 0
            else (),
            skips=[m == n for m, n in pairs] if residual else (),
        )

    def tensors(self) -> list[Tensor]:
        """Input, weights, biases."""
        return [self.x, *self.weights, *(b for b in self.biases if b is not None)]

    @property
    def activations(self) -> list[Activation]:
        return per_layer(len(self.weights), self.hidden, self.output)

    @property
    def network(self) -> Network:
        """As torch computes it."""
        return eager(self.activations, self.noises, self.skips)

    def exact(self, backward: bool = True) -> Results[Bounded]:
        g = self.grad_output if backward else None
        return exact(
            self.x, self.weights, self.biases, self.activations, g, self.background,
            self.noises, self.skips,
        )  # fmt: skip

    def eager(self) -> Results[Tensor]:
        """What torch makes of it."""
        return self.run(self.network)

    def run(self, network: Network) -> Results[Tensor]:
        return differentiate(network, self.x, self.weights, self.biases, self.grad_output)


def error(actual: Tensor, expected: Bounded) -> float:
    """Relative error in the Euclidean norm."""
    off = np.linalg.norm((actual.detach().numpy() - expected.value).astype(np.float64))
    size = np.linalg.norm(expected.value.astype(np.float64))
    return float(off / size) if size else float(off)


def assert_within(actual: Tensor, expected: Bounded, what: str = "result") -> None:
    """Fails unless every number is finite and inside its bound."""
    assert actual.shape == expected.value.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {expected.value.shape}"
    )
    off = np.abs(actual.detach().numpy() - expected.value).astype(np.float64)
    bad = ~(off <= expected.bound)  # a NaN is bad too
    if bad.any():
        excess = np.where(np.isnan(off), np.inf, off / np.maximum(expected.bound, 1e-300))
        worst = np.unravel_index(np.argmax(np.where(bad, excess, -1)), off.shape)
        raise AssertionError(
            f"{what}{list(map(int, worst))} of shape {tuple(actual.shape)} is "
            f"{actual[worst].item()!r}, "
            f"expected {float(expected.value[worst])!r} ± {expected.bound[worst]:.3g}; "
            f"{int(bad.sum())} of {bad.size} numbers are outside of their bounds"
        )


def assert_all_within(actual: Results[Tensor], expected: Results[Bounded], what: str = "") -> None:
    got, want = actual.named(), expected.named()
    assert got.keys() <= want.keys()
    for name, tensor in got.items():
        assert_within(tensor, want[name], f"{what} {name}".strip())
