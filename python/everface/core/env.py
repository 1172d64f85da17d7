"""The only place that reads the environment. At most ten variables, each with an owner."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where pulled, converted and merged weights live. EVERFACE_CACHE, else ~/.cache/everface."""
    home = os.environ.get("EVERFACE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "everface")
    return Path(home).expanduser()


def threads() -> int | None:
    """CPU threads for torch, or None to leave torch's own choice. EVERFACE_THREADS."""
    value = os.environ.get("EVERFACE_THREADS")
    return int(value) if value and value.isdigit() and int(value) > 0 else None


def log_level() -> str:
    """EVERFACE_LOG: debug, info, warning (default), error."""
    return os.environ.get("EVERFACE_LOG", "warning").upper()


def interpret_triton() -> bool:
    """TRITON_INTERPRET=1 runs kernels on the CPU; must be set before triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def avoid_amx() -> None:
    """Keep oneDNN from AMX, whose bfloat16 gradient of a 3-D convolution aborts the process (torch 2.13, Xeon with amx_bf16).

    Takes effect before the process's first convolution or GEMM only. A value of the user's own for ONEDNN_MAX_CPU_ISA stays.
    """
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")
