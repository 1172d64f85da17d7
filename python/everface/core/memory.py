"""Settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from functools import cache

from everface.core.log import log

# parameters of mallopt, from glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
LARGE, PAD = 1 << 30, 64 << 20
RELEASE_EVERY_S = 60.0


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory for the next tensor instead of returning it to the system. Returns False where there is no glibc. Best called before the
    process has threads: memory of those that have allocated before stays apart, 190 MB of the bundled model's server.

    On a CPU a session allocates the same large tensors for every block. By default glibc maps and unmaps each of them, and the
    system zeroes every page at its first touch: 12 % of the bundled model's time. Memory grows by less than one block's tensors, and by what lies
    unused between others, 30 MB in 41 minutes of the bundled model's server: that is returned once a minute, by a thread that this starts.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE), (TOP_PAD, PAD), (ARENA_MAX, 1))
    done = all([mallopt(name, value) == 1 for name, value in settings])
    log.info("freed memory is %s", "kept" if done else "returned to the system, because mallopt refused the settings")
    if done:
        threading.Thread(target=_release_often, name="everface memory", daemon=True).start()
    return done


def _release_often() -> None:
    while True:
        time.sleep(RELEASE_EVERY_S)
        release_freed_memory()


def release_freed_memory() -> None:
    """Return what `keep_freed_memory` kept: what is used again then costs a page fault for each 4 KiB. Does nothing without glibc. Thread-safe."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
