"""Fetches the MNIST files."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from .._files import write_whole
from .images import DataError

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

    Each file is checked and then written whole or not at all.

    Raises:
        DataError: no mirror answers, or a file of that name is there and is not MNIST's.
    """
    folder = Path(dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    for name, checksum in CHECKSUMS.items():
        _provide(folder / name, checksum)


def _provide(path: Path, checksum: str) -> None:
    if not path.exists():
        content = _fetch(path.name, checksum)
        write_whole(path, lambda file: file.write(content))
    elif _sha256(path.read_bytes()) != checksum:
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
