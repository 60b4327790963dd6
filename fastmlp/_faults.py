"""Faults that the command line tells in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Fault(Exception):
    """The user's files, arguments or environment are at fault; the message is one line."""

    status = 1  # the command's exit status


class MissingExtra(Fault, ImportError):
    """A package of the extra `train` is not installed."""


def require(module: str, package: str, purpose: str) -> Any:
    """The imported module, or a MissingExtra that names the command which installs its package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f'{purpose} needs {package} ({error}): pip install "fastmlp[train]"'
        ) from error
