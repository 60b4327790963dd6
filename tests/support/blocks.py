"""Networks of blocks beside plain ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastmlp import _C, FusedMLP


def fused(*modules: nn.Module) -> FusedMLP:
    """Of these modules, in float64."""
    return FusedMLP.from_sequential(nn.Sequential(*modules).double())


def assert_fused(model: FusedMLP, x: Tensor) -> Tensor:
    """Runs fused, with the plain network's numbers: both readers of modules agree."""
    assert model.why_plain(x) is None
    assert _C.run_modules(model._modules, x) is not None
    return assert_as_plain(model, x)


def assert_as_plain(model: FusedMLP, x: Tensor, seed: int = 7) -> Tensor:
    """What comes out, the gradients and the generator are the plain Sequential's; the output.

    float64, where a few sums of at most a hundred terms of moderate size are right to 1e-12.
    """
    assert x.dtype == torch.float64
    outcomes = []
    for network in (model, model.as_sequential()):
        torch.manual_seed(seed)
        leaf = x.detach().clone().requires_grad_()
        y = network(leaf)
        given = [leaf, *(p for p in model.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(y, given, torch.linspace(-1, 2, y.numel()).to(y).view_as(y))
        with torch.no_grad():
            again = network(x)
        outcomes.append([y.detach(), *grads, again, torch.get_rng_state()])
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-10, atol=1e-12)
    assert torch.equal(outcomes[0][-1], outcomes[1][-1])
    return outcomes[0][0]


def assert_same_bits_on_threads(start: nn.Module, x: Tensor) -> None:
    """Output, gradients and buffers of a model are the same to the bit on one, two and three."""
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        model = copy.deepcopy(start)
        y = model(x)
        grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        results.append([y, *grads, *model.buffers()])
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, args, output: output + 1)
    return module


def with_its_own_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: 3 * x  # type: ignore[method-assign]
    return module
