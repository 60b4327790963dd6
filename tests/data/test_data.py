"""Datasets, transforms, and every fault that files can have."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import (
    TREES,
    idx_bytes,
    mnist_folder,
    needs_mnist,
    random_images,
    write_idx,
    write_png_tree,
)
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from fastmlp._faults import MissingExtra
from fastmlp.data import (
    Batch,
    Compose,
    DataError,
    DigitsDataset,
    ImageDataset,
    MNISTDataset,
    Normalize,
    ToTensor,
    collate,
    digits,
    download,
    download_mnist,
)
from fastmlp.data.images import has_own_items


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """40 training images and 20 test images, as IDX files."""
    folder = tmp_path / "idx"
    write_idx(folder, *random_images(40), train=True)
    write_idx(folder, *random_images(20), train=False)
    return folder


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("train", [True, False])
def test_idx_round_trip(tmp_path: Path, suffix: str, place: str, train: bool) -> None:
    images, labels = random_images(23)
    write_idx(tmp_path / place, images, labels, train, suffix)
    dataset = MNISTDataset(tmp_path, train)
    assert torch.equal(dataset.images, images)
    assert torch.equal(dataset.labels, labels)
    assert dataset.labels.dtype == torch.int64
    assert len(dataset) == 23


def test_idx_files_may_be_spelled_with_a_dot_and_named_against_their_content(
    tmp_path: Path,
) -> None:
    images, labels = random_images(10)
    (tmp_path / "train-images.idx3-ubyte").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "train-labels.idx1-ubyte.gz").write_bytes(idx_bytes(labels))
    dataset = MNISTDataset(tmp_path)
    assert torch.equal(dataset.images, images)
    assert torch.equal(dataset.labels, labels)


@pytest.mark.parametrize("names", [TREES, {True: "train", False: "test"}])
def test_png_tree_holds_the_same_as_the_images_it_was_written_from(
    tmp_path: Path, names: dict[bool, str]
) -> None:
    for train in (True, False):
        images, labels = random_images(30 if train else 20)
        write_png_tree(tmp_path / names[train], images, labels)
        (tmp_path / names[train] / "3" / "notes.txt").write_text("not an image")
        (tmp_path / names[train] / ".cache").mkdir()
        dataset = MNISTDataset(tmp_path, train)
        order = labels.argsort(stable=True)  # by label, then by name
        assert torch.equal(dataset.images, images[order])
        assert torch.equal(dataset.labels, labels[order])


def test_png_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    images, _ = random_images(12)
    write_png_tree(tmp_path / "train", images, torch.arange(12))
    dataset = MNISTDataset(tmp_path, classes=12)
    assert dataset.labels.tolist() == list(range(12))
    assert torch.equal(dataset.images, images)


def test_colours_turn_to_grey(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    (tmp_path / "train" / "5").mkdir(parents=True)
    pil.new("RGB", (3, 2), (200, 200, 200)).save(tmp_path / "train" / "5" / "a.PNG")
    assert MNISTDataset(tmp_path).images.tolist() == [[[200] * 3] * 2]


@needs_mnist
def test_mnist_itself(tmp_path: Path) -> None:
    folder = mnist_folder()
    assert folder is not None
    dataset = MNISTDataset(folder, train=False)
    assert dataset.images.shape == (10000, 28, 28)
    assert dataset.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    write_png_tree(tmp_path / "testing", dataset.images[:200], dataset.labels[:200])
    tree = MNISTDataset(tmp_path, train=False)
    order = dataset.labels[:200].argsort(stable=True)
    assert torch.equal(tree.images, dataset.images[:200][order])


# ---- items and batches -----------------------------------------------------------------------


def test_an_item_is_a_float_image_and_an_int(idx_folder: Path) -> None:
    dataset = MNISTDataset(idx_folder)
    image, label = dataset[7]
    assert (image.shape, image.dtype) == ((1, 4, 6), torch.float32)
    assert torch.equal(image[0], dataset.images[7].to(torch.float32) / 255)
    assert type(label) is int
    assert label == 7
    assert torch.equal(dataset[-1][0], dataset[39][0])
    assert torch.equal(dataset[np.int64(3)][0], dataset[torch.tensor(3)][0])


@pytest.mark.parametrize("index", [40, -41])
def test_an_index_out_of_range_raises_index_error(idx_folder: Path, index: int) -> None:
    dataset = MNISTDataset(idx_folder)
    with pytest.raises(IndexError):
        dataset[index]
    for indices in ([0, index], torch.tensor([0, index])):
        with pytest.raises(IndexError):
            dataset.__getitems__(indices)


def test_iteration_ends(idx_folder: Path) -> None:
    assert [label for _, label in MNISTDataset(idx_folder)] == [n % 10 for n in range(40)]


def test_items_do_not_share_memory_with_the_dataset(idx_folder: Path) -> None:
    dataset = MNISTDataset(idx_folder, transform=Shift())
    before = dataset.images.clone()
    dataset[0], dataset.__getitems__([0, 1])
    assert torch.equal(dataset.images, before)


class Shift:
    """Works in place, and on bytes."""

    on_batches = True

    def __call__(self, image: Tensor) -> Tensor:
        return image.add_(1)


def invert(image: Any) -> Tensor:
    """A transform as torchvision's are: it takes a PIL image."""
    assert image.mode == "L"
    return 255 - torch.from_numpy(np.array(image)).to(torch.int32)


