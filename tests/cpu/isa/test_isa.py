"""Which instruction set's kernels run, and who says so."""

from __future__ import annotations

import platform
import re

import pytest
import torch
from processes import output, run

import fastmlp
from fastmlp import _C, FusedMLP

KNOWN = ["avx512", "avx2", "generic"]  # best first

REPORT = """
import torch, fastmlp
from fastmlp import FusedMLP, _C
for dtype in (torch.float32, torch.float64):
    for batch, sizes in ((1, [64, 64, 4]), (50, [784, 300, 10]), (3, [5, 4])):
        model = FusedMLP(sizes, activation="tanh", dtype=dtype)
        x = torch.randn(batch, sizes[0], dtype=dtype, requires_grad=True)
        _C.record_kernels(True)
        model(x).sum().backward()
        print(fastmlp.get_isa(), _C.get_isa(), *sorted(set(_C.recorded_kernels())))
"""


def instruction_sets(report: str) -> list[set[str]]:
    """For each network: those that both functions tell, and those of the kernels that ran."""
    lines = [line.split() for line in report.splitlines()]
    assert all(len(line) > 2 for line in lines), "no kernel ran"
    return [{active, also, *(name.split("_")[-1] for name in ran)} for active, also, *ran in lines]


def test_lists() -> None:
    compiled, available = _C.compiled_isas(), _C.available_isas()
    assert set(available) <= set(compiled) <= set(KNOWN)
    assert "generic" in available
    assert available == sorted(available, key=KNOWN.index)
    if platform.machine() in ("x86_64", "AMD64"):
        assert set(compiled) == set(KNOWN)


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="no AVX")
def test_finds_what_torch_finds() -> None:
    """torch looks at the same processor: what it uses has to be there for us."""
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx512" if "512" in capability else "avx2") in _C.available_isas()


@pytest.mark.parametrize("isa", _C.available_isas())
def test_environment_forces(isa: str) -> None:
    assert instruction_sets(output(REPORT, FASTMLP_ISA=isa)) == [{isa}] * 6


@pytest.mark.parametrize("unset", [None, ""])
def test_best_by_default(unset: str | None) -> None:
    best = _C.available_isas()[0]
    assert instruction_sets(output(REPORT, FASTMLP_ISA=unset)) == [{best}] * 6


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["avx1024", "AVX2", " avx2", "generic,avx2", "native"])
def test_environment_names_an_unknown_one(name: str) -> None:
    done = run("import fastmlp", FASTMLP_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError")
    assert repr(name) in last or name in last
    assert "FASTMLP_ISA" in last
    for known in _C.available_isas():
        assert known in last


def test_environment_names_an_unavailable_one() -> None:
    missing = sorted(set(KNOWN) - set(_C.available_isas()))
    if not missing:
        pytest.skip("this processor has them all")
    done = run("import fastmlp", FASTMLP_ISA=missing[0])
    assert done.returncode != 0
    assert re.search(rf"RuntimeError.*{missing[0]}", done.stderr)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_set_isa(isa: str) -> None:
    before = _C.get_isa()
    try:
        _C.set_isa(isa)
        assert fastmlp.get_isa() == _C.get_isa() == isa
        _C.record_kernels(True)
        FusedMLP([20, 30, 10])(torch.randn(9, 20)).sum().backward()
        ran = _C.recorded_kernels()
        assert ran
        pattern = rf"[a-z0-9_]+_f(32|64)(_[a-z0-9]+)*_{isa}"
        assert all(re.fullmatch(pattern, name) for name in ran), ran
    finally:
        _C.record_kernels(False)
        _C.set_isa(before)


def test_set_isa_to_an_unknown_one() -> None:
    before = _C.get_isa()
    with pytest.raises(RuntimeError, match="avx1024"):
        _C.set_isa("avx1024")
    assert _C.get_isa() == before


def test_records_only_when_asked() -> None:
    _C.record_kernels(True)
    _C.record_kernels(False)
    FusedMLP([20, 30, 10])(torch.randn(9, 20))
    assert _C.recorded_kernels() == []


def test_isas_agree() -> None:
    """Not to the last bit, as an instruction set that silently ran another's kernels would.

    That they are near enough is what the bounds prove, which hold for each.
    """
    if len(_C.available_isas()) < 2:
        pytest.skip("one instruction set only")
    x = torch.randn(50, 784)
    model = FusedMLP([784, 300, 10])
    before = _C.get_isa()
    results = []
    try:
        for isa in ("generic", _C.available_isas()[0]):
            _C.set_isa(isa)
            results.append(model(x).detach())
    finally:
        _C.set_isa(before)
    assert not torch.equal(*results)


def test_build_info() -> None:
    info = _C.build_info()
    assert set(info) >= {"compiler", "cxx_standard", "torch", "openmp"}
    assert str(info["torch"]).split("+")[0].split(".")[:2] == torch.__version__.split(".")[:2]
    assert int(info["cxx_standard"]) in (17, 20, 23)
