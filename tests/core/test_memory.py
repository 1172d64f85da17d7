"""Freed memory is kept, in one heap for all threads, until it is given back. In processes of their own: the settings cannot be taken back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc")

HEAPS = """
import ctypes, os, sys, threading
from everface.cli.flags import deployment
from everface.cli.parser import build_parser
if "keep" in sys.argv:
    deployment(build_parser().parse_args(["serve"]), live=True)
together = threading.Barrier(5)
def allocate():
    held = [b"x" * n for n in range(100, 10_000)]
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
together.wait()
library = ctypes.CDLL(None)
library.fdopen.restype, library.malloc_info.argtypes, library.fclose.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
file = library.fdopen(os.dup(1), b"w")
library.malloc_info(0, file)
library.fclose(file)
"""
KEPT = """
import sys, time, numpy as np, psutil
from everface.core import memory
def rss_mb():
    return psutil.Process().memory_info().rss / 2**20
memory.RELEASE_EVERY_S = float(sys.argv[1])
assert memory.keep_freed_memory()
before = rss_mb()
held = [np.ones(1 << 20, np.uint8) for _ in range(200)]
behind = np.ones(1 << 20, np.uint8)
del held
kept = rss_mb()
if memory.RELEASE_EVERY_S > 10:
    memory.release_freed_memory()
until = time.monotonic() + 20
while rss_mb() - before > 20 and time.monotonic() < until:
    time.sleep(0.1)
print(kept - before, rss_mb() - before)
"""


def run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def test_a_servers_threads_share_a_heap() -> None:
    assert run(HEAPS).count("<heap nr=") > 1
    assert run(HEAPS, "keep").count("<heap nr=") == 1


@pytest.mark.parametrize("every_s", [60.0, 2.0], ids=["at once", "by and by"])
def test_what_is_kept_is_given_back(every_s: float) -> None:
    kept_mb, left_mb = map(float, run(KEPT, str(every_s)).split())
    assert kept_mb > 190 and left_mb < 20