NORMALIZED = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
TRANSFORMS: list[Any] = [None, NORMALIZED, invert, Compose([invert])]
LOADERS = [
    *((transform, function, 0) for transform in TRANSFORMS for function in (None, collate)),
    (NORMALIZED, None, 2),
    (NORMALIZED, collate, 2),
    (invert, collate, 2),
]


@pytest.mark.parametrize(("transform", "collate_fn", "workers"), LOADERS)
def test_loader_gives_what_item_by_item_gives(
    idx_folder: Path, transform: Any, collate_fn: Callable[..., Any] | None, workers: int
) -> None:
    if transform in (invert, TRANSFORMS[-1]):
        pytest.importorskip("PIL")
    dataset = MNISTDataset(idx_folder, transform=transform)
    loader = DataLoader(dataset, batch_size=15, collate_fn=collate_fn, num_workers=workers)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [15, 15, 10]
    for number, (images, labels) in enumerate(batches):
        rows = range(15 * number, 15 * number + len(labels))
        wanted_images, wanted_labels = default_collate([dataset[row] for row in rows])
        assert type(batches[number]) is list
        assert images.dtype == wanted_images.dtype
        assert torch.equal(images, wanted_images)
        assert labels.dtype == wanted_labels.dtype
        assert torch.equal(labels, wanted_labels)


class OwnItems(ImageDataset):
    def __getitem__(self, index: Any) -> tuple[Any, int]:
        image, label = super().__getitem__(index)
        return 1 - image, label % 2


class OwnItemsOfMnist(MNISTDataset):
    def __init__(self, dir: Path) -> None:
        super().__init__(dir)
        self.names = {row: row % 3 for row in range(40)}  # which no tensor is a key of

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        return super().__getitem__(index)[0], self.names[index]


class HalfAsLong(ImageDataset):
    """Changes what items are made of, by what the base's __getitem__ asks."""

    def __len__(self) -> int:
        return len(self.labels) // 2


class OtherTransform(ImageDataset):
    def _batch_transform(self) -> Any:
        return lambda image: -image[0].float()


class ChosenByProperty(ImageDataset):
    """Of each image it gives the next one: one after the other as well as at once."""

    @property
    def images(self) -> Tensor:
        return self._images.roll(-1, 0)

    @images.setter
    def images(self, images: Tensor) -> None:
        self._images = images


