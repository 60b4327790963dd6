"""The build backend: setuptools', plus the choice of the torch to compile the extension against.

Front ends build in isolation, in an environment that holds only what the build asks for, while the
extension has to be compiled against the torch that it will run with. So this backend looks into the
environment that fastmlp is installed into. Where a torch is found there, the build uses it, and no
second one is downloaded; where none is found, the build asks for `DEFAULT_TORCH`. The finished wheel
requires the torch that it was compiled against, so that both ways end with the two together.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  (every hook that is not written below)

OLDEST_TORCH = "2.9"
DEFAULT_TORCH = "2.13.0"  # what the project is tested with

ConfigSettings = Mapping[str, "str | list[str] | None"]


def series(version: str) -> tuple[int, int]:
    """(major, minor) of a version: (2, 13) of "2.13.0+cpu". ABI breaks happen between series."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ValueError(f"{version!r} is no version of torch")
    return int(found[1]), int(found[2])


def target_path() -> list[str]:
    """`sys.path` of the environment that fastmlp is installed into, as far as it can be known.

    pip isolates a build through environment variables alone. Asking the same interpreter without
    them names every folder that the installed package will import from, also those of the user
    site, of a venv with system site packages and of .pth files.

    uv and build isolate by a venv of their own, which does not tell what it is for. The environment
    meant is then taken to be the first with a torch of those that _interpreters() guesses.
    """
    own: list[str] = []
    for python in _interpreters():
        path = _path_of(python)
        if path and next(metadata.distributions(name="torch", path=path), None):
            return path
        own = own or path
    return own


def _interpreters() -> Iterator[str]:
    """The interpreter of the build, and those of environments that it may have been started for."""
    yield sys.executable
    if sys.prefix == sys.base_prefix or "PYTHONNOUSERSITE" in os.environ:  # no venv; pip's way
        return
    with suppress(OSError):  # who made the venv: "command = …/bin/python -m venv …"
        text = Path(sys.prefix, "pyvenv.cfg").read_text()
        yield from re.findall(r"^command *= *(.+?) -m venv", text, re.MULTILINE)
    # Of an activated environment uv replaces the first name, and leaves the others.
    names = (os.environ.get(name) for name in ("VIRTUAL_ENV", "CONDA_PREFIX"))
    on_path = (Path(folder).parent for folder in os.environ.get("PATH", "").split(os.pathsep))
    venvs = (venv for venv in on_path if (venv / "pyvenv.cfg").is_file())
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    for prefix in dict.fromkeys((*map(Path, filter(None, names)), *venvs)):
        if prefix != Path(sys.prefix):
            yield str(prefix / scripts / "python")


def _path_of(python: str) -> list[str]:
    """`sys.path` of an interpreter; empty if it cannot be asked, or loads no extension of ours."""
    program = (
        "import json, sys, sysconfig; "
        "print(json.dumps([sysconfig.get_config_var('EXT_SUFFIX'), sys.path[1:]]))"
    )
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME", "__PYVENV_LAUNCHER__")
    try:
        answer = subprocess.run(
            [python, "-c", program],
            env={name: value for name, value in os.environ.items() if name not in isolation},
            stdout=subprocess.PIPE,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    suffix, path = json.loads(answer.stdout)
    return list(path) if suffix == sysconfig.get_config_var("EXT_SUFFIX") else []


def installed_torch() -> str | None:
    """Version of the torch that `import torch` finds now, None where there is none."""
    found = next(iter(metadata.distributions(name="torch", path=sys.path)), None)
    return found.version if found else None


def find_torch() -> str | None:
    """Version of the torch to build against, None where there is none; it can be imported then.

    Exits with a message where the torch found is older than `OLDEST_TORCH`.
    """
    if installed_torch() is None:
        # At the end, so that the build's own setuptools go before those of the target environment.
        sys.path += [folder for folder in target_path() if folder not in sys.path]
    version = installed_torch()
    if version is not None and series(version) < series(OLDEST_TORCH):
        raise SystemExit(
            f"fastmlp needs torch {OLDEST_TORCH} or newer, and the environment has {version}. "
            f'To mend it: {sys.executable} -m pip install "torch=={DEFAULT_TORCH}"'
        )
    return version


def get_requires_for_build_wheel(config_settings: ConfigSettings | None = None) -> list[str]:
    """What the isolated build of a wheel needs apart from setuptools."""
    return [] if find_torch() else [f"torch=={DEFAULT_TORCH}"]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: ConfigSettings | None = None) -> list[str]:
    """An sdist is packed without torch."""
    return []
