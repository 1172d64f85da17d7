"""Builds everface._native and libeverface into wheels; everything else stands in pyproject.toml.

Needs cmake, a C++17 compiler, Python's headers and pybind11. Where one of them is missing, or the build fails, the wheel is made without
the module and works without it, except for the nccl transport, and decodes slower on a CPU. An editable install never builds it: `make setup` does.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def missing_tools() -> list[str]:
    """What this machine lacks to build csrc."""
    found = {
        "a POSIX system": os.name == "posix",
        "cmake": shutil.which("cmake"),
        "a C++ compiler": any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "pybind11": importlib.util.find_spec("pybind11"),
    }
    return [name for name, there in found.items() if not there]


def check_links() -> None:
    """Refuse to make a package without its two linked folders. In an sdist they are plain folders."""
    for name in ("kernels", "runtime"):
        if not (ROOT / "python" / "everface" / name).is_dir():
            raise SystemExit(
                f"python/everface/{name} is a link that this checkout does not hold as one: clone with "
                "'git clone -c core.symlinks=true', or install from the source distribution, which has no links"
            )


class Build(build):
    def run(self) -> None:
        if missing := missing_tools():
            print(f"everface: built without everface._native, as this machine lacks {', '.join(missing)}", file=sys.stderr)
        super().run()


class CMakeBuild(build_ext):
    def run(self) -> None:
        if not self.editable_mode:
            super().run()

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp).resolve() / "cmake"
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DEVERFACE_MODULE_DIR={target}", "-DCMAKE_INSTALL_LIBDIR=lib"]
        try:
            subprocess.run(["cmake", "-S", ROOT, "-B", folder, *options], check=True)
            subprocess.run(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)], check=True)
            subprocess.run(["cmake", "--install", folder, "--prefix", target / "sdk", "--component", "client"], check=True)
        except subprocess.CalledProcessError as error:
            print(f"everface: built without everface._native, as cmake failed with status {error.returncode}", file=sys.stderr)


if __name__ == "__main__":
    check_links()
    native = [] if missing_tools() else [Extension("everface._native", sources=[])]
    setup(cmdclass={"build": Build, "build_ext": CMakeBuild}, ext_modules=native)
