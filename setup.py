"""Compiles fastmlp._C against the torch found by _build/backend.py; the rest: pyproject.toml."""

from __future__ import annotations

import os
import shlex
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


def compiler() -> list[str]:
    """The command of the C++ compiler, which setuptools and torch will use, too."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def check_compiler() -> None:
    """Ends the build with one line where the compiler, or Python's headers, are not there."""
    if sys.platform == "win32":  # setuptools looks for Microsoft's, and says so
        return
    name = shlex.join(compiler())
    probe = [*compiler(), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    include = [f"-I{sysconfig.get_path(kind)}" for kind in ("include", "platinclude")]
    try:
        for program, options in (("int main() {}", []), ("#include <Python.h>", include)):
            done = subprocess.run([*probe, *options], input=program, capture_output=True, text=True)
            if done.returncode:
                break
        else:
            return
    except OSError as error:
        raise SystemExit(
            f"fastmlp is compiled when it is installed, and there is no C++ compiler: {name}: "
            f"{error.strerror}. To mend it: install GCC (apt install g++; dnf install gcc-c++; "
            "conda install gxx) or set CXX to the compiler that is there"
        ) from None
    if options:
        raise SystemExit(
            f"fastmlp is compiled when it is installed, and the C++ compiler finds no Python.h in "
            f"{sysconfig.get_path('include')}. To mend it: install Python's headers (apt install "
            "python3-dev; dnf install python3-devel) or use a Python that has them"
        )
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise SystemExit(
        f"fastmlp is compiled when it is installed, and the C++ compiler {name} does not compile "
        f"C++17 ({said}). To mend it: install GCC 11 or newer, or set CXX to it"
    )


def openmp_flags() -> list[str]:
    """-fopenmp where the OpenMP runtime that torch has loaded answers to this compiler's calls.

    Nothing is linked: two OpenMP runtimes in a process fight over the cores, so these calls must
    end up in torch's. It is GCC's in the wheels for Linux, which Clang cannot call.
    """
    import ctypes

    if sys.platform != "linux":
        return []
    version = subprocess.run([*compiler(), "--version"], stdout=subprocess.PIPE, text=True)
    entry = "__kmpc_fork_call" if "clang" in version.stdout else "GOMP_parallel"
    if hasattr(ctypes.CDLL(None), entry):
        return ["-fopenmp"]
    print(
        f"fastmlp: one thread only, as torch's OpenMP runtime has no {entry} for "
        f"{shlex.join(compiler())}"
    )
    return []


def asked(name: str) -> bool:
    """Whether the environment variable is set to anything but 0."""
    return os.environ.get(name, "") not in ("", "0")


def extension() -> tuple[Extension, type[build_ext]]:
    """The extension and the command that compiles it."""
    check_compiler()
    # So that a ninja of the target environment is found, whether or not that is activated.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    # torch gives ninja a compiler of several words, such as "ccache g++", as if it were one.
    use_ninja = is_ninja_available() and len(compiler()) == 1
    if not use_ninja:
        # torch would put ccache before itself, from threads that compile at the same time.
        os.environ["TORCH_NO_COMPILER_WRAPPER"] = "1"

    class BuildExt(BuildExtension.with_options(use_ninja=use_ninja)):  # type: ignore[misc]
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

    # For tests/sanitize. With inlining and unrolling by -O3 the kernels would be too large.
    sanitizers = ["-fsanitize=address,undefined"] if asked("FASTMLP_SANITIZE") else []
    optimize = ["-O3", "-g0"]
    if sanitizers:
        optimize = ["-O1", "-g1", "-fno-omit-frame-pointer"]
    elif asked("FASTMLP_DEBUG"):
        optimize = ["-O0", "-g"]
    module = CppExtension(
        "fastmlp._C",
        sorted(str(source) for source in Path("csrc").rglob("*.cpp")),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("FASTMLP_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=[
            *optimize,
            *sanitizers,
            "-fvisibility=hidden",
            "-fvisibility-inlines-hidden",
            # GCC 12 raises these a thousand times for its own AVX-512 headers.
            "-Wno-maybe-uninitialized",
            "-Wno-uninitialized",
            *openmp_flags(),
        ],
        extra_link_args=sanitizers,
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