class WithNames(ImageDataset):
    """Overrides nothing that matters."""

    def name(self, row: int) -> str:
        return f"digit {self.labels[row]}"


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (ImageDataset, False),
        (WithNames, False),
        (OwnItems, True),
        (HalfAsLong, True),
        (OtherTransform, True),
        (ChosenByProperty, True),
    ],
)
@pytest.mark.parametrize("function", [None, collate])
def test_a_derived_class_s_items_are_what_a_loader_gives(
    kind: type[ImageDataset], own: bool, function: Any
) -> None:
    data = kind(*random_images(40))
    assert has_own_items(data) is own
    assert not own or not isinstance(data.__getitems__([0]), Batch)
    assert own or isinstance(data.__getitems__([0]), Batch)
    for loader in (
        DataLoader(data, 8, collate_fn=function),
        DataLoader(Subset(data, range(8)), 8, collate_fn=function),
        DataLoader(data, batch_sampler=[torch.arange(8)], collate_fn=function),
    ):
        got, labels = next(iter(loader))
        wanted, wanted_labels = default_collate([data[row] for row in range(8)])
        assert torch.equal(got, wanted)
        assert torch.equal(labels, wanted_labels)


def test_a_batch_sampler_s_tensors_reach_own_items_as_numbers(idx_folder: Path) -> None:
    data = OwnItemsOfMnist(idx_folder)
    rows = torch.tensor([4, 39, 0])
    assert [label for _, label in data.__getitems__(rows)] == [1, 0, 0]


def test_a_class_that_adds_to_batches_may_use_the_base_s() -> None:
    class Darker(ImageDataset):
        def __getitems__(self, indices: Any) -> Any:
            batch = super().__getitems__(indices)
            assert isinstance(batch, Batch)
            return Batch(batch.images / 2, batch.labels)

    data = Darker(*random_images(8))
    assert has_own_items(data)
    (got, _), *_ = data.__getitems__([0])
    assert torch.equal(got, data[0][0] / 2)


class Flat(ToTensor):
    """Means one image: on a batch it would make one long row."""

    def __call__(self, image: Any) -> Tensor:
        return super().__call__(image).flatten()


class FlatInBatches(Flat):
    on_batches = True

    def __call__(self, image: Any) -> Tensor:
        return ToTensor.__call__(self, image).flatten(-3)


class FlatAfterAll(Compose):
    def __call__(self, image: Any) -> Any:
        return super().__call__(image).flatten()


class JustNamed(Compose):
    pass


@pytest.mark.parametrize(
    ("transform", "at_once"),
    [
        (Flat(), False),
        (FlatInBatches(), True),
        (Compose([Flat()]), False),
        (Compose([Compose([ToTensor()]), Normalize([0.1], [0.3])]), True),
        (FlatAfterAll([ToTensor()]), False),
        (JustNamed([ToTensor()]), True),
        (JustNamed([Flat()]), False),
    ],
)
def test_an_inherited_on_batches_says_nothing_of_another_call(
    transform: Any, at_once: bool
) -> None:
    data = ImageDataset(*random_images(8), transform)
    batch = data.__getitems__([1, 5, 2])
    assert isinstance(batch, Batch) is at_once
    for row, (image, label) in zip((1, 5, 2), batch, strict=True):
        assert torch.equal(image, data[row][0])
        assert label == data[row][1]


def test_getitems_is_a_sequence_of_items(idx_folder: Path) -> None:
    dataset = MNISTDataset(idx_folder, transform=NORMALIZED)
    indices = [3, -1, 3, np.int64(20), torch.tensor(5)]
    batch = dataset.__getitems__(indices)
    items = [dataset[index] for index in indices]
    assert isinstance(batch, Batch)
    assert len(batch) == len(items)
    for got, wanted in (*zip(batch, items, strict=True), *zip(batch[1:3], items[1:3], strict=True)):
        assert torch.equal(got[0], wanted[0])
        assert got[1] == wanted[1]
        assert type(got[1]) is int
    rows = torch.tensor([3, 39, 3, 20, 5])
    assert torch.equal(dataset.__getitems__(rows).images, batch.images)
    assert torch.equal(batch[-1][0], items[-1][0])
    assert batch[-1][1] == items[-1][1]


