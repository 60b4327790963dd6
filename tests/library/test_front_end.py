"""What a newcomer meets first: how models are made, what fit() is given, what errors say."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import random
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval
from torch.utils.data import Subset, TensorDataset

from fastmlp import _C, FusedLinear, FusedMLP, Residual, TrainStep
from fastmlp._progress import Bar
from fastmlp.data import ImageDataset

# Models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: FusedMLP(nn.Linear(4, 3), nn.ReLU()),
        lambda: FusedMLP(nn.Linear(4, 3)),
        lambda: FusedMLP([nn.Linear(4, 3), nn.ReLU()]),
        lambda: FusedMLP(nn.Sequential(nn.Linear(4, 3), nn.ReLU())),
    ],
)
def test_modules_in_place_of_sizes(make: Callable[[], FusedMLP]) -> None:
    with pytest.raises(TypeError, match="from_sequential"):
        make()


@pytest.mark.parametrize("sizes", ["784,300,10", [784, 300.0, 10], 784, None])
def test_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(TypeError, match=r"expected sizes, such as \[784, 300, 10\]"):
        FusedMLP(sizes)


def test_sizes_one_by_one() -> None:
    for given in ((784, 300, 10), ([4, 3], "relu")):
        with pytest.raises(TypeError, match="expected the sizes in one list"):
            FusedMLP(*given)


def test_sizes_of_numpy() -> None:
    assert FusedMLP(np.array([4, 5, 3]))(torch.randn(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "module"),
    [
        (nn.ReLU, nn.ReLU), ("ReLU", nn.ReLU), ("relu", nn.ReLU), ("LeakyReLU", nn.LeakyReLU),
        ("GELU", nn.GELU), ("SiLU", nn.SiLU), (nn.Tanh, nn.Tanh), ("Identity", nn.Identity),
        (nn.Softshrink, nn.Softshrink),
    ],
)  # fmt: skip
def test_activations_by_class_and_by_its_name(given: Any, module: type[nn.Module]) -> None:
    model = FusedMLP([4, 5, 5, 3], activation=given, output_activation=given)
    made = [m for m in model if not isinstance(m, nn.Linear)]
    assert [type(m) for m in made] == [module] * 3
    assert len(set(map(id, made))) == 3
    if module is not nn.Softshrink:
        assert FusedLinear(4, 3, activation=given).activation in given_names(module)


def given_names(module: type[nn.Module]) -> list[str]:
    return [name for name in _C.ACTIVATIONS if name.replace("_", "") == module.__name__.lower()]


@pytest.mark.parametrize("given", ["Swish2", "softshrink", "", 3])
def test_unknown_activations(given: Any) -> None:
    with pytest.raises(ValueError, match="expected an activation of"):
        FusedMLP([4, 5, 3], activation=given)


class ReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x + 7


def test_classes_of_the_same_name() -> None:
    with pytest.raises(ValueError, match="expected an activation of"):
        FusedLinear(4, 3, activation=ReLU)
    assert bool((FusedMLP([4, 3], output_activation=ReLU)(torch.randn(2, 4)) == 7).all())
    with pytest.raises(TypeError, match="Linear cannot be made without arguments"):
        FusedMLP([4, 3, 2], activation=nn.Linear)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x).relu())
        return result


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Called(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = 2 * super().__call__(x)
        return result


class Backwards(nn.Sequential):
    def __iter__(self) -> Any:
        return iter(list(self._modules.values())[::-1])


class Named(nn.Sequential):
    """Derived, and computed as it is."""


def patched() -> nn.Sequential:
    sequential = nn.Sequential(nn.Linear(4, 3))
    sequential.forward = lambda x: x  # type: ignore[method-assign]
    return sequential


@pytest.mark.parametrize(
    "make",
    [
        Net, patched, lambda: Doubled(nn.Linear(4, 3)), lambda: Called(nn.Linear(4, 3)),
        lambda: Backwards(nn.Linear(4, 4), nn.ReLU()), lambda: Residual(nn.Linear(4, 4)),
        lambda: nn.ModuleList([nn.Linear(4, 3)]), lambda: nn.Linear(4, 3), lambda: None,
    ],
)  # fmt: skip
def test_what_is_no_sequential(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Sequential, got"):
        FusedMLP.from_sequential(make())


def test_what_a_sequential_has_of_its_own() -> None:
    hooked = nn.Sequential(nn.Linear(4, 3))
    handle = hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has a hook"):
        FusedMLP.from_sequential(hooked)
    handle.remove()
    FusedMLP.from_sequential(hooked)
    for name in ("scale", "offset"):
        owner = nn.Sequential(nn.Linear(4, 3))
        if name == "scale":
            owner.register_parameter(name, nn.Parameter(torch.ones(3)))
        else:
            owner.register_buffer(name, torch.ones(3))
        with pytest.raises(ValueError, match=f"got one with {name}"):
            FusedMLP.from_sequential(owner)


@pytest.mark.parametrize("kind", [nn.Sequential, Named, FusedMLP.from_sequential])
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(kind: Callable[..., nn.Sequential], training: bool) -> None:
    layers = nn.Linear(4, 4), nn.Dropout(0.5)
    plain = kind(nn.Sequential(*layers)) if kind == FusedMLP.from_sequential else kind(*layers)
    plain.train(training)
    fused = FusedMLP.from_sequential(plain)
    assert fused.training == fused.as_sequential().training == training
    assert fused[1] is plain[1]


@pytest.mark.parametrize("residual", [False, True])
def test_a_traced_model_obeys_eval(residual: bool) -> None:
    model = FusedMLP([6, 6, 3], dropout=0.5, residual=residual)
    x = torch.randn(20, 6)
    for module in (model, nn.Sequential(model, nn.Tanh())):
        traced = torch.fx.symbolic_trace(module)
        for training in (True, False):
            traced.train(training)
            module.train(training)
            results = []
            for network in (traced, module):
                torch.manual_seed(0)
                results.append(network(x))
            torch.testing.assert_close(*results)
            assert torch.equal(traced(x), traced(x)) != training


@pytest.mark.parametrize("activation", ["relu", "GELU"])
def test_no_batch_norm_is_folded_through_an_activation(activation: str) -> None:
    norm = nn.BatchNorm1d(3).eval()
    with pytest.raises(TypeError, match="cannot be folded"):
        fuse_linear_bn_eval(FusedLinear(4, 3, activation=activation).eval(), norm)


def test_a_batch_norm_is_folded_where_there_is_no_activation() -> None:
    norm = nn.BatchNorm1d(3).double().eval()
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    layer = FusedLinear(4, 3, activation=None, dtype=torch.float64).eval()
    x = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(fuse_linear_bn_eval(layer, norm)(x), norm(layer(x)))


def test_copies_of_a_fused_linear() -> None:
    layer = FusedLinear(4, 3, activation="relu")
    x = torch.randn(9, 4)
    pair = [layer, layer]
    for twins in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert twins[0] is twins[1]  # as one object
        assert twins[0] is not layer
        assert torch.equal(twins[0](x), layer(x))
        twins[0].weight.data.zero_()
    assert layer.weight.any()
    assert torch.equal(layer.__deepcopy__({})(x), layer(x))


class Locked(FusedLinear):
    """With state that cannot be copied, and says how."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()


