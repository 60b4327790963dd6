"""The cores that a process may keep busy, by the files of a system that is made up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import fastmlp
from fastmlp import _C
from fastmlp._cores import granted_cores

MANY = math.inf  # no quota


def system(root: Path, cgroups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2, V1 = "0::/a/b\n", "5:memory:/a/b\n4:cpu,cpuacct:/a/b\n1:name=systemd:/a\n"


@pytest.mark.parametrize(
    ("cgroups", "files", "expected"),
    [
        pytest.param(V2, {"sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5, id="2"),
        pytest.param(V2, {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, MANY, id="2-unlimited"),
        pytest.param(
            V2,
            {
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "25000 100000\n",
            },
            0.25,
            id="2-above",
        ),
        pytest.param(V2, {"sys/fs/cgroup/cpu.max": "75000 100000\n"}, 0.75, id="2-container"),
        pytest.param(
            "0::/../../a\n", {"sys/fs/cgroup/cpu.max": "75000 100000\n"}, 0.75, id="2-outside"
        ),
        pytest.param(V2, {"sys/fs/cgroup/unified/a/cpu.max": "50000 100000\n"}, 0.5, id="2-hybrid"),
        pytest.param(V2, {"sys/fs/cgroup/a/b/cpu.max": "50000 0\n"}, MANY, id="2-no-period"),
        pytest.param(V2, {"sys/fs/cgroup/a/b/cpu.max": "what\n"}, MANY, id="2-unreadable"),
        pytest.param(V2, {}, MANY, id="2-nothing"),
        pytest.param(
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="1",
        ),
        pytest.param(
            V1,
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "30000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.3,
            id="1-container",
        ),
        pytest.param(
            V1,
            {
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
            },
            MANY,
            id="1-unlimited",
        ),
    ],
)
def test_quotas(tmp_path: Path, cgroups: str, files: dict[str, str], expected: float) -> None:
    assert granted_cores(system(tmp_path, cgroups, files)) == expected


@pytest.mark.parametrize(
    "text",
    [b"", b"\n\n", b"garbage\n", b"0:/a\n", b"0::\n", bytes(range(256)), b"0::/a\n" * 1000],
    ids=repr,
)
@pytest.mark.parametrize(
    "quota", ["50000 -100000", "-1 100000", f"{10**400} 1", "0 0", "1", "1 2 3", "", "\0"], ids=repr
)
def test_what_no_kernel_writes(tmp_path: Path, text: bytes, quota: str) -> None:
    system(tmp_path, "", {"sys/fs/cgroup/a/cpu.max": quota, "sys/fs/cgroup/cpu.max": quota})
    (tmp_path / "proc/self/cgroup").write_bytes(text)
    assert granted_cores(tmp_path) == MANY


def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    system(tmp_path, "", {"sys/fs/cgroup/cpu.max": "150000 100000"})
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/caf\xe9\n")
    assert granted_cores(tmp_path) == 1.5


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert granted_cores(tmp_path) == MANY


def test_fewer_cores_than_threads_change_no_bit(threads: int) -> None:
    torch.set_num_threads(4)
    model, x = fastmlp.FusedMLP([200, 300, 10]), torch.randn(400, 200)
    expected = model(x)
    _C.set_teams_bend(True)
    try:
        for cores in (0, 1, 3):
            _C.set_cores(cores)
            assert torch.equal(model(x), expected)
    finally:
        _C.set_cores(1 << 30)
        _C.set_teams_bend(False)