def test_a_pil_transform_sees_the_pixels(idx_folder: Path) -> None:
    pytest.importorskip("PIL")
    dataset = MNISTDataset(idx_folder, transform=lambda image: (image.size, np.array(image)))
    (size, pixels), label = dataset[11]
    assert size == (6, 4)  # PIL has width first
    assert np.array_equal(pixels, dataset.images[11].numpy())
    assert label == 1


def test_a_pil_transform_without_pillow_says_what_to_install(
    idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    dataset = MNISTDataset(idx_folder, transform=invert)
    with pytest.raises(MissingExtra, match=r'pip install "fastmlp\[train\]"'):
        dataset[0]
    dataset.transform = NORMALIZED  # ours needs none
    assert dataset[0][0].shape == (1, 4, 6)


def test_datasets_are_pickled_whole(idx_folder: Path) -> None:
    dataset = MNISTDataset(idx_folder, transform=NORMALIZED)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.images, dataset.images)
    assert torch.equal(again[4][0], dataset[4][0])
    assert dataset.images.is_contiguous()


def test_image_dataset_names_the_shapes_it_wants() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[n, H, W\].*\[3, 2, 2\].*\[4\]"):
        ImageDataset(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(4))


# ---- transforms ------------------------------------------------------------------------------


def test_normalize_works_channel_by_channel() -> None:
    image = torch.rand(5, 3, 2, 4, dtype=torch.float64)
    mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 4.0)
    result = Normalize(mean, std)(image)
    for channel in range(3):
        wanted = (image[:, channel] - mean[channel]) / std[channel]
        assert torch.equal(result[:, channel], wanted)
    assert torch.equal(Normalize(mean, std)(image[2]), result[2])


def test_to_tensor_of_a_pil_image() -> None:
    pil = pytest.importorskip("PIL.Image")
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3)
    image = ToTensor()(pil.fromarray(pixels.numpy()))
    assert torch.equal(image, pixels.permute(2, 0, 1).to(torch.float32) / 255)
    grey = ToTensor()(pil.fromarray(pixels[..., 0].contiguous().numpy()))
    assert torch.equal(grey, pixels[..., 0].unsqueeze(0).to(torch.float32) / 255)


def test_to_tensor_gives_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert ToTensor()(torch.tensor([3], dtype=torch.uint8)).item() == 3 / 255
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("image", [torch.zeros(1, 2, 2), "image"])
def test_to_tensor_refuses_what_is_not_bytes(image: Any) -> None:
    with pytest.raises(TypeError, match="ToTensor takes"):
        ToTensor()(image)


def test_normalize_refuses_bytes_and_a_zero_deviation() -> None:
    with pytest.raises(TypeError, match="ToTensor"):
        Normalize((0.5,), (0.5,))(torch.zeros(1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="zero"):
        Normalize((0.5,), (0.0,))


def test_a_composition_takes_batches_if_all_its_parts_do() -> None:
    assert NORMALIZED.on_batches
    assert not Compose([invert, ToTensor()]).on_batches


# ---- the embedded digits ---------------------------------------------------------------------


def test_digits_are_the_same_everywhere() -> None:
    pytest.importorskip("sklearn")
    digest = hashlib.sha256()
    for train in (True, False):
        dataset = DigitsDataset(train)
        digest.update(dataset.images.numpy().tobytes() + dataset.labels.numpy().tobytes())
    assert digest.hexdigest() == "a2e328f44939ce7194668fce68a7c20af36377de6813287fd4876d4dac477173"


def test_every_fifth_image_of_a_digit_is_held_out() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, test = DigitsDataset(True), DigitsDataset(False)
    assert len(train) + len(test) == len(bunch.target) == 1797
    for digit in range(10):
        of_digit = int((bunch.target == digit).sum())
        assert int((test.labels == digit).sum()) == of_digit // 5
        assert int((train.labels == digit).sum()) == of_digit - of_digit // 5


def test_digits_are_enlarged_bilinearly() -> None:
    small = torch.randint(0, 17, (50, 8, 8))
    wanted = torch.nn.functional.interpolate(
        small.to(torch.float64).unsqueeze(1) / 16 * 255, (28, 28), mode="bilinear"
    ).squeeze(1)
    # Rounded to the nearest byte; float64 errs by far less than the last term.
    assert (digits._enlarge(small) - wanted).abs().max() <= 0.5 + 1e-9


def test_digits_have_the_face_of_mnist() -> None:
    pytest.importorskip("sklearn")
    images, labels = next(iter(DataLoader(DigitsDataset(False), 50, collate_fn=collate)))
    assert images.shape == (50, 1, 28, 28)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert labels.dtype == torch.int64


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r'scikit-learn .*pip install "fastmlp\[train\]"'):
        DigitsDataset()


