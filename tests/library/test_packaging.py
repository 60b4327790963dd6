"""The build's choice of torch, the sdist, and the loader's words for an extension that misfits."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastmlp import _extension

ROOT = Path(__file__).resolve().parents[2]


def record(version: str) -> bytes:
    """A file that is no library, yet carries the record of a build against `version`."""
    return b"\x7fELF\0fastmlp was built against torch " + version.encode() + b"\0\0"


class TestBackend:
    @pytest.fixture
    def backend(self) -> ModuleType:
        pytest.importorskip("setuptools", minversion="77.0.3")
        spec = importlib.util.spec_from_file_location("backend", ROOT / "_build" / "backend.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @pytest.fixture
    def target(self, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The packages' folder of a target environment; the build itself is isolated from torch."""
        isolated = [folder for folder in sys.path if "site-packages" not in folder]
        monkeypatch.setattr(sys, "path", isolated)
        monkeypatch.setattr(backend, "target_path", lambda: [str(tmp_path)])
        return tmp_path

    @staticmethod
    def install(target: Path, version: str) -> None:
        info = target / f"torch-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")

    @pytest.mark.parametrize("version", ["2.9", "2.9.1", "2.10.0", "2.13.0+cpu", "3.0.0a0+git1"])
    def test_supported_torch_of_the_target_is_used(
        self, backend: ModuleType, target: Path, version: str
    ) -> None:
        self.install(target, version)
        assert backend.get_requires_for_build_wheel() == []
        assert backend.get_requires_for_build_editable() == []
        assert sys.path[-1] == str(target)  # torch can be imported; the build's packages go first

    def test_default_is_asked_for_where_there_is_none(
        self, backend: ModuleType, target: Path
    ) -> None:
        assert backend.get_requires_for_build_wheel() == [f"torch=={backend.DEFAULT_TORCH}"]
        assert backend.get_requires_for_build_sdist() == []

    @pytest.mark.parametrize("version", ["2.8.0", "1.13.1"])
    def test_older_torch_is_refused(self, backend: ModuleType, target: Path, version: str) -> None:
        self.install(target, version)
        with pytest.raises(SystemExit, match=rf"needs torch 2\.9 or newer.* has {version}"):
            backend.get_requires_for_build_wheel()

    def test_target_path_is_free_of_pip_s_isolation(
        self, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        path = backend.target_path()
        assert str(tmp_path) not in path
        assert str(Path(torch.__file__).parents[1]) in path

    @pytest.fixture
    def venv(
        self, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Path]:
        """Makes venvs, with a torch or without; the build runs in one without, as uv has it."""

        def make(name: str, version: str | None = None, suffix: str | None = None) -> Path:
            packages = tmp_path / name / "packages"
            packages.mkdir(parents=True)
            if version:
                self.install(packages, version)
            suffix = suffix or sysconfig.get_config_var("EXT_SUFFIX")
            python = tmp_path / name / "bin" / "python"
            python.parent.mkdir()
            python.write_text(f"#!/bin/sh\necho '{json.dumps([suffix, [str(packages)]])}'\n")
            python.chmod(0o755)
            (tmp_path / name / "pyvenv.cfg").touch()
            return tmp_path / name

        builder = make("builder")
        monkeypatch.setattr(sys, "prefix", str(builder))
        monkeypatch.setattr(sys, "base_prefix", "/usr")
        monkeypatch.setattr(sys, "executable", str(builder / "bin" / "python"))
        monkeypatch.delenv("CONDA_PREFIX", raising=False)
        monkeypatch.delenv("PYTHONNOUSERSITE", raising=False)
        monkeypatch.setenv("VIRTUAL_ENV", str(builder))
        monkeypatch.setenv("PATH", f"{builder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
        return make

    @pytest.mark.parametrize("told_by", ["PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "pyvenv.cfg"])
    def test_a_build_in_a_venv_of_its_own_looks_for_the_environment_meant(
        self,
        backend: ModuleType,
        venv: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        told_by: str,
    ) -> None:
        meant = venv("meant", "2.11.0")
        if told_by == "PATH":
            empty, other = venv("empty"), venv("other", "2.12.0", ".other-python.so")
            before = [str(place / "bin") for place in (empty, other, meant)]
            monkeypatch.setenv("PATH", os.pathsep.join([*before, os.environ["PATH"]]))
        elif told_by == "pyvenv.cfg":
            command = f"home = /usr/bin\ncommand = {meant}/bin/python -m venv other\n"
            Path(sys.prefix, "pyvenv.cfg").write_text(command)
        else:
            monkeypatch.setenv(told_by, str(meant))
        assert backend.target_path() == [str(meant / "packages")]
        monkeypatch.setenv("PYTHONNOUSERSITE", "1")  # pip, whose interpreter is the target's
        assert backend.target_path() == [str(Path(sys.prefix, "packages"))]

    def test_a_build_in_a_venv_of_its_own_without_any_torch(
        self, backend: ModuleType, venv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VIRTUAL_ENV", str(venv("empty")))
        monkeypatch.setenv("CONDA_PREFIX", "/nowhere")
        assert backend.target_path() == [str(Path(sys.prefix, "packages"))]

    def test_sdist_is_complete_and_bound_to_no_torch(self, tmp_path: Path) -> None:
        pytest.importorskip("setuptools", minversion="77.0.3")
        subprocess.run(
            [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path],
            cwd=ROOT,
            check=True,
        )
        (archive,) = tmp_path.glob("*.tar.gz")
        with tarfile.open(archive) as sdist:
            base = archive.name.removesuffix(".tar.gz")
            packed = {name.removeprefix(f"{base}/") for name in sdist.getnames()}
            info = sdist.extractfile(f"{base}/PKG-INFO")
            assert info is not None
            assert "Requires-Dist: torch>=2.9\n" in info.read().decode()
        sources = {
            str(file.relative_to(ROOT))
            for folder in ("_build", "benchmarks", "csrc", "docs", "examples", "fastmlp", "tests")
            for file in (ROOT / folder).rglob("*")
            if file.suffix in {".cpp", ".cu", ".h", ".md", ".py", ".pyi"}
        }
        assert sources | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= packed


COMPILERS = {
    "none": (None, r"there is no C\+\+ compiler: .*/c: No such file or directory.*apt install g"),
    "no program": ("", r"there is no C\+\+ compiler: .*/c: .*set CXX"),
    "too old": (
        "echo 'error: unrecognized option -std=c++17' >&2; exit 1",
        r"does not compile C\+\+17 \(error: unrecognized.*GCC 11",
    ),
    "no headers": (
        "! grep -q Python.h || { echo 'fatal error: Python.h: No such file' >&2; exit 1; }",
        "finds no Python.h in .*apt install python3-dev",
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("fault", COMPILERS)
def test_a_missing_compiler_is_one_line(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("setuptools", minversion="77.0.3")
    text, says = COMPILERS[fault]
    if text is not None:
        (tmp_path / "c").write_text(f"#!/bin/sh\n{text}\n" if text else "")
        (tmp_path / "c").chmod(0o755 if text else 0o644)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CXX": str(tmp_path / "c")},
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(rf"fastmlp is compiled when it is installed, and .*{says}.*\n", done.stderr)


class TestLoader:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        """A copy of the package's Python without the extension."""
        package = tmp_path / "fastmlp"
        package.mkdir()
        (package / "__init__.py").write_text("from fastmlp import _extension\n_extension.load()\n")
        source = Path(_extension.__file__).read_text()
        (package / "_extension.py").write_text(source)
        return package

    @staticmethod
    def error(package: Path) -> str:
        """The whole error that `import fastmlp` ends with."""
        done = subprocess.run(
            [sys.executable, "-c", "import fastmlp"],
            cwd=package.parent,  # where Python looks first
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.count("Traceback") == 1
        return done.stderr[done.stderr.index("ImportError: ") :]

    def test_never_built(self, package: Path) -> None:
        (package.parent / "setup.py").touch()
        error = self.error(package)
        assert "holds no extension" in error
        assert f'{sys.executable} -m pip install --no-deps -e "{package.parent}"' in error

    def test_built_against_another_torch(self, package: Path) -> None:
        (package.parent / "setup.py").touch()
        (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(record("2.8.1+cu118"))
        error = self.error(package)
        assert "built against torch 2.8.1+cu118 " in error
        assert f"installed torch {torch.__version__}. " in error
        assert f'{sys.executable} -m pip install --no-deps -e "{package.parent}"' in error
        assert "The loader said" not in error  # it was never asked

    @pytest.mark.parametrize(
        ("origin", "command"),
        [
            (
                {"url": "file:///src/fastmlp", "dir_info": {}},
                'install --force-reinstall --no-deps --no-cache-dir "file:///src/fastmlp"',
            ),
            (
                {
                    "url": "https://host/fastmlp",
                    "vcs_info": {"vcs": "git", "commit_id": "0a1b"},
                },
                'install --force-reinstall --no-deps --no-cache-dir "git+https://host/fastmlp@0a1b"',
            ),
            ({"url": "file:///fastmlp.whl", "archive_info": {}}, 'install "torch==2.8.1"'),
        ],
        ids=["folder", "git", "wheel"],
    )
    def test_what_mends_an_installed_package(
        self, package: Path, origin: dict[str, object], command: str
    ) -> None:
        info = package.parent / "fastmlp-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastmlp\nVersion: 0.1.0\n")
        (info / "direct_url.json").write_text(json.dumps(origin))
        (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(record("2.8.1+cu118"))
        assert command in self.error(package)

    def test_library_that_cannot_be_loaded(self, package: Path) -> None:
        (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(record(torch.__version__))
        error = self.error(package)
        assert f"built against torch {torch.__version__} " in error
        assert re.search("The loader said: .+", error)

    def test_record_of_the_real_extension(self) -> None:
        library = _extension.find_library()
        assert library is not None
        built = _extension.built_against(library)
        assert built.split(".")[:2] == torch.__version__.split(".")[:2]

    def test_library_without_a_record(self, tmp_path: Path) -> None:
        library = tmp_path / "_C.so"
        library.write_bytes(b"\x7fELF")
        assert _extension.built_against(library) == "unknown"


def test_one_openmp_runtime(tmp_path: Path) -> None:
    """The extension's parallel regions run on the runtime that torch brought."""
    pytest.importorskip("threadpoolctl")
    program = (
        "import fastmlp, threadpoolctl\n"
        "for pool in threadpoolctl.threadpool_info():\n"
        "    if pool['user_api'] == 'openmp': print(pool['filepath'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 1
