"""Gluon, the part of Triton in which a kernel lays out its registers and schedules its copies itself; or why it is unavailable.

Gluon is experimental and changes with each release of Triton: kernels written in it here are for one release, and unavailable with another.
"""

from __future__ import annotations

from typing import Any

RELEASE = "3.6"

try:
    import triton
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )

    UNAVAILABLE = "" if triton.__version__.startswith(RELEASE + ".") else f"needs Triton {RELEASE}, this is {triton.__version__}"
except ImportError as error:
    gluon: Any = None
    gl: Any = None
    fence_async_shared: Any = None
    mbarrier: Any = None
    tma: Any = None
    warpgroup_mma: Any = None
    warpgroup_mma_wait: Any = None
    UNAVAILABLE = f"needs Gluon, which comes with Triton {RELEASE}: {error}"

__all__ = ["UNAVAILABLE", "fence_async_shared", "gl", "jit", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait"]


def jit(**options: Any) -> Any:
    """gluon.jit(...). Without Gluon the kernel is defined too, and never launched."""
    return gluon.jit(**options) if gluon is not None else lambda f: f
