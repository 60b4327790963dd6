"""Compiles fastmlp._C against the torch found by _build/backend.py; the rest: pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))  # a no-op in a build through the backend

import backend  # noqa: E402


def openmp_flags() -> list[str]:
    """-fopenmp where the OpenMP runtime that torch has loaded answers to this compiler's calls.

    Nothing is linked: two OpenMP runtimes in a process fight over the cores, so these calls must
    end up in torch's. It is GCC's in the wheels for Linux, which Clang cannot call.
    """
    import ctypes

    if sys.platform != "linux":
        return []
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    version = subprocess.run([*compiler.split(), "--version"], stdout=subprocess.PIPE, text=True)
    entry = "__kmpc_fork_call" if "clang" in version.stdout else "GOMP_parallel"
    if hasattr(ctypes.CDLL(None), entry):
        return ["-fopenmp"]
    print(f"fastmlp: one thread only, as torch's OpenMP runtime has no {entry} for {compiler}")
    return []


def extension() -> tuple[Extension, type[build_ext]]:
    """The extension and the command that compiles it."""
    # A wrapper such as ccache would be put before itself by threads that compile at the same time.
    os.environ["TORCH_NO_COMPILER_WRAPPER"] = "1"
    # So that a ninja of the target environment is found, whether or not that is activated.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    class BuildExt(BuildExtension.with_options(use_ninja=is_ninja_available())):  # type: ignore[misc]
        """torch's command, which also picks the C++ standard, made parallel without ninja."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # file times do not tell that torch has changed

        def build_extension(self, ext: Extension) -> None:
            if not self.use_ninja:
                compile_serially = self.compiler.compile

                def compile_all(sources: list[str], **options: Any) -> list[str]:
                    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
                    with ThreadPoolExecutor(jobs) as pool:
                        objects = pool.map(lambda one: compile_serially([one], **options), sources)
                        return list(chain.from_iterable(objects))

                self.compiler.compile = compile_all
            super().build_extension(ext)

    module = CppExtension(
        "fastmlp._C",
        sorted(str(source) for source in Path("csrc").rglob("*.cpp")),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("FASTMLP_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fvisibility=hidden",
            "-fvisibility-inlines-hidden",
            # GCC 12 raises these a thousand times for its own AVX-512 headers.
            "-Wno-maybe-uninitialized",
            "-Wno-uninitialized",
            *openmp_flags(),
        ],
    )
    return module, BuildExt


if "sdist" in sys.argv:  # the sources fit every supported torch
    setup(install_requires=[f"torch>={backend.OLDEST_TORCH}", "numpy"])
else:
    torch_version = backend.find_torch()
    if torch_version is None:
        raise SystemExit(
            "fastmlp is compiled against torch, and there is none in this environment. "
            f'To mend it: {sys.executable} -m pip install "torch=={backend.DEFAULT_TORCH}"'
        )
    module, command = extension()
    setup(
        install_requires=[f"torch=={torch_version.split('+')[0]}", "numpy"],
        ext_modules=[module],
        cmdclass={"build_ext": command},
    )
