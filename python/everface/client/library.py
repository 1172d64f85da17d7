"""The shared library and its header, as they were installed, or as they came with the package."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from everface.core.errors import Unavailable

PACKAGED = Path(__file__).parents[1] / "sdk"  # in a wheel, and after `make native`
ABI_MAJOR = 1


def sdk(prefix: Path | None = None) -> Path:
    """A folder with include/ and lib/: `prefix`, or the package's own. Raises Unavailable."""
    folder = prefix or PACKAGED
    if not (folder / "include" / "everface.h").is_file():
        raise Unavailable(
            f"{folder} holds no libeverface: run 'make native' in a checkout, or install everface again where cmake and a C++ compiler are found"
        )
    return folder


def library_path(prefix: Path | None = None) -> Path:
    """The shared library. Raises Unavailable."""
    folder = sdk(prefix)
    for name in ("lib", "lib64", *(p.relative_to(folder).as_posix() for p in folder.glob("lib/*-linux-gnu"))):
        if (path := folder / name / "libeverface.so").exists():
            return path
    raise Unavailable(f"{folder} holds headers but no libeverface.so: install everface again")


def declarations(header: str) -> str:
    """What cffi reads of the header: all of it but the preprocessor's lines, since nothing depends on a macro."""
    plain = re.sub(r"#ifdef __cplusplus.*?#endif\n", "", header, flags=re.DOTALL)
    return re.sub(r"^#.*$", "", plain, flags=re.MULTILINE)


@cache
def load_library(prefix: Path | None = None) -> tuple[Any, Any]:
    """(ffi, lib) of cffi. Raises Unavailable."""
    try:
        import cffi
    except ImportError:
        raise Unavailable("the client needs cffi: pip install 'everface[client]'") from None
    ffi = cffi.FFI()
    ffi.cdef(declarations((sdk(prefix) / "include" / "everface.h").read_text()))
    try:
        lib: Any = ffi.dlopen(str(library_path(prefix)))
    except OSError as error:
        raise Unavailable(f"libeverface cannot be loaded ({error}): install everface again") from None
    if lib.ef_abi_version() >> 16 != ABI_MAJOR:
        raise Unavailable(f"libeverface has ABI {lib.ef_abi_version() >> 16} and this package needs {ABI_MAJOR}: install the one that came with it")
    return ffi, lib
