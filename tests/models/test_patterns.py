"""Each form of model, fused and plain: the same numbers, buffers and names."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from patterns import ALL, Pattern
from torch import Tensor, nn

import fastmlp
from fastmlp import TrainStep

EXACT = 1e-9  # relative, in float64: 1e7 roundings' worth, for training may amplify them
PATTERNS = pytest.mark.parametrize("form", ALL, ids=lambda form: form.name.replace(" ", "-"))


def made(form: Pattern) -> nn.Module:
    return form.make().double()


def inputs_of(form: Pattern, rows: int) -> tuple[Tensor, ...]:
    given = form.inputs(rows)
    return tuple(x.double().requires_grad_() if x.is_floating_point() else x for x in given)


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def results(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    """Outputs, all gradients of a sum of squares, and buffers."""
    torch.manual_seed(3)
    outputs = tensors(model(*inputs))
    found: dict[str, Tensor | None] = {f"output {i}": y for i, y in enumerate(outputs)}
    wanted = dict(model.named_parameters())
    wanted |= {f"input {i}": x for i, x in enumerate(inputs) if x.requires_grad}
    loss = sum((y * torch.linspace(0.5, 2, y.numel()).view_as(y)).square().sum() for y in outputs)
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    found |= dict(zip(wanted, gradients, strict=True))
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def check_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    """Off by roundings of the greatest of all: what is zero but for these has no size of its own,
    as a bias before a BatchNorm."""
    assert found.keys() == expected.keys()
    size = max(
        float(value.detach().abs().max())
        for value in expected.values()
        if value is not None and value.is_floating_point() and value.numel()
    )
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        torch.testing.assert_close(
            found[name],
            value,
            rtol=EXACT,
            atol=EXACT * size,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@PATTERNS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [2, 17])
def test_numbers(form: Pattern, training: bool, rows: int) -> None:
    plain = made(form).train(training)
    fused = fastmlp.fuse(copy.deepcopy(plain))
    inputs = inputs_of(form, rows)
    check_same(results(fused, inputs), results(plain, inputs))
    # The other mode, in the same model.
    check_same(
        results(fused.train(not training), inputs), results(plain.train(not training), inputs)
    )


@PATTERNS
def test_share(form: Pattern) -> None:
    model = form.make()
    found = fastmlp.explain(model, *form.inputs(8))
    assert found.share >= form.share
    assert (found.share == 0) == (form.share == 0)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert set(found.fused) <= linear <= set(found.fused) | found.plain.keys()
    assert not set(found.fused) & found.plain.keys()
    assert all(found.plain.values())
    assert fastmlp.explain(fastmlp.fuse(model), *form.inputs(8)).fused == found.fused
    without = fastmlp.explain(model)
    assert without.fused == found.fused
    assert all(line in str(found) for line in found.fused)


@PATTERNS
def test_names_and_states(form: Pattern) -> None:
    plain = made(form)
    fused = fastmlp.fuse(plain)
    assert [*fused.state_dict()] == [*plain.state_dict()]
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        assert a is b
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        assert a is b
    other = made(form)
    fastmlp.fuse(other, inplace=True)
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(other.state_dict())
    inputs = inputs_of(form, 5)
    check_same(results(other.eval(), inputs), results(plain.eval(), inputs))


@PATTERNS
def test_copies(form: Pattern) -> None:
    plain = made(form).eval()
    fused = fastmlp.fuse(copy.deepcopy(plain), inplace=True)
    assert isinstance(fused, type(plain))
    inputs = inputs_of(form, 5)
    expected = results(plain, inputs)
    for other in (
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        fastmlp.unfuse(fused),
        fastmlp.unfuse(fused, inplace=True),
    ):
        check_same(results(other, inputs), expected)
    kinds = [type(module) for module in fused.modules()]
    assert kinds == [type(module) for module in plain.modules()]


@PATTERNS
def test_compiled(form: Pattern) -> None:
    plain = made(form).eval()
    fused = fastmlp.fuse(plain)
    inputs = inputs_of(form, 6)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = dict(enumerate(tensors(plain(*inputs))))
        check_same(dict(enumerate(tensors(compiled(*inputs)))), expected)


@pytest.mark.parametrize("form", [form for form in ALL if form.steps], ids=lambda form: form.name)
def test_steps(form: Pattern) -> None:
    plain = made(form)
    fused = fastmlp.fuse(copy.deepcopy(plain))
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in (plain, fused)]
    step = TrainStep(fused, nn.CrossEntropyLoss(), optimizers[1])
    for seed in range(3):
        (x,) = (one.detach() for one in inputs_of(form, 9))
        torch.manual_seed(seed)
        output = plain(x)
        y = torch.arange(9) % output.size(1)
        loss = nn.CrossEntropyLoss()(output, y)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        torch.manual_seed(seed)
        torch.testing.assert_close(step(x, y), loss.detach(), rtol=EXACT, atol=EXACT)
    check_same(dict(fused.named_parameters()), dict(plain.named_parameters()))
