"""The build's choice of torch, the sdist, and the loader's words for an extension that misfits."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastmlp import _extension

ROOT = Path(__file__).resolve().parents[1]


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
