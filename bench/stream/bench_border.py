"""What the border between two processes costs: from the push of a block's audio to its last frame, through libeverface and in process.

    python -m pytest bench/stream/bench_border.py -s --benchmark-json FILE

The model takes no time, so that what is left is the session, and through libeverface the engine, its socket and its shared memory. `extra_info` has p50
and p99 of both in milliseconds, their differences, and how often a frame is copied between the session and its reader.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.rows import commit
from bench.stream.border_engine import instant_scheduler, open_live
from bench.stream.client_library import install

from everface.client.library import library_path
from everface.engine.frame_ring import FrameRing
from everface.live.events import VideoFrame

ROOT = Path(__file__).parents[2]
BLOCKS, WARM = 2000, 100
BLOCK, FRAMES = 7680, 12
SIZES = {"128x128": (128, 128), "256x256": (256, 256), "704x384": (384, 704)}
WAIT_S = 60.0


def in_process(height: int, width: int) -> list[float]:
    """Microseconds a block."""
    times_us = []
    samples = np.zeros(BLOCK, np.int16)
    with instant_scheduler(height, width) as scheduler, open_live(scheduler) as session:
        for _ in range(BLOCKS):
            began_s, frames = time.perf_counter(), 0
            assert session.push_audio(samples, timeout_s=WAIT_S) == BLOCK
            while frames < FRAMES:
                frames += isinstance(session.read(WAIT_S), VideoFrame)
            times_us.append(1e6 * (time.perf_counter() - began_s))
    return times_us


def build_client(folder: Path) -> Path:
    """`border.c`, over libeverface."""
    prefix, program = install(folder / "prefix"), folder / "border"
    library = library_path(prefix)
    source = str(ROOT / "bench/stream/border.c")
    subprocess.run(["cc", "-O2", source, f"-I{prefix}/include", str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)], check=True)
    return program


def through_library(program: Path, path: Path, height: int, width: int) -> tuple[list[float], int]:
    """Microseconds a block, and the frames that the library copied."""
    engine = subprocess.Popen([sys.executable, "-m", "bench.stream.border_engine", path, str(height), str(width)], cwd=ROOT)
    try:
        end_s = time.monotonic() + WAIT_S
        while not path.exists() and time.monotonic() < end_s:
            time.sleep(0.05)
        done = subprocess.run([program, path, str(BLOCKS)], capture_output=True, text=True, check=True, timeout=300)
    finally:
        engine.kill()
        engine.wait()
    *times_us, copies = map(float, done.stdout.split())
    return times_us, int(copies)


def p50_p99(times_us: list[float]) -> tuple[float, float]:
    """Milliseconds."""
    kept = sorted(times_us[WARM:])
    return statistics.median(kept) / 1e3, kept[int(0.99 * len(kept))] / 1e3


@pytest.mark.parametrize("size", SIZES)
def test_border(benchmark: Any, tmp_path: Path, size: str) -> None:
    height, width = SIZES[size]
    program = build_client(tmp_path)
    inside = p50_p99(in_process(height, width))
    times_us, copies = benchmark.pedantic(through_library, (program, tmp_path / "e.sock", height, width))
    outside = p50_p99(times_us)
    image_HW3, ring = np.zeros((height, width, 3), np.uint8), FrameRing(1, height, width)
    ring.release(ring.put(image_HW3))  # the first touch of the memory is slower
    began_s = time.perf_counter()
    ring.put(image_HW3)
    info = {
        "in_process_p50_ms": inside[0], "in_process_p99_ms": inside[1], "library_p50_ms": outside[0], "library_p99_ms": outside[1],
        "added_p50_ms": outside[0] - inside[0], "added_p99_ms": outside[1] - inside[1],
        "copies_by_engine": 1, "copies_by_library": copies / (BLOCKS * FRAMES), "copy_ms": 1e3 * (time.perf_counter() - began_s),
    }  # fmt: skip
    ring.close()
    benchmark.extra_info.update(commit=commit(), size=size, **info)
    print("\n" + size + "  " + "  ".join(f"{name} {value:.3g}" for name, value in info.items()))
