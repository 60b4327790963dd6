"""`fastmlp info` tells all, and goes on where something is missing."""

from __future__ import annotations

import sys

import pytest
import torch

import fastmlp
from fastmlp import info
from fastmlp.app.cli import main


def items(report: str) -> dict[str, str]:
    """The report's items; lines that go on are joined."""
    found: dict[str, str] = {}
    name = ""
    for line in report.splitlines():
        name = line[:18].strip() or name
        found[name] = f"{found[name]}; {line[18:]}" if name in found else line[18:]
    return found


def test_it_tells_what_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    told = items(capsys.readouterr().out)
    assert told["fastmlp"].startswith(fastmlp.__version__)
    assert told["torch"].startswith(torch.__version__)
    assert told["threads"].startswith(str(torch.get_num_threads()))
    assert f"active {fastmlp.get_isa()}" in told["instruction sets"]
    for isa in fastmlp._C.available_isas():
        assert isa in told["instruction sets"].split("; ")[1]
    assert fastmlp._C.build_info()["compiler"] in told["compiler"]
    assert "cpu float32  fused" in told["paths"]
    assert "cpu float64  fused" in told["paths"]
    assert "cpu bfloat16 plain torch: " in told["paths"]
    assert not [line for line in told.values() if line.startswith("unavailable")]


def test_it_tells_who_chose_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMLP_ISA", raising=False)
    assert "forced" not in items(info.report())["instruction sets"]
    monkeypatch.setenv("FASTMLP_ISA", fastmlp.get_isa())
    assert "(forced by FASTMLP_ISA)" in items(info.report())["instruction sets"]


def test_what_cannot_be_told_says_why_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> str:
        raise RuntimeError("the extension\nis not there")

    monkeypatch.setattr(info, "_compiler", broken)
    monkeypatch.setitem(sys.modules, "torch", None)
    told = items(info.report())
    assert told["compiler"] == "unavailable: the extension is not there"
    assert told["torch"].startswith("unavailable: ")
    assert told["python"]
    assert told["extras"]


def test_missing_extras_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_EXTRAS", ("torch", "no-such-package"))
    told = items(info.report())["extras"]
    assert told.startswith("torch ")
    assert "missing: no-such-package" in told
    assert 'pip install "fastmlp[train]"' in told
