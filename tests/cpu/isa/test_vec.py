"""The vectors that kernels are written in keep their contract, on every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastmlp import _C

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++").split()


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of vec_test.cpp."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no compiler {COMPILER[0]}")
    program = tmp_path_factory.mktemp("vec") / "vec_test"
    source = [str(HERE / "vec_test.cpp"), f"-I{CSRC}", "-o", str(program)]
    subprocess.run([*COMPILER, "-std=c++20", "-O1", "-w", *source], check=True)
    return program


@pytest.mark.parametrize("isa", _C.available_isas())
def test_contract(checker: Path, isa: str) -> None:
    done = subprocess.run([checker, isa], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == f"{isa}: checked\n"


def test_an_unknown_instruction_set_is_told(checker: Path) -> None:
    assert subprocess.run([checker, "mmx"], capture_output=True, check=False).returncode == 2
