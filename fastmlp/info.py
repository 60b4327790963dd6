"""`fastmlp info`: what is installed, and what runs fused. Each line stands on its own feet."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from ._cores import granted_cores
from ._version import __version__

_EXTRAS = ("matplotlib", "Pillow", "scikit-learn", "tqdm")
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def report() -> str:
    """The report, one line an item; what cannot be told says why."""
    items: Sequence[tuple[str, Callable[[], str]]] = (
        ("fastmlp", lambda: f"{__version__}, {os.path.dirname(os.path.abspath(__file__))}"),
        ("python", lambda: f"{platform.python_version()}, {platform.platform()}"),
        ("torch", _torch),
        ("compiler", _compiler),
        ("instruction sets", _instruction_sets),
        ("threads", _threads),
        ("OpenMP", _openmp),
        ("CUDA", _cuda),
        ("paths", _paths),
        ("extras", _extras),
    )
    return "\n".join(f"{name:18}{_guarded(tell)}" for name, tell in items)


def _guarded(tell: Callable[[], str]) -> str:
    """What an item tells, or why it cannot: the report is most wanted where something is broken."""
    try:
        return tell().replace("\n", "\n" + " " * 18)
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"unavailable: {reason or type(error).__name__}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {os.path.dirname(torch.__file__)}"


def _compiler() -> str:
    from fastmlp import _C

    build = _C.build_info()
    openmp = "with" if build["openmp"] else "without"
    return (
        f"{build['compiler']}, C++{build['cxx_standard']}, torch {build['torch']}, {openmp} OpenMP"
    )


def _instruction_sets() -> str:
    from fastmlp import _C

    forced = os.environ.get("FASTMLP_ISA")
    return (
        f"compiled {' '.join(_C.compiled_isas())}; found {' '.join(_C.available_isas())}; "
        f"active {_C.get_isa()}" + (" (forced by FASTMLP_ISA)" if forced else "")
    )


def _threads() -> str:
    import torch

    cores = granted_cores()
    granted = f", {cores:g} granted" if math.isfinite(cores) else ""
    return f"{torch.get_num_threads()} of {os.cpu_count()} processors{granted}"


def _openmp() -> str:
    import torch

    told = torch.__config__.parallel_info().splitlines()
    names = [line.strip() for line in told if line.startswith(("OpenMP", "ATen parallel backend"))]
    return "; ".join(names) or "none"


def _cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "not in this torch"
    count = torch.cuda.device_count()
    devices = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return f"{torch.version.cuda}, {devices or 'no device found'}"


def _paths() -> str:
    """Which combinations of device and dtype run fused, asked of a small network of each."""
    import torch

    from fastmlp import FusedMLP

    lines = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in _DTYPES:
            dtype = getattr(torch, name)
            model = FusedMLP([8, 8, 8], device=device, dtype=dtype)
            why_plain = model.why_plain(torch.zeros(1, 8, device=device, dtype=dtype))
            path = f"plain torch: {why_plain}" if why_plain else "fused"
            lines.append(f"{device} {name:9}{path}")
    return "\n".join(lines)


def _extras() -> str:
    versions, missing = [], []
    for package in _EXTRAS:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        command = f'{sys.executable} -m pip install "fastmlp[train]"'
        versions.append(f"missing: {' '.join(missing)} ({command})")
    return ", ".join(versions)
