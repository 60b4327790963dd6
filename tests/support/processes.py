"""Programs run in another process, and work done on another thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


def run(
    program: str, timeout: float = 120, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs Python code; environment variables are added, or removed where None."""
    return _start(["-c", program], timeout, environment)


def run_file(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a file of Python code, as `python FILE ARGUMENTS` does."""
    return _start([str(program), *map(str, arguments)], 120, {})


def _start(
    arguments: list[str], timeout: float, environment: Mapping[str, str | None]
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **{k: v for k, v in environment.items() if v is not None}}
    for key, value in environment.items():
        if value is None:
            env.pop(key, None)
    try:
        return subprocess.run(
            [sys.executable, *arguments],
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


def lets_others_run(work: Callable[[], object]) -> bool:
    """Whether this thread gets to run while another one is at this work.

    The interpreter would take the GIL from a thread after its switch interval. That is set far
    beyond the test's time, so this thread wakes only if the work lets go of it by itself.
    """
    started = threading.Event()
    working = False

    def do() -> None:
        nonlocal working
        working = True
        started.set()
        try:
            work()
        finally:
            working = False

    before = sys.getswitchinterval()
    with ThreadPoolExecutor(1) as pool:
        try:
            sys.setswitchinterval(1000)
            done = pool.submit(do)
            started.wait()
            seen = working
        finally:
            sys.setswitchinterval(before)
        done.result()  # raises what the work raised
    return seen