# ---- faults ----------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return fault


def swap(folder: Path) -> None:
    shutil.move(folder / IMAGES, folder / "held")
    shutil.move(folder / LABELS, folder / IMAGES)
    shutil.move(folder / "held", folder / LABELS)


def flip_a_bit(content: bytes) -> bytes:
    broken = bytearray(gzip.compress(content))
    broken[len(broken) // 2] ^= 0x10
    return bytes(broken)


IDX_FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "missing folder": (shutil.rmtree, "idx", "no such folder"),
    "missing labels": (lambda f: (f / LABELS).unlink(), LABELS, "no such file"),
    "missing images": (lambda f: (f / IMAGES).unlink(), IMAGES, "no such file"),
    "empty folder": (
        lambda f: [p.unlink() for p in f.iterdir()],
        "idx",
        "neither .* nor a folder training or train",
    ),
    "empty file": (rewrite(IMAGES, lambda _: b""), IMAGES, "not an IDX file"),
    "bad magic": (rewrite(IMAGES, lambda c: b"\1" + c[1:]), IMAGES, "not an IDX file"),
    "element type": (rewrite(IMAGES, lambda c: c[:2] + b"\x0d" + c[3:]), IMAGES, "unsigned bytes"),
    "dimensions": (rewrite(IMAGES, lambda c: c[:3] + b"\2" + c[4:]), IMAGES, "2 dimensions"),
    "swapped": (swap, IMAGES, "labels, not images"),
    "images as labels": (
        lambda f: shutil.copy(f / IMAGES, f / LABELS),
        LABELS,
        "images, not labels",
    ),
    "truncated header": (rewrite(IMAGES, lambda c: c[:9]), IMAGES, "truncated inside its header"),
    "truncated": (rewrite(IMAGES, lambda c: c[:-1]), IMAGES, "truncated: 959 bytes.* 40×4×6"),
    "too long": (rewrite(LABELS, lambda c: c + b"\0"), LABELS, "too long: more than the 40 bytes"),
    "no images": (rewrite(IMAGES, lambda c: c[:4] + bytes(4) + c[8:16]), IMAGES, "empty: .* 0×4×6"),
    "huge": (rewrite(IMAGES, lambda c: c[:4] + b"\xff" * 12 + c[16:]), IMAGES, "truncated"),
    "truncated gzip": (rewrite(IMAGES, lambda c: gzip.compress(c)[:-9]), IMAGES, "broken gzip"),
    "damaged gzip": (rewrite(IMAGES, flip_a_bit), IMAGES, "broken gzip"),
    "gzip's header alone": (rewrite(IMAGES, lambda c: b"\x1f\x8b"), IMAGES, "broken gzip"),
    "counts": (
        rewrite(LABELS, lambda c: c[:4] + struct.pack(">I", 39) + c[8:-1]),
        LABELS,
        "39 labels for the 40 images",
    ),
    "label": (rewrite(LABELS, lambda c: c[:8] + b"\x0a" + c[9:]), LABELS, "label 10 of image 0"),
    "a folder as file": (
        lambda f: ((f / LABELS).unlink(), (f / LABELS).mkdir()),
        LABELS,
        "no such file",
    ),
}