def test_a_derived_fused_linear_copies_as_it_says() -> None:
    layer = Locked(4, 3)
    layer.lock = threading.Lock()
    twin = copy.deepcopy(layer)
    assert twin.lock is not layer.lock
    assert torch.equal(twin.weight, layer.weight)


# Both readers of modules --------------------------------------------------------------------------


class OwnGELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return x


def random_module(draw: random.Random, depth: int = 0) -> nn.Module:
    kind = draw.randrange(14 if depth < 2 else 12)
    if kind < 4:
        return nn.Linear(5, 5, bias=draw.random() < 0.7)
    if kind >= 12:
        inside = [random_module(draw, depth + 1) for _ in range(draw.randint(1, 3))]
        return Residual(*inside) if draw.random() < 0.8 else nn.Sequential(*inside)
    return (
        nn.ReLU(), nn.GELU(draw.choice(("none", "tanh"))),
        nn.LeakyReLU(draw.choice((0, 0.2, np.float32(0.1), torch.tensor(0.1)))),
        nn.ELU(draw.choice((1, 0.5))), nn.Dropout(draw.choice((0, 0.3, 1, np.float32(0.5)))),
        nn.Identity(),
        draw.choice((nn.Softshrink(), OwnGELU("tanh"), nn.Dropout(0.3, inplace=True))),
        FusedLinear(5, 5),
    )[kind - 4]  # fmt: skip


