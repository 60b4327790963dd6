"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from ._faults import Fault


def expand(path: str | os.PathLike[str]) -> str:
    """The path that the user means: ~ and ~user at its beginning are home folders, as in a shell,
    which sees no name that comes from a program or follows a =."""
    return os.path.expanduser(path)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a file to read; a pipe, which may wait for ever, and a device, which may never end, are
    refused.

    Raises:
        OSError: the file cannot be opened, or is not regular.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait here

    file = open(path, "rb", opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: whoever looks, or comes after a crash, finds the old or the new.

    Args:
        path: the file; its folder exists. A symbolic link stays one.
        write: writes the content to the binary file that it is given.

    Raises:
        Fault: something else than a file is there.
        OSError: the file cannot be written; it names the file, whatever step failed.
    """
    target = _regular(path)
    draft = _draft(target)
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _of(path, error, draft) from error
        raise
    _sync_folder(target.parent)


def write_folder(
    path: str | os.PathLike[str], fill: Callable[[Path], object], *, replace: bool = False
) -> None:
    """Makes a folder in one step: whoever looks, or comes after a crash, finds all of it or none.

    Args:
        path: the folder, whose parent exists. It is not there, or is empty.
        fill: writes the content into the empty folder that it is given.
        replace: the folder may be there with a content, which is lost. Between the old and the new
            there is a moment without either.

    Raises:
        OSError: the folder cannot be written; it names the folder, whatever step failed.
    """
    target = Path(os.path.realpath(path))
    draft, old = _draft(target), target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        draft.mkdir()
        fill(draft)
        if hasattr(os, "sync"):
            os.sync()  # once, instead of for each of its files
        if replace and target.exists():
            target.rename(old)
        elif target.exists():
            target.rmdir()
        draft.rename(target)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        # More than once: an interrupt can keep an executor from waiting for a thread that it has
        # just started, which then writes on until it misses the folder.
        for _ in range(20):
            shutil.rmtree(draft, ignore_errors=True)
            if not draft.exists():
                break
            time.sleep(0.05)
        if isinstance(error, OSError):
            raise _of(path, error, draft) from error
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _of(path: str | os.PathLike[str], error: OSError, draft: Path) -> OSError:
    """The error under the name that the user knows: a full disk's has none, others the draft's."""
    told = error.filename
    if error.errno is None or (told is not None and not str(told).startswith(str(draft))):
        return error
    return OSError(error.errno, error.strerror, os.fspath(path))


def _draft(target: Path) -> Path:
    """Where a file or folder is written before it takes its place.

    In the same folder, since only a rename inside one file system is a single step. The name tells
    whose draft it is: a killed process leaves it, and remove_drafts() spares the living.
    """
    return target.with_name(f".{target.name}.{os.getpid()}.draft")


def remove_drafts(path: str | os.PathLike[str]) -> None:
    """Removes what processes left beside a file or folder that were killed while they wrote it."""
    target = Path(os.path.realpath(path))
    prefix, suffix = f".{target.name}.", ".draft"
    for draft in target.parent.iterdir():
        if draft.name.startswith(prefix) and draft.name.endswith(suffix):
            process = draft.name[len(prefix) : -len(suffix)]
            if process.isdecimal() and not _alive(int(process)):
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises a Fault if write_whole() could not write there: better before the work than after."""
    target = _regular(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {target.parent}: {error.strerror}") from error


def _regular(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a rename would put a file in a device's place
        raise Fault(f"{path}: cannot be written: it is not a regular file")
    return target


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
