"""The vectors that kernels are written in keep their contract, on every instruction set."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import native

from fastmlp import _C

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of vec_test.cpp."""
    return native.compiled(HERE / "vec_test.cpp", tmp_path_factory.mktemp("vec"), f"-I{CSRC}")


@pytest.mark.parametrize("isa", _C.available_isas())
def test_contract(checker: Path, isa: str) -> None:
    done = subprocess.run([checker, isa], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == f"{isa}: checked\n"


def test_an_unknown_instruction_set_is_told(checker: Path) -> None:
    assert subprocess.run([checker, "mmx"], capture_output=True, check=False).returncode == 2