def test_gzip_makes_no_more_of_a_file_than_its_header_promises(idx_folder: Path) -> None:
    """2 MB of gzip can hold 2 GB: what is not promised is not unpacked."""
    path = idx_folder / IMAGES
    path.write_bytes(gzip.compress(idx_bytes(torch.zeros(3, 2, 2)) + bytes(1 << 28)))
    tracemalloc.start()
    try:
        check_fault(idx_folder, IMAGES, "too long: more than the 3×2×2 bytes")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + b"\x7f" * 12 + bytes(1000)))
        check_fault(idx_folder, IMAGES, "truncated: 1000 bytes")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read(idx_folder: Path, kind: str) -> None:
    path = idx_folder / LABELS
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    check_fault(idx_folder, LABELS, "cannot be read: not a regular file")


def check_fault(folder: Path, names: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        MNISTDataset(folder)
    message = str(caught.value)
    assert names in message.split(":")[0]
    assert "\n" not in message


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_a_faulty_idx_file_is_named(idx_folder: Path, fault: str) -> None:
    spoil, names, says = IDX_FAULTS[fault]
    spoil(idx_folder)
    check_fault(idx_folder, names, says)


def test_a_file_is_not_a_folder(idx_folder: Path) -> None:
    check_fault(idx_folder / IMAGES, IMAGES, "not a folder")


def save_png(path: Path, mode: str, size: tuple[int, int]) -> None:
    pytest.importorskip("PIL.Image").new(mode, size).save(path)


def zeroed_end(content: bytes) -> bytes:
    return content[:45] + bytes(len(content) - 45)


PNG_FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "truncated": (rewrite("7/00017.png", lambda c: c[:50]), "00017.png", "broken image"),
    "empty": (rewrite("7/00017.png", lambda _: b""), "00017.png", "broken image"),
    "no png": (rewrite("7/00017.png", lambda _: b"GIF89a?"), "00017.png", "broken image"),
    "zeros": (rewrite("7/00017.png", zeroed_end), "00017.png", "broken image"),
    "other size": (
        lambda f: save_png(f / "7/00017.png", "L", (6, 5)),
        "00017.png",
        "5×6 pixels instead of 4×6",
    ),
    "16 bits": (lambda f: save_png(f / "7/00017.png", "I;16", (6, 4)), "00017.png", "8 bits"),
    "a folder as image": (lambda f: (f / "7/a.png").mkdir(), "a.png", "not a regular file"),
    "label no number": (lambda f: (f / "7").rename(f / "seven"), "seven", "not a number"),
    "label": (lambda f: (f / "7").rename(f / "10"), "10", "label 10 is out of range 0…9"),
    "no image": (
        lambda f: [p.unlink() for p in f.glob("*/*.png")],
        "training",
        r"no images <label>/\*.png",
    ),
}


@pytest.mark.parametrize("fault", PNG_FAULTS)
def test_a_faulty_png_tree_is_named(tmp_path: Path, fault: str) -> None:
    write_png_tree(tmp_path / "training", *random_images(20))
    spoil, names, says = PNG_FAULTS[fault]
    spoil(tmp_path / "training")
    check_fault(tmp_path, names, says)


def test_a_png_tree_without_pillow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png_tree(tmp_path / "training", *random_images(10))
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r'Pillow .*pip install "fastmlp\[train\]"'):
        MNISTDataset(tmp_path)


# ---- download --------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the second mirror; the first has nothing."""
    folder = tmp_path / "mirror"
    for train in (True, False):
        write_idx(folder, *random_images(20), train, ".gz")
    checksums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(download, "CHECKSUMS", checksums)
    monkeypatch.setattr(
        download, "MIRRORS", ((tmp_path / "nowhere").as_uri() + "/", folder.as_uri() + "/")
    )
    return folder


def test_download_fetches_what_is_missing(mirror: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "data"
    download_mnist(target)
    assert len(MNISTDataset(target, train=False)) == 20
    assert {p.name for p in target.iterdir()} == {p.name for p in mirror.iterdir()}
    for path in mirror.iterdir():
        path.unlink()
    download_mnist(target)  # has all it needs


def test_download_leaves_no_file_with_a_wrong_checksum(mirror: Path, tmp_path: Path) -> None:
    name = "train-images-idx3-ubyte.gz"
    (mirror / name).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"{name}: cannot be downloaded: .*wrong SHA-256"):
        download_mnist(tmp_path / "data")
    assert name not in {p.name for p in (tmp_path / "data").iterdir()}


