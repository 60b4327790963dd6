"""TrainStep.fit: the batches, the numbers and the reports of the plain loop over a DataLoader."""

import copy
import sys
from typing import Any

import pytest
import torch
from states import assert_same as assert_same_state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from twins import CLASSES, LOSSES, OPTIMIZERS, assert_same, target

from fastmlp import FusedMLP, TrainStep, _epochs
from fastmlp.data import Compose, ImageDataset, Normalize, ToTensor

SIZES = [12, 9, 3]


def table(rows: int = 53, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, SIZES[0], dtype=dtype), torch.randint(SIZES[-1], (rows,))


def make(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[FusedMLP, TrainStep]:
    torch.manual_seed(3)
    model = FusedMLP(SIZES, dtype=dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    return model, TrainStep(model, nn.CrossEntropyLoss(), optimizer)


def plain(loader: DataLoader[Any], epochs: int) -> tuple[nn.Module, list[list[float]]]:
    """The same training by torch alone, and the loss of each batch."""
    torch.manual_seed(3)
    model = FusedMLP(SIZES, dtype=torch.float64).as_sequential()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses: list[list[float]] = []
    for _ in range(epochs):
        losses.append([])
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    return model, losses


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 10, 53, 100])
def test_batches_are_those_of_a_data_loader(
    batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    x, y = table()
    if drop_last and batch_size > len(x):
        with pytest.raises(ValueError, match="fill no batch"):
            make()[1].fit((x, y), batch_size, drop_last=True)
        return
    theirs, ours = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(x, y), batch_size, shuffle, drop_last=drop_last,
                        generator=theirs)  # fmt: skip
    twin, losses = plain(loader, 2)
    model, step = make()
    reports = step.fit((x, y), batch_size, epochs=2, shuffle=shuffle, drop_last=drop_last,
                       generator=ours)  # fmt: skip
    assert_same(model, twin)
    assert torch.equal(theirs.get_state(), ours.get_state())
    sizes = [min(batch_size, len(x) - i * batch_size) for i in range(len(losses[0]))]
    for report, epoch in zip(reports, losses, strict=True):
        mean = sum(loss * size for loss, size in zip(epoch, sizes, strict=True)) / sum(sizes)
        assert report.loss == pytest.approx(mean, rel=1e-9)
        assert report.batch == report.batches == len(sizes)


def test_global_generator() -> None:
    x, y = table()
    torch.manual_seed(3)
    twin = FusedMLP(SIZES, dtype=torch.float64).as_sequential()
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    torch.manual_seed(11)
    for inputs, labels in DataLoader(TensorDataset(x, y), 10, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(inputs), labels).backward()
        optimizer.step()
    model, step = make()
    torch.manual_seed(11)
    step.fit(TensorDataset(x, y), 10)
    assert_same(model, twin)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fit_is_steps(optimizer: str) -> None:
    """Bit for bit, with all that the optimizer keeps: its scalars are rounded in each step."""
    x, y = table(dtype=torch.float32)
    model = FusedMLP(SIZES)
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model, 1))
    one = copy.deepcopy(step)
    step.fit((x, y), 10, epochs=3, shuffle=False)
    for _ in range(3):
        for batch in zip(x.split(10), y.split(10), strict=True):
            one(*batch)
    assert_same_state(step.optimizer.state_dict(), one.optimizer.state_dict())
    assert_same_state(step.model.state_dict(), one.model.state_dict())


