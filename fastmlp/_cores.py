"""How many cores the process's cgroups let it keep busy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def granted_cores(root: Path = Path("/")) -> float:
    """Cores of time that the system grants the process in every second, 1.5 for example.

    They are those of the tightest quota of its cgroups and of all above them; infinite where there
    is none. How many cores the process may run on is another matter: OpenMP, and so torch, looks
    at that when it starts.

    Args:
        root: the folder in whose `proc/self/cgroup` and `sys/fs/cgroup` the quotas are looked up.
    """
    return min(_quotas(root), default=math.inf)


def _quotas(root: Path) -> Iterator[float]:
    try:  # names are bytes of any kind
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path:
            continue
        if controllers == "":  # version 2, alone or beside version 1
            tops, read = (mounts, mounts / "unified"), _of_version_2
        elif "cpu" in controllers.split(","):
            tops, read = (mounts / controllers, mounts / "cpu"), _of_version_1
        else:
            continue
        # In a container a path may be the host's: what its own mount shows then stands at the top.
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for depth in range(len(steps) + 1):
                # None is there, it is not limited, or nothing that a kernel writes.
                with suppress(OSError, ValueError, ArithmeticError):
                    yield read(top.joinpath(*steps[:depth]))


def _of_version_2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return _cores(int(quota), int(period))  # "max", where there is no limit, is no number


def _of_version_1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return _cores(quota, int((group / "cpu.cfs_period_us").read_text()))


def _cores(quota: int, period: int) -> float:
    if quota <= 0 or period <= 0:
        raise ValueError("not limited")
    return quota / period