def test_download_replaces_no_file_of_the_users(mirror: Path, tmp_path: Path) -> None:
    own = tmp_path / "train-labels-idx1-ubyte.gz"
    own.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: is not MNIST's"):
        download_mnist(tmp_path)
    assert own.read_bytes() == b"mine"


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("form", ["unzipped", "with a dot", "zipped again", "both"])
def test_download_fetches_nothing_that_is_there(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, form: str
) -> None:
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    contents = {}
    for zipped in mirror.iterdir():
        content = gzip.decompress(zipped.read_bytes())
        train, kind = zipped.name.startswith("train"), zipped.name.split("-")[1]
        contents[train, kind] = hashlib.sha256(content).hexdigest()
        name = zipped.name.removesuffix(".gz")
        if form == "with a dot":
            name = name.replace("-idx", ".idx")
        if form == "zipped again":
            (folder / zipped.name).write_bytes(gzip.compress(content, 1, mtime=7))
        else:
            (folder / name).write_bytes(content)
        if form == "both":
            shutil.copy(zipped, folder)
        zipped.unlink()
    before = sorted(os.listdir(folder))
    monkeypatch.setattr(download, "CONTENTS", contents)
    download_mnist(tmp_path / "data")
    assert sorted(os.listdir(folder)) == before
    assert len(MNISTDataset(tmp_path / "data")) == 20


def test_download_puts_a_file_beside_the_other_of_its_part(mirror: Path, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    shutil.copy(mirror / "train-images-idx3-ubyte.gz", raw)
    download_mnist(tmp_path / "data")
    assert [path.name for path in sorted(raw.iterdir())] == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    for train in (True, False):
        assert len(MNISTDataset(tmp_path / "data", train)) == 20


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_download_does_not_take_another_set_for_mnist(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Such as Fashion-MNIST, or MNIST with a wrong byte; a set of one's own is not disturbed."""
    write_idx(tmp_path, *random_images(20, 3, 3), True, suffix)
    if suffix:  # under the name of what would be fetched
        with pytest.raises(DataError, match=r"is not MNIST's \(SHA-256 differs\); move it away"):
            download_mnist(tmp_path)
    else:
        download_mnist(tmp_path)
    monkeypatch.setattr(download, "COUNTS", {True: 20, False: 20})
    with pytest.raises(DataError, match=r"train-images.* is not MNIST's \(SHA-256 differs\)"):
        download_mnist(tmp_path)


def test_download_tells_of_a_broken_file(mirror: Path, tmp_path: Path) -> None:
    own = tmp_path / "train-labels-idx1-ubyte"
    own.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"ubyte: is not MNIST's \(.*: not an IDX file.*move it"):
        download_mnist(tmp_path)
    own.unlink()
    os.mkfifo(own)
    with pytest.raises(DataError, match=r"ubyte: .*not a regular file"):
        download_mnist(tmp_path)


def test_a_tilde_is_the_home_folder(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(mirror)
    download_mnist("~/digits")
    assert len(os.listdir(home / "digits")) == 4
    for name in ("~/digits", Path("~/digits")):
        assert len(MNISTDataset(name, train=False)) == 20
    shutil.copytree(home / "digits", "~")  # what is really called so can still be named
    assert len(MNISTDataset("./~")) == 20
    with pytest.raises(DataError, match=r"^~nobody-of-this-name/x: no such folder"):
        MNISTDataset("~nobody-of-this-name/x")


def test_download_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MIRRORS", ("http://127.0.0.1:9/", "http://a.invalid/"))
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        download_mnist(tmp_path)
    assert "\n" not in str(caught.value)
    assert "http://127.0.0.1:9/" in str(caught.value)
    assert not list(tmp_path.iterdir())


@needs_mnist
def test_the_checksums_are_those_of_the_mnist_files() -> None:
    folder = mnist_folder()
    assert folder is not None
    for name, checksum in download.CHECKSUMS.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
