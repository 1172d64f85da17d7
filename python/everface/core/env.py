"""The only place that reads the environment. At most ten variables, each with an owner."""

from __future__ import annotations

import os
from pathlib import Path

from everface.core.errors import BadInput, Unavailable

MAX_THREADS = 1024  # OpenMP ends the process when the system refuses it a thread
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def cache_dir() -> Path:
    """Where pulled, converted and merged weights live. EVERFACE_CACHE, else ~/.cache/everface.

    Raises Unavailable where `~` stands for no folder.
    """
    home = os.environ.get("EVERFACE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "everface")
    try:
        return Path(home).expanduser()
    except RuntimeError:
        raise Unavailable(f"there is no cache, because {home} names no home folder: set EVERFACE_CACHE to a folder") from None


def threads() -> int | None:
    """CPU threads for torch, or None to leave torch's own choice. EVERFACE_THREADS. Raises BadInput."""
    value = os.environ.get("EVERFACE_THREADS", "").strip()
    if not value:
        return None
    if not value.isdecimal() or not 1 <= (count := int(value[:9])) <= MAX_THREADS:
        raise BadInput(f"EVERFACE_THREADS is {value[:40]!r}: set a whole number from 1 to {MAX_THREADS}, or unset it")
    return count


def log_level() -> str:
    """EVERFACE_LOG: debug, info, warning (also if empty), error, critical; in capitals. Raises BadInput."""
    value = os.environ.get("EVERFACE_LOG", "").strip() or "warning"
    if value.lower() not in LOG_LEVELS:
        raise BadInput(f"EVERFACE_LOG is {value[:40]!r}: set {', '.join(LOG_LEVELS[:-1])} or {LOG_LEVELS[-1]}, or unset it")
    return value.upper()


def interpret_triton() -> bool:
    """TRITON_INTERPRET=1 runs kernels on the CPU; must be set before triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def signing_dir() -> tuple[Path | None, bool]:
    """Folder of the key that signs videos, and whether the user chose it. EVERFACE_SIGNING, else `signing` in the cache; None for "off"."""
    value = os.environ.get("EVERFACE_SIGNING", "").strip()
    if value == "off":
        return None, True
    if not value:
        return cache_dir() / "signing", False
    try:
        return Path(value).expanduser(), True
    except RuntimeError:
        raise BadInput(f"EVERFACE_SIGNING is {value[:40]!r}, which names no home folder: set a folder, or off") from None


def token() -> str | None:
    """What clients of `everface serve` must send. EVERFACE_TOKEN; None if it is empty."""
    return os.environ.get("EVERFACE_TOKEN", "").strip() or None
