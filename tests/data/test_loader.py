"""TensorLoader against DataLoader: the same batches, the same generators at every moment."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastmlp.data import TensorLoader
from fastmlp.data import loader as module

ROWS = 23
SIZES = (1, 4, 23, 100)  # 4 leaves three rows over, 1 and 23 none, 100 is never full


def columns(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Inputs [rows, 3, 2] and labels [rows], all of them different."""
    return torch.randn(rows, 3, 2), torch.arange(rows)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(
    tensors: tuple[Tensor, ...], own_generator: bool = False, **options: Any
) -> tuple[TensorLoader, DataLoader[Any]]:
    """Ours and torch's loader of the same data, each with its own generator in the same state."""
    generators = [seeded() if own_generator else None for _ in range(2)]
    return (
        TensorLoader(*tensors, generator=generators[0], **options),
        DataLoader(TensorDataset(*tensors), generator=generators[1], **options),
    )


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs) is list
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.stride() == other.stride()
        assert torch.equal(mine, other)


def draws(loader: DataLoader[Any], epochs: int = 2) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Each batch, None at the end of an epoch, and the states of both generators after it.

    The global generator starts from the same state for every loader, and nobody else draws from it.
    """

    def states() -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), (loader.generator or seeded()).get_state()

    torch.manual_seed(1)
    for _ in range(epochs):
        batches = iter(loader)
        yield (None, *states())
        for batch in batches:
            yield (batch, *states())
        yield (None, *states())


@pytest.mark.parametrize("own_generator", [False, True], ids=["global", "own"])
@pytest.mark.parametrize("drop_last", [False, True], ids=["keep", "drop"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
@pytest.mark.parametrize("batch_size", SIZES)
def test_batches_and_generators_are_those_of_the_data_loader(
    batch_size: int, shuffle: bool, drop_last: bool, own_generator: bool
) -> None:
    loaders = both(
        columns(), own_generator, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last
    )
    # Not interleaved, since they share the global generator.
    ours, theirs = (list(draws(loader)) for loader in loaders)
    assert len(ours) == len(theirs) == 2 * (len(loaders[1]) + 2)
    assert len(loaders[0]) == len(loaders[1])
    for (batch, *states), (expected, *expected_states) in zip(ours, theirs, strict=True):
        if expected is None:
            assert batch is None
        else:
            assert_same(batch, expected)
        for state, expected_state in zip(states, expected_states, strict=True):
            assert torch.equal(state, expected_state)


def test_shuffling_visits_every_row_once_and_differently_each_time() -> None:
    loader = TensorLoader(torch.arange(1000), batch_size=7, shuffle=True)
    epochs = [torch.cat([rows for (rows,) in loader]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(1000))


def test_more_batches_than_are_prepared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCHES_AT_ONCE", 2)
    for ours, theirs in zip(*both(columns(), True, batch_size=3, shuffle=True), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("own_generator", [False, True], ids=["global", "own"])
def test_an_epoch_left_early(own_generator: bool) -> None:
    seen = []
    for loader in both(columns(), own_generator, batch_size=4, shuffle=True):
        torch.manual_seed(2)
        seen.append([batch for count in (2, 0, 6) for batch in islice(loader, count)])
    assert len(seen[0]) == 8
    for ours, theirs in zip(*seen, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("own_generator", [False, True], ids=["global", "own"])
def test_two_iterators_at_once(own_generator: bool) -> None:
    seen = []
    for loader in both(columns(), own_generator, batch_size=4, shuffle=True):
        torch.manual_seed(3)
        seen.append([batch for pair in zip(loader, loader, strict=True) for batch in pair])
    assert len(seen[0]) == 2 * 6
    assert not torch.equal(seen[0][0][1], seen[0][1][1])
    for ours, theirs in zip(*seen, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_writing_to_a_batch_leaves_the_data_alone(shuffle: bool) -> None:
    x, y = columns()
    before = x.clone(), y.clone()
    for batch in TensorLoader(x, y, batch_size=4, shuffle=shuffle):
        for tensor in batch:
            tensor.zero_()
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.complex64, torch.uint8, torch.int32, torch.bool],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)], ids=str)
def test_dtypes_and_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = torch.randint(0, 9, (ROWS, *shape)).to(dtype), torch.arange(ROWS)
    for ours, theirs in zip(*both(tensors, True, batch_size=4, shuffle=True), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels_last"])
def test_memory_layouts(layout: str) -> None:
    tensor = {
        "transposed": torch.randn(6, ROWS).T,
        "strided": torch.randn(3 * ROWS, 8)[::3, ::2],
        "expanded": torch.randn(6).expand(ROWS, 6),
        "channels_last": torch.randn(ROWS, 3, 4, 5).to(memory_format=torch.channels_last),
    }[layout]
    assert not tensor.is_contiguous()
    for ours, theirs in zip(*both((tensor,), True, batch_size=4, shuffle=True), strict=True):
        assert_same(ours, theirs)


def test_gradients_reach_the_data() -> None:
    gradients = []
    for use in range(2):
        x = torch.ones(ROWS, 2, requires_grad=True)
        loader = both((x,), True, batch_size=4, shuffle=True, drop_last=True)[use]
        for number, (batch,) in enumerate(loader):
            (number * batch).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


class Strict(Tensor):
    def index_select(self, dim: int, index: Tensor) -> Tensor:
        assert index.device == self.device  # which CUDA insists on, "meta" does not
        return super().index_select(dim, index)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_batches_are_where_the_data_is(shuffle: bool) -> None:
    data = torch.empty(ROWS, 2, device="meta").as_subclass(Strict)
    loader = TensorLoader(data, batch_size=4, shuffle=shuffle)
    assert [batch.shape[0] for (batch,) in loader] == [4, 4, 4, 4, 4, 3]
    assert all(batch.device.type == "meta" for (batch,) in loader)


def test_attributes_are_those_of_a_data_loader() -> None:
    x, y = columns()
    generator = seeded()
    dataset = TensorDataset(x, y)
    loader = TensorLoader(dataset, batch_size=4, shuffle=True, drop_last=True, generator=generator)
    assert isinstance(loader, DataLoader)
    assert loader.dataset is dataset
    assert loader.generator is generator
    assert (loader.batch_size, loader.drop_last, loader.num_workers) == (4, True, 0)
    defaults = TensorLoader(x, y)
    assert defaults.dataset.tensors == (x, y)
    assert len(defaults) == ROWS
    assert (defaults.batch_size, defaults.drop_last, defaults.generator) == (1, False, None)
    with pytest.raises(ValueError, match="batch_size attribute should not be set"):
        loader.batch_size = 5


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))]
)
def test_copies_go_on_from_the_same_state(copied: Any) -> None:
    loader = TensorLoader(*columns(), batch_size=4, shuffle=True, generator=seeded())
    next(iter(loader))
    for ours, theirs in zip(copied(loader), loader, strict=True):
        assert_same(ours, theirs)


def test_no_rows_no_batches() -> None:
    assert list(TensorLoader(torch.empty(0, 3), batch_size=4)) == []
    assert len(TensorLoader(torch.empty(0, 3), batch_size=4)) == 0


class Derived(TensorDataset):
    pass


class Ungatherable(Tensor):
    """Refuses as torch does for a kind of tensor that it has no kernel for, like sparse CSR.

    Torch's error, too, is a NotImplementedError, which is a RuntimeError, of many lines. No tensor
    of such a kind stands here itself: torch may learn to gather from it.
    """

    def index_select(self, *_: Any) -> Tensor:
        raise NotImplementedError("not for this kind\nof tensor")


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ((), "nothing"),
        (([1, 2],), "list"),
        ((torch.zeros(3), 50), "Tensor, int"),
        ((TensorDataset(torch.zeros(3)), 50), "TensorDataset, int"),
        ((TensorDataset(torch.zeros(3)), TensorDataset(torch.zeros(3))), "TensorDataset, Tens"),
        ((Derived(torch.zeros(3)),), "Derived"),
    ],
)
def test_other_data_is_refused(data: tuple[Any, ...], given: str) -> None:
    with pytest.raises(TypeError, match=f"takes tensors or one TensorDataset, but got {given}"):
        TensorLoader(*data)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ((torch.zeros(3, 2), torch.zeros(4)), r"equally many rows, but got \[3, 4\]"),
        ((torch.zeros(3), torch.tensor(1.0)), "got one of no dimension"),
        (
            (torch.zeros(3), torch.zeros(3, device="meta")),
            r"on one device, but got \['cpu', 'meta'\]",
        ),
        (
            (torch.zeros(3), torch.zeros(3, 2).as_subclass(Ungatherable)),
            r"got one of torch.float32 \[3, 2\]: not for this kind$",
        ),
    ],
    ids=["rows", "dimensions", "devices", "kind"],
)
def test_tensors_that_do_not_fit_are_refused(data: tuple[Tensor, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TensorLoader(*data)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_wrong_batch_sizes_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"positive integer value, but got batch_size={wrong}"):
        TensorLoader(torch.zeros(3), batch_size=wrong)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="drop_last should be a boolean value"):
        TensorLoader(torch.zeros(3), drop_last=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples should be a positive integer value"):
        TensorLoader(torch.zeros(0), shuffle=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sampler'"):
        TensorLoader(torch.zeros(3), sampler=[0])  # type: ignore[call-arg]
