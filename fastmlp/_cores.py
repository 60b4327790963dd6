"""How many cores this process may keep busy: those it may run on, and what its cgroups grant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> float:
    """Cores of time that the system grants the process in every second, 1.5 for example.

    Args:
        root: the folder in whose `proc/self/cgroup` and `sys/fs/cgroup` the quotas are looked up.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([float(cores), *_quotas(root)])


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of the process's cgroups and of all above them, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
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
                with suppress(OSError, ValueError, ZeroDivisionError):  # none there, or not limited
                    yield read(top.joinpath(*steps[:depth]))


def _of_version_2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return _cores(int(quota), int(period))  # "max", where there is no limit, is no number


def _of_version_1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return _cores(quota, int((group / "cpu.cfs_period_us").read_text()))


def _cores(quota: int, period: int) -> float:
    if quota <= 0:
        raise ValueError("not limited")
    return quota / period
