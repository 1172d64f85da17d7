"""How the C library's allocator treats memory that is freed and wanted again a moment later."""

from __future__ import annotations

import ctypes
import sys

from everface.core.log import log

# mallopt's names for them, glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
LARGE, PAD = 1 << 30, 64 << 20


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next tensor instead of given back to the system. False where there is no glibc.

    A stream on a CPU allocates the same tensors of megabytes for every block. glibc would map and unmap each of them, and the system fill
    every page of it with zeros at its first touch: 12 % of the time of the bundled model, whose memory grows by less than one block's tensors.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE), (TOP_PAD, PAD), (ARENA_MAX, 1))
    done = all([mallopt(name, value) == 1 for name, value in settings])
    log.info("freed memory is %s", "kept" if done else "given back, as the allocator chooses")
    return done
