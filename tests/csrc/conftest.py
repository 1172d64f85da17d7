"""Builds csrc with the fake NCCL and the fake CUDA runtime, once per variant, in build/, where a later run finds it again."""

import fcntl
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import everface
from everface.kernels.cpu import native_cpu

ROOT = Path(__file__).parents[2]
Build = Callable[..., Path]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, f"{command[0]} returned {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def installed() -> Path | None:
    """The folder of everface._native as `make setup` built it, if no source has changed since."""
    folder = ROOT / "python" / "everface"
    sources = [ROOT / "CMakeLists.txt", *(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cc", ".h"))]
    built = folder / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    return folder if built.exists() and built.stat().st_mtime >= max(path.stat().st_mtime for path in sources) else None


@pytest.fixture(scope="session")
def build() -> Build:
    """build(sanitize) returns the folder of that variant: test_ring, the two fakes, and, where it is not `installed`, package/_native of the plain one."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not shutil.which("cmake") or not compiler:
        pytest.skip("needs cmake and a C++ compiler")

    def make(sanitize: str = "") -> Path:
        python = not sanitize and importlib.util.find_spec("pybind11") is not None and installed() is None
        folder = ROOT / "build" / "csrc" / (sanitize or "plain")
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes may need the same variant
            run(
                "cmake", "-S", ROOT, "-B", folder, *(["-G", "Ninja"] if shutil.which("ninja") else []),
                "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -Werror", "-DEVERFACE_TESTS=ON", "-DEVERFACE_CLIENT=OFF",
                f"-DEVERFACE_SANITIZE={sanitize}", f"-DEVERFACE_PYTHON={'ON' if python else 'OFF'}",
                f"-DPython_EXECUTABLE={sys.executable}", f"-DEVERFACE_MODULE_DIR={folder / 'package'}",
            )  # fmt: skip
            run("cmake", "--build", folder, "--parallel", "2")
        return folder

    return make


@pytest.fixture(scope="session")
def package(build: Build) -> Path:
    """Where everface._native of the present sources is."""
    pytest.importorskip("pybind11")
    return installed() or build() / "package"


@pytest.fixture
def native(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """everface._native of the present sources."""
    monkeypatch.delitem(sys.modules, "everface._native", raising=False)
    monkeypatch.setattr(everface, "__path__", [str(package), *everface.__path__])
    native_cpu.cache_clear()
    assert native_cpu() is not None
    yield
    native_cpu.cache_clear()


@pytest.fixture
def amx(native: None) -> Iterator[None]:
    """The same on a CPU with AMX, in inference mode, in which a stream's ops use it."""
    if not native_cpu().has_amx():
        pytest.skip("this CPU has no AMX")
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def prefix() -> Path:
    """libeverface, installed."""
    return install_client()


def install_client(sanitize: str = "") -> Path:
    """Builds libeverface alone, once per sanitizer, and returns where it is installed."""
    if not shutil.which("cmake"):
        pytest.skip("needs cmake and a C++ compiler")
    folder = ROOT / "build" / "csrc" / f"client{sanitize and '-'}{sanitize}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(
            "cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -Werror", "-DEVERFACE_PYTHON=OFF",
            "-DCMAKE_INSTALL_LIBDIR=lib", f"-DEVERFACE_SANITIZE={sanitize}",
        )  # fmt: skip
        run("cmake", "--build", folder, "--target", "everface")
        run("cmake", "--install", folder, "--prefix", folder / "prefix", "--component", "client")
    return folder / "prefix"


def client_program(sanitize: str = "") -> Path:
    """test_client, built once per sanitizer."""
    folder = install_client(sanitize).parent
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", ROOT, "-B", folder, "-DEVERFACE_TESTS=ON")
        run("cmake", "--build", folder, "--target", "test_client", "fake_cudart")
    return folder / "test_client"


def fake_cuda(sanitize: str = "") -> Path:
    """A folder for LD_LIBRARY_PATH, with a CUDA runtime that needs no GPU."""
    return client_program(sanitize).parent / "fake_cuda"