def test_both_readers_agree() -> None:
    """The one that every call asks, and the one that says why; with the plain numbers."""
    fused = 0
    for number in range(400):
        draw = random.Random(number)
        modules = [random_module(draw) for _ in range(draw.randint(1, 5))]
        model = FusedMLP.from_sequential(nn.Sequential(*modules)).double()
        model.train(draw.random() < 0.7)
        x = torch.randn(3, 5, dtype=torch.float64)
        why = model.why_plain(x)
        results = []
        for run in (lambda: _C.run_modules(model._modules, x), lambda: model.as_sequential()(x)):  # noqa: B023
            torch.manual_seed(number)
            results.append(run())
        assert (results[0] is None) == (why is not None), (model, why)
        if why is None:
            fused += 1
            torch.testing.assert_close(*results)
    assert 40 < fused < 360


@pytest.mark.parametrize("slope", ["a", None, 10**400])
def test_slopes_that_are_no_numbers(slope: Any) -> None:
    model = FusedMLP.from_sequential(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(slope)))
    assert "is not fused" in (model.why_plain(torch.randn(2, 4)) or "")
    assert _C.run_modules(model._modules, torch.randn(2, 4)) is None


def test_the_reason_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = FusedMLP.from_sequential(nn.Sequential(nn.Linear(4, 4), nn.Softshrink()))
    with caplog.at_level(logging.DEBUG, "fastmlp"):
        model(torch.randn(2, 4))
    assert "Softshrink" in caplog.text


# TrainStep ----------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = 2 * self.inner(x)
        return result


