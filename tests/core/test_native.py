"""Access to csrc: None or one sentence where it is not built; a library is found in its wheel before the system's."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from everface.core import native
from everface.core.errors import Unavailable


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, native.MODULE, None)  # as if it were not there
    assert native.find() is None
    with pytest.raises(Unavailable, match=r"^the nccl transport needs everface._native, which is not built: run 'make native'"):
        native.need("the nccl transport")


def test_built_but_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol: _Zfoo")

    monkeypatch.setattr(native.importlib, "import_module", broken)
    with pytest.raises(Unavailable, match=r"cannot be loaded \(undefined symbol: _Zfoo\): build it again"):
        native.find()


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_libraries_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, soname in (("nccl", "libnccl.so.2"), ("cu13", "libcudart.so.13"), ("cuda_runtime", "libcudart.so.12")):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / package / "lib" / soname).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert native.find_nccl() == str(tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2")
    for version, found in (("13.0", "cu13/lib/libcudart.so.13"), ("12.8", "cuda_runtime/lib/libcudart.so.12")):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert native.find_cudart() == str(tmp_path / "nvidia" / found)


def test_libraries_of_the_system_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert native.find_nccl() == "libnccl.so.2"
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(Unavailable, match=r"needs libnccl\.so\.2, and neither a wheel .* nor the system has it: pip install"):
        native.find_nccl()
    with pytest.raises(Unavailable, match=r"needs libcudart.so.1[23], .*a CUDA build of torch"):
        native.find_cudart()
