"""Programs run in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(
    program: str, timeout: float = 120, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs Python code; environment variables are added, or removed where None."""
    env = {**os.environ, **{k: v for k, v in environment.items() if v is not None}}
    for key, value in environment.items():
        if value is None:
            env.pop(key, None)
    try:
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,  # not the source tree, which hides the installed package
            env=env, timeout=timeout, text=True, capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"still running after {timeout} s: {expired.stdout!r} {expired.stderr!r}")


def output(program: str, timeout: float = 120, **environment: str | None) -> str:
    """What a program that has to succeed prints."""
    done = run(program, timeout, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