class Wrapped:
    """As Lightning and accelerate wrap an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_what_to_pass_instead() -> None:
    model = FusedMLP([4, 5, 3])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for wrapper, word in (
        (Holder(model), r"its \.inner"),
        (nn.DataParallel(model), r"its \.module"),
        (torch.compile(model, backend="eager"), r"its \._orig_mod"),
    ):
        with pytest.raises(TypeError, match=word):
            TrainStep(wrapper, nn.MSELoss(), optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Wrapped, which is another's wrapper: pass its \.optim"):
        TrainStep(model, nn.MSELoss(), Wrapped(optimizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [None, 0.5])
def test_repr(norm: float | None) -> None:
    model = FusedMLP([4, 5, 3])
    optimizer = torch.optim.Adam(model.parameters(), 0.125)
    text = repr(TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=norm))
    for part in (
        "TrainStep(",
        "FusedMLP(",
        "in_features=4",
        "CrossEntropyLoss()",
        "Adam (",
        "0.125",
    ):
        assert part in text
    assert ("max_grad_norm=0.5" in text) == (norm is not None)
    assert text.count("\n") == len(text.splitlines()) - 1


# fit ----------------------------------------------------------------------------------------------


def fitted(
    data: Any, loss: nn.Module | None = None, sizes: tuple[int, ...] = (6, 8, 3), **options: Any
) -> list[Tensor]:
    torch.manual_seed(1)
    model = FusedMLP(sizes, activation="tanh")
    step = TrainStep(model, loss or nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    step.fit(data, **{"batch_size": 8, "progress": False, "shuffle": False, **options})
    return [p.detach() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


ROWS, FEATURES = 40, 6


def images(height: int = 2) -> Tensor:
    return torch.randint(256, (ROWS, height, FEATURES // height), dtype=torch.uint8)


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "column-major": lambda x: x.t().contiguous().t(),
    "numpy": lambda x: x.numpy(),
    "numpy column-major": lambda x: np.asfortranarray(x.numpy()),
    "numpy backwards": lambda x: x.numpy()[::-1].copy()[::-1],
    "numpy read-only": lambda x: read_only(x.numpy()),
    "numpy big-endian": lambda x: x.numpy().astype(">f4"),
    "float64": lambda x: x.double(),
    "numpy float64": lambda x: x.double().numpy(),
    "every other column": lambda x: torch.stack((x, x + 1), 2).flatten(1)[:, ::2],
    "more dimensions": lambda x: x.reshape(ROWS, 2, 3),
    "a frame": lambda x: Frame(x.numpy()),
}


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


class Frame:
    """What NumPy takes for an array, as it does a DataFrame."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.asfortranarray(self.array)

    def __len__(self) -> int:
        return len(self.array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_any_kind(kind: str) -> None:
    x, y = torch.randn(ROWS, FEATURES), torch.randint(3, (ROWS,))
    expected = fitted((x, y))
    assert same(fitted((KINDS[kind](x), y)), expected)
    assert not same(fitted((x.flip(0), y)), expected)


@pytest.mark.parametrize(
    "kind",
    [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint64, "numpy"],
)
def test_classes_of_any_whole_type(kind: Any) -> None:
    x, y = torch.randn(ROWS, FEATURES), torch.randint(3, (ROWS,))
    given = y.numpy().astype("i4") if kind == "numpy" else y.to(kind)
    assert same(fitted((x, given)), fitted((x, y)))


@pytest.mark.parametrize("layout", ["columns", "images of a .mat", "one column", "sliced"])
def test_pixels_in_any_layout(layout: str) -> None:
    pixels, y = images(), torch.randint(3, (ROWS,))
    sizes = (FEATURES, 8, 3)
    x: Tensor = pixels.flatten(1)
    if layout == "columns":
        given = x.t().contiguous().t()
    elif layout == "images of a .mat":
        given = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    elif layout == "one column":
        x, sizes = x[:, :1].contiguous(), (1, 8, 3)
        given = x.t().contiguous().t()
    else:
        given = torch.cat((x, x), 1)[:, :FEATURES]
    assert same(fitted((given, y), sizes=sizes), fitted((x, y), sizes=sizes))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_targets_of_one_output(loss: nn.Module) -> None:
    x, y, sizes = torch.randn(ROWS, FEATURES), torch.rand(ROWS), (FEATURES, 8, 1)
    expected = fitted((x, y.unsqueeze(1)), loss, sizes)
    assert same(fitted((x, y), loss, sizes), expected)
    assert same(fitted((x.numpy(), y.double().numpy()), loss, sizes), expected)


def test_numbers_of_numpy() -> None:
    x, y = torch.randn(ROWS, FEATURES), torch.randint(3, (ROWS,))
    numbers = {"batch_size": np.int64(8), "epochs": np.int32(2), "callback_every": np.uint8(3)}
    assert same(fitted((x, y), **numbers), fitted((x, y), batch_size=8, epochs=2))
    for wrong in (8.0, "8", None, np.float64(8), 0, np.int64(-1)):
        with pytest.raises(ValueError, match="batch_size to be a positive integer"):
            fitted((x, y), batch_size=wrong)


def test_subsets() -> None:
    x, y = torch.randn(ROWS, FEATURES), torch.randint(3, (ROWS,))
    whole = TensorDataset(x, y)
    rows = [3, 1, -2, 30, 3, *range(10, 25)]
    expected = fitted((x[rows], y[rows]))
    assert same(fitted(Subset(whole, rows)), expected)
    with pytest.raises(TypeError, match="got Subset"):  # whose items are x and y
        fitted(Subset((x, y), [0, 1]))  # type: ignore[arg-type]
    assert same(
        fitted(Subset(Subset(whole, range(ROWS - 1, -1, -1)), [ROWS - 1 - r % ROWS for r in rows])),
        expected,
    )
    pixels = ImageDataset(images(), y)
    assert same(fitted(Subset(pixels, rows)), fitted((pixels.images[rows], y[rows])))
    shuffled = [
        fitted(data, shuffle=True, generator=torch.Generator().manual_seed(5))
        for data in (Subset(whole, rows), (x[rows], y[rows]))
    ]
    assert same(*shuffled)
    with pytest.raises(IndexError):
        fitted(Subset(whole, [ROWS]))
    with pytest.raises(ValueError, match="at least one row"):
        fitted(Subset(whole, []))


class Parity(ImageDataset):
    def __getitem__(self, index: Any) -> tuple[Any, int]:
        image, label = super().__getitem__(index)
        return image, label % 2


def test_items_of_a_derived_data_set_are_not_passed_over() -> None:
    data = Parity(images(), torch.randint(3, (ROWS,)))
    for given in (data, Subset(data, range(20))):
        with pytest.raises(TypeError, match="Parity makes items of its own"):
            fitted(given)


@pytest.mark.parametrize(
    "data",
    [
        (["a", "b"], torch.zeros(2)), (np.array(["a"]), np.zeros(1)), [torch.zeros(2, 6)],
        (torch.zeros(2, 6), torch.zeros(2), torch.zeros(2)), {"x": 1}, "ab",
    ],
)  # fmt: skip
def test_what_is_no_data(data: Any) -> None:
    with pytest.raises(TypeError, match=r"expected \(inputs, targets\) of tensors or arrays"):
        fitted(data)


def test_whole_numbers_are_no_inputs() -> None:
    with pytest.raises(TypeError, match=r"got torch.int64. Convert them: inputs.float\(\)"):
        fitted((torch.ones(ROWS, FEATURES, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.long)))


@pytest.mark.parametrize("ignored", [0, 15, ROWS])
def test_the_error_is_that_of_rows_that_count(ignored: int) -> None:
    model = FusedMLP([FEATURES, 8, 3])
    x = torch.randn(ROWS, FEATURES)
    with torch.no_grad():
        predicted = model(x).argmax(1)
    y = torch.where(torch.arange(ROWS) % 4 == 0, (predicted + 1) % 3, predicted)
    y[torch.randperm(ROWS)[:ignored]] = -7
    counted = y != -7
    loss = nn.CrossEntropyLoss(ignore_index=-7)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    reports = []
    [whole] = step.fit((x, y), 8, shuffle=False, callback=reports.append, callback_every=2)
    wrong = (predicted != y) & counted
    assert_fraction(whole.error, wrong.sum(), counted.sum())
    for number, report in enumerate(reports):
        rows = slice(16 * number, 16 * number + 16)
        assert_fraction(report.error, wrong[rows].sum(), counted[rows].sum())


@pytest.mark.parametrize(("ignore", "label"), [(-100, 156), (256, 0)])
def test_labels_of_a_byte_are_not_taken_for_the_class_that_is_ignored(
    ignore: int, label: int
) -> None:
    model = FusedMLP([4, 200])
    loss = nn.CrossEntropyLoss(ignore_index=ignore)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    y = torch.full((10,), label, dtype=torch.uint8)
    x = torch.randn(10, 4)
    [report] = step.fit((x, y), 5, progress=False)
    assert_fraction(report.error, (model(x).argmax(1) != y).sum(), torch.tensor(10))


def assert_fraction(error: float | None, wrong: Tensor, counted: Tensor) -> None:
    assert error is not None
    if counted == 0:
        assert math.isnan(error)
    else:
        assert error == pytest.approx(float(wrong / counted))


# The bar ------------------------------------------------------------------------------------------


def test_the_bar_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython's kernel for notebooks is told by its shell; stderr is no terminal there."""
    made: list[str] = []

    def tqdm(which: str) -> Any:
        class FakeBar:
            def __init__(self, **_: Any) -> None:
                made.append(which)

            def close(self) -> None: ...

        module = ModuleType(which)
        module.tqdm = FakeBar  # type: ignore[attr-defined]
        return module

    monkeypatch.setitem(sys.modules, "tqdm", tqdm("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", tqdm("tqdm.auto"))
    with Bar(3):
        pass
    shell = type("ZMQInteractiveShell", (), {})()
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    with Bar(3):
        pass
    with Bar(3, False):
        pass
    assert made == ["tqdm.auto"]