def test_reports_and_error() -> None:
    x, y = table(95)
    model, step = make()
    frozen = copy.deepcopy(model)
    seen: list[Any] = []
    step.optimizer.param_groups[0]["lr"] = 0.0
    total = step.fit((x, y), 10, shuffle=False, callback=seen.append, callback_every=4)[0]
    assert [(r.epoch, r.batch, r.batches) for r in seen] == [(1, 4, 10), (1, 8, 10), (1, 10, 10)]
    wrong = frozen(x).argmax(1) != y
    assert total.error == pytest.approx(wrong.double().mean().item())
    assert seen[1].error == pytest.approx(wrong[40:80].double().mean().item())
    assert seen[2].error == pytest.approx(wrong[80:].double().mean().item())
    assert step.correct == 5 - int(wrong[90:].sum())


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_fit_makes_the_steps_of_every_loss(loss: str, dtype: torch.dtype) -> None:
    """To the bit, and its report is of their losses and of their wrong predictions."""
    case, rows, size = LOSSES[loss], 53, 16
    x = torch.randn(rows, SIZES[0], dtype=dtype)
    y = target(case.target, (rows, CLASSES), dtype)
    models = [FusedMLP([*SIZES[:2], CLASSES], dtype=dtype)]
    models.append(copy.deepcopy(models[0]))
    fitted, stepped = (
        TrainStep(m, case.make().to(dtype), torch.optim.SGD(m.parameters(), 0.01 / case.size))
        for m in models
    )
    [report] = fitted.fit((x, y), size, shuffle=False, progress=False)
    losses, correct = 0.0, 0
    for first in range(0, rows, size):
        part = slice(first, first + size)
        batch = tuple(t[part] for t in y) if isinstance(y, tuple) else y[part]
        losses += float(stepped(x[part], batch)) * len(x[part])
        correct += stepped.correct or 0
    assert report.loss == pytest.approx(losses / rows, rel=1e-12, nan_ok=True)
    if case.target == "classes":
        ignored = int((y == stepped.loss.ignore_index).sum())
        counted = rows - ignored
        assert report.error == pytest.approx((counted - correct) / counted)
    else:
        assert report.error is None
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("outputs", [1, 3])
def test_variances_of_any_kind(outputs: int) -> None:
    """Of each row, of each number, one for all, of NumPy; and they are gathered as the rows are."""
    x, y = torch.randn(40, 6), torch.randn(40, outputs)
    var = 0.5 + torch.rand(40)
    results = []
    for given in (var, var[:, None], var[:, None].expand(-1, outputs), var.numpy(),
                  var.double(), torch.full((40, outputs), 0.75), 0.75):  # fmt: skip
        torch.manual_seed(0)
        model = FusedMLP([6, outputs])
        step = TrainStep(model, nn.GaussianNLLLoss(), torch.optim.SGD(model.parameters(), 0.1))
        step.fit((x, (y, given)), 7, progress=False, generator=torch.Generator().manual_seed(2))
        results.append(list(model.parameters()))
    for of, other in ((0, 1), (0, 2), (0, 3), (0, 4), (5, 6)):
        for a, b in zip(results[of], results[other], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(results[0][0], results[5][0])


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (torch.randn(9, 3), TypeError, r"expected \(inputs, \(targets, variances\)\)"),
        ((torch.randn(9, 3),) * 3, TypeError, r"expected \(inputs, \(targets, variances\)\)"),
        ((torch.randn(9, 3), 1), TypeError, r"expected \(inputs, \(targets, variances\)\)"),
        ((torch.randn(9, 3), torch.ones(8)), ValueError, "as many variances as targets"),
        ((torch.randn(9, 3), torch.ones(1, 3)), ValueError, "as many variances as targets"),
        ((torch.randn(9, 3), torch.tensor(1.0)), ValueError, "as many variances as targets"),
        ((torch.randn(9, 3), torch.ones(9, 2)), ValueError, "var is of incorrect size"),
        ((torch.randn(9, 3), -torch.ones(9)), ValueError, "var has negative entry/entries"),
        ((torch.randn(9, 3), -1.0), ValueError, "var has negative entry/entries"),
    ],
)
def test_variances_that_do_not_fit(targets: Any, error: type[Exception], message: str) -> None:
    model = FusedMLP([6, 3])
    before = [p.detach().clone() for p in model.parameters()]
    step = TrainStep(model, nn.GaussianNLLLoss(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(error, match=message):
        step.fit((torch.randn(9, 6), targets), 4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    step = TrainStep(model, nn.MSELoss(), step.optimizer)
    with pytest.raises(TypeError, match=r"expected \(inputs, targets\)"):
        step.fit((torch.randn(9, 6), (torch.randn(9, 3), torch.ones(9))), 4, progress=False)


def test_regression_has_no_error() -> None:
    x = torch.randn(20, SIZES[0])
    model = FusedMLP(SIZES)
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    report = step.fit((x, torch.randn(20, SIZES[-1])), 5)[0]
    assert report.error is None
    assert step.correct is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_normalised(dtype: torch.dtype) -> None:
    images = torch.randint(256, (40, 3, 4), dtype=torch.uint8)
    labels = torch.randint(SIZES[-1], (40,))
    transform = Compose([ToTensor(), Normalize((0.13,), (0.31,))])
    floats = ((images.to(dtype) / 255) - 0.13) / 0.31
    results = []
    for data, options in (
        ((floats, labels), {}),
        ((images, labels), {"normalize": (0.13, 0.31)}),
        (ImageDataset(images, labels, transform), {}),
    ):
        model, step = make(dtype)
        step.fit(data, 7, generator=torch.Generator().manual_seed(1), **options)
        results.append([p.detach().clone() for p in model.parameters()])
    # An input differs by three roundings at most; six steps of Adam at a rate of 0.01 move a
    # parameter by 0.06 in all, of which a rounding of the gradient changes as many parts.
    bound = 1000 * torch.finfo(dtype).eps
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize(("first", "end"), [(0, 100), (37, 61), (64, 64)])
def test_runs_of_batches_end_where_they_must(
    first: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_epochs, "_SECONDS_A_CALL", 1e6)  # as long as they may be
    runs = list(_epochs.calls(first, end, 10, 24))
    assert [row for a, b in runs for row in range(a, b)] == list(range(first, end))
    for a, b in runs:
        assert a < b
        assert not any(i % 10 == 0 or i % 24 == 0 for i in range(a + 1, b))
    if first == 0:
        assert [b - a for a, b in runs[:4]] == [1, 2, 4, 3]


def test_runs_of_batches_take_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(_epochs, "perf_counter", lambda: now)
    sizes = []
    for a, b in _epochs.calls(0, 30, 1000):
        sizes.append(b - a)
        now += (b - a) * (1 / 128 if a < 15 else 1 / 16)  # exact, and slower from batch 15 on
    assert sizes == [1, 2, 4, 8, 12, 1, 1, 1]


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    make()[1].fit(table(), 10, epochs=2, progress=True)
    told = capsys.readouterr().err
    assert "12/12" in told
    assert "loss=" in told
    make()[1].fit(table(), 10)  # stderr is no terminal
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        make()[1].fit(table(), 10, progress=True)


def test_interrupted_between_two_batches() -> None:
    x, y = table(50)
    model, step = make()

    def stop(report: Any) -> None:
        if report.batch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step.fit((x, y), 10, shuffle=False, callback=stop, callback_every=3)
    twin, other = make()
    for i in range(3):
        other(x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = step.optimizer.state_dict(), other.optimizer.state_dict()
    assert ours["state"][0]["step"] == theirs["state"][0]["step"] == 3


def test_a_bad_label_leaves_the_steps_before_it() -> None:
    x, y = table(30)
    y[25] = SIZES[-1]
    model, step = make()
    with pytest.raises(IndexError, match="out of bounds"):
        step.fit((x, y), 10, shuffle=False, callback_every=3)
    assert step.optimizer.state_dict()["state"][0]["step"] == 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, y = torch.randn(300, 300), torch.randint(10, (300,))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            model = FusedMLP([300, 257, 10])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, max_grad_norm=1.0)
            step.fit((x, y), 128, epochs=2, shuffle=False)
            results.append([p.detach().clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("data", "options", "error"),
    [
        (DataLoader([1, 2]), {}, TypeError),
        ((torch.randn(3, 12), torch.randint(3, (4,))), {}, ValueError),
        ((torch.randn(0, 12), torch.randint(3, (0,))), {}, ValueError),
        ((torch.randn(3, 12), torch.randint(3, (3,))), {"batch_size": 0}, ValueError),
        ((torch.randn(3, 12), torch.randint(3, (3,))), {"epochs": 0}, ValueError),
        ((torch.randn(3, 12), torch.randint(3, (3,))), {"normalize": (0.1, 0.3)}, ValueError),
        ((torch.randn(3, 11), torch.randint(3, (3,))), {}, RuntimeError),
        ((torch.randn(3, 12).half(), torch.randint(3, (3,))), {}, RuntimeError),
    ],
)
def test_what_does_not_fit(data: Any, options: dict[str, Any], error: type[Exception]) -> None:
    model, step = make(torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error):
        step.fit(data, **({"batch_size": 2} | options))
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not step.optimizer.state or all(s["step"] == 0 for s in step.optimizer.state.values())


def test_a_transform_of_ones_own_is_refused() -> None:
    images = torch.zeros(4, 3, 4, dtype=torch.uint8)
    data = ImageDataset(images, torch.zeros(4, dtype=torch.int64), lambda image: image)
    with pytest.raises(ValueError, match="DataLoader"):
        make(torch.float32)[1].fit(data, 2)
