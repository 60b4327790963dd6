"""Loads the compiled extension `fastmlp._C`, or says why it cannot be and what mends it."""

from __future__ import annotations

import json
import mmap
import re
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch  # first: the extension's symbols, OpenMP's among them, are those of the loaded torch

_PACKAGE = Path(__file__).resolve().parent
_RECORD = b"fastmlp was built against torch "  # csrc/build_record.cpp writes it


def load() -> ModuleType:
    """The module `fastmlp._C`.

    Raises:
        ImportError: the extension was never built, or was built against a torch that the installed
            one cannot stand in for. The message names both versions and the command that mends it.
    """
    library = find_library()
    if library is None:
        raise ImportError(
            f"{_PACKAGE} holds no extension compiled for {sys.implementation.cache_tag}. "
            f"To build it: {_pip_install()}\n"
            "If fastmlp is installed already, start Python outside of its source tree.",
            name="fastmlp._C",
        )
    built = built_against(library)
    if _series(built) != _series(torch.__version__):
        raise ImportError(_mismatch(built), name="fastmlp._C", path=str(library))
    try:
        return import_module("fastmlp._C")
    except ImportError as error:
        message = f"{_mismatch(built)}\nThe loader said: {error}"
        raise ImportError(message, name="fastmlp._C", path=str(library)) from None


def find_library(package: Path = _PACKAGE) -> Path | None:
    """The extension's file for this Python, None where there is none."""
    candidates = (package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def built_against(library: Path) -> str:
    """Version of the torch that a library was compiled against, read without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(_RECORD)
        if start < 0:
            return "unknown"
        start += len(_RECORD)
        return text[start : text.find(b"\0", start)].decode()


def _series(version: str) -> str:
    """The part of a version within which torch keeps its ABI: "2.13" of "2.13.0+cpu"."""
    return ".".join(re.split(r"[.+]", version)[:2])


def _mismatch(built: str) -> str:
    return (
        f"fastmlp was built against torch {built} and cannot run with the installed torch "
        f"{torch.__version__}. To mend it: {_pip_install(built)}"
    )


def _pip_install(built: str | None = None) -> str:
    """The command that rebuilds fastmlp, or that fetches the torch it was built against.

    --no-deps keeps the environment's torch, --no-cache-dir passes over wheels built earlier.
    """
    pip = f"{sys.executable} -m pip install"
    if (_PACKAGE.parent / "setup.py").is_file():
        return f'{pip} --no-deps -e "{_PACKAGE.parent}"'
    source = _source()
    if source is None:
        return f'{pip} "torch=={built.split("+")[0]}"' if built else f"{pip} fastmlp"
    return f'{pip} --force-reinstall --no-deps --no-cache-dir "{source}"'


def _source() -> str | None:
    """Where pip installed fastmlp's sources from, None where it was a wheel or is not known."""
    from importlib import metadata  # slow, and needed only here, where the import fails anyway

    try:
        record = metadata.distribution("fastmlp").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        record = None
    origin = json.loads(record) if record else {}
    if "vcs_info" in origin:
        return f"{origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
    if "dir_info" in origin or origin.get("url", "").endswith(".tar.gz"):
        return str(origin["url"])
    return None
