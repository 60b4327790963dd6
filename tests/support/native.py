"""C++ that a test compiles for itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = os.environ.get("CXX", "c++").split()


def compiled(source: Path, folder: Path, *options: str) -> Path:
    """What the compiler makes of one file; skips the test where there is no compiler."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no compiler {COMPILER[0]}")
    made = folder / source.stem
    subprocess.run(
        [*COMPILER, "-std=c++20", "-O1", "-w", str(source), *options, "-o", str(made)], check=True
    )
    return made
