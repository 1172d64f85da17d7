"""Access to csrc: the built module, or None; and the libraries that it loads when a channel between two GPUs is opened."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from everface.core.errors import Unavailable

MODULE = "everface._native"
NCCL = "libnccl.so.2"
# NVIDIA's package and library of the CUDA runtime, by major version of CUDA.
CUDA_RUNTIMES = {"13": ("nvidia.cu13", "libcudart.so.13"), "12": ("nvidia.cuda_runtime", "libcudart.so.12")}


def find() -> ModuleType | None:
    """everface._native, or None when it was not built for this interpreter. Loads neither CUDA nor NCCL.

    Raises Unavailable when the file is there and cannot be loaded.
    """
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        raise Unavailable(f"{MODULE} is built but cannot be loaded ({error}): build it again with 'make native'") from None


def need(purpose: str) -> ModuleType:
    """everface._native. Raises Unavailable when it was not built; `purpose` begins its sentence, as in "the nccl transport"."""
    module = find()
    if module is None:
        raise Unavailable(
            f"{purpose} needs {MODULE}, which is not built: run 'make native' in a checkout, or install everface again where cmake, "
            "a C++ compiler and pybind11 are found, or choose the gloo transport"
        )
    return module


def find_nccl() -> str:
    """Path of NCCL in its wheel, else its name if the system's loader finds it. Raises Unavailable."""
    return _find("nvidia.nccl", NCCL) or _lack(NCCL, "pip install nvidia-nccl-cu13, or -cu12, as your torch has it")


def find_cudart(purpose: str = "the nccl transport") -> str:
    """The same for the CUDA runtime, of the CUDA version that torch was built for if there is one. Raises Unavailable; `purpose` begins its sentence."""
    major = (torch.version.cuda or "").partition(".")[0]
    runtimes = [CUDA_RUNTIMES[major]] if major in CUDA_RUNTIMES else list(CUDA_RUNTIMES.values())
    for package, soname in runtimes:
        if found := _find(package, soname):
            return found
    return _lack(runtimes[0][1], "install a CUDA build of torch, which brings it", purpose)


def _find(package: str, soname: str) -> str | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of the package above it
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, "lib", soname)).is_file():
            return str(path)
    try:
        ctypes.CDLL(soname)
    except OSError:
        return None
    return soname


def _lack(soname: str, fix: str, purpose: str = "the nccl transport") -> str:
    raise Unavailable(f"{purpose} needs {soname}, and neither a wheel of NVIDIA's nor the system has it: {fix}")
