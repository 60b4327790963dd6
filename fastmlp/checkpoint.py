"""Checkpoints: a training's whole state in one file that is written whole or not at all.

`torch.load(file, weights_only=True)` reads one. It is a dict: "model" and "optimizer" hold the
state_dicts of the network and of torch.optim.SGD, whatever the loop; the rest is `fastmlp train`'s.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from typing import Any

import torch

from ._faults import Fault
from ._files import open_regular, write_whole

_FORMAT = "fastmlp checkpoint 1"


class CheckpointError(Fault, ValueError):
    """A checkpoint cannot be read, or does not fit what is asked for."""


def save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes a checkpoint in the place of an older one, in one step.

    Args:
        path: the file; its folder exists.
        content: tensors, numbers, strings and None in dicts, lists and tuples.
    """
    whole = io.BytesIO()  # torch's writer makes something else of the error of a full disk
    torch.save({"format": _FORMAT, **content}, whole)
    write_whole(path, lambda file: file.write(whole.getbuffer()))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What save() wrote, its tensors on the CPU. Runs no code that a file might hold.

    Raises:
        CheckpointError: the file cannot be read, or is no whole checkpoint.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            whole = _checked(archive)
        with warnings.catch_warnings():  # torch's, of a damaged pickle
            warnings.simplefilter("ignore")
            content = torch.load(whole, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch lets through whatever its readers met, at length
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of `fastmlp train`")
    return content


def _checked(archive: zipfile.ZipFile) -> io.BytesIO:
    """A copy of an archive as torch.save() writes it, in memory, of members whose sums are right.

    torch checks none, and has another reader, which may find other members in a damaged file: of
    two archives behind one another the first, of one marked as a folder what is in the memory.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as copied:
        for name in dict.fromkeys(archive.namelist()):
            # That never compresses: no small file asks for more memory than it has bytes.
            if archive.getinfo(name).compress_type:
                raise zipfile.BadZipFile
            copied.writestr(name, archive.read(name))
    copy.seek(0)
    return copy
