"""Fetches the MNIST files."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from .._files import expand, open_regular, write_whole
from .idx import idx_content, read_idx
from .images import DataError
from .mnist import DIMENSIONS, find_idx, idx_folders, idx_name
from .verify import CONTENTS, COUNTS

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# SHA-256 of the original files (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0)
CHECKSUMS = {
    f"{name}-ubyte.gz": checksum
    for name, checksum in (
        ("train-images-idx3", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    )
}
_SECONDS = 30  # without an answer
_LARGEST = 1 << 24  # bytes; the largest of the files has 9,912,422


def download_mnist(dir: str | os.PathLike[str]) -> None:
    """Fetches those of the four MNIST files (11 MB) that a folder lacks, and makes the folder.

    Nothing is fetched where MNISTDataset finds a file already: unzipped or not, in the folder or
    in MNIST/raw, where torchvision leaves them. Each file is checked and then written whole or not
    at all.

    Args:
        dir: the folder; a ~ at its beginning is the home folder.

    Raises:
        DataError: no mirror answers, or a file that is there is broken, or is not MNIST's. An
            unzipped one need not be, as long as it does not hold as many images as MNIST's.
    """
    folder = Path(expand(dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    for train in (True, False):
        # The two files of a part lie side by side: where one is, the other has to be.
        found = [
            [next(find_idx(place, train, kind), None) for kind in DIMENSIONS]
            for place in idx_folders(folder)
        ]
        at = next((at for at, files in enumerate(found) if any(files)), 0)
        for kind, path in zip(DIMENSIONS, found[at], strict=True):
            if path is None:
                _provide(idx_folders(folder)[at] / f"{idx_name(train, kind)}.gz")
            else:
                _check(path, train, kind)


def _provide(path: Path) -> None:
    content = _fetch(path.name, CHECKSUMS[path.name])
    write_whole(path, lambda file: file.write(content))


def _check(path: Path, train: bool, kind: str) -> None:
    """Raises a DataError if a file is there in place of MNIST's."""
    zipped = path.suffix == ".gz"
    try:
        with open_regular(path) as file:
            if zipped and _sha256(file.read(_LARGEST)) == CHECKSUMS[f"{idx_name(train, kind)}.gz"]:
                return
        array = read_idx(path, DIMENSIONS[kind])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: is not MNIST's ({error}); move it away to download it") from error
    if (zipped or len(array) == COUNTS[train]) and _sha256(idx_content(array)) != CONTENTS[
        train, kind
    ]:
        raise DataError(f"{path}: is not MNIST's (SHA-256 differs); move it away to download it")


def _fetch(name: str, checksum: str) -> bytes:
    faults = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=_SECONDS) as answer:
                content: bytes = answer.read(_LARGEST)
        except (OSError, HTTPException) as error:
            faults.append(f"{mirror}: {getattr(error, 'reason', error)}")
            continue
        if _sha256(content) == checksum:
            return content
        faults.append(f"{mirror}: wrong SHA-256 ({len(content)} bytes)")
    raise DataError(f"{name}: cannot be downloaded: {'; '.join(faults)}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
