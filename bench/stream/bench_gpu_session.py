"""One feeder on one device, end to end: frames a second, first frame cold and warm, memory, and the period of a block over a soak.

    python -m pytest bench/stream/bench_gpu_session.py -k official-fp8 --attention gluon-e4m3 --soak 300

The real runtime (inline pipeline, scheduler, session) and the real roles over random weights; audio is pushed as fast as it is accepted,
so the rate is the machine's. Left out: the audio front end, the image encoder, the prompt encoder. A round of the
benchmark is the wait for the next block. A row is named by the sampler, the dtype of the GEMMs and the attention (bench/attention.py).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from bench.attention import deployment, parametrize, select
from bench.peaks import device_name
from bench.rows import commit
from bench.stream import random14b

from everface.core.config import FPS, SAMPLERS, StreamConfig
from everface.models.live_avatar.names import role_specs
from everface.runtime.events import VideoBlock
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SETTLED = 8  # blocks until ring, sink and captures are as they stay
SAMPLES = 7680  # of a block
MOST = 900  # blocks of a soak, which the session's timeline still holds
CLOCKS_S = 5.0
OPENED_S = 1.0 if ON_GPU else 0.0  # before the first sound, so that its time has none of the work that opening queued on the device


class Feeder:
    """Keeps a session fed and takes its blocks one by one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.began_s = time.monotonic()
        self.session = scheduler.open_session(random14b.RandomSession()).wait_open()
        self.open_s = time.monotonic() - self.began_s
        self.taken: deque[VideoBlock] = deque()

    def next(self) -> VideoBlock:
        """The next block of frames, however long it takes."""
        audio = torch.zeros(SAMPLES)
        while not self.taken:
            while self.session.push_audio(audio):
                pass
            self.session.wait(0.05)
            self.taken.extend(self.session.poll())
        return self.taken.popleft()

    def delivered_s(self) -> list[float]:
        """When blocks were delivered, once settled."""
        return [b.delivered_s for b in self.session.timeline.blocks if b.delivered_s is not None and b.index >= SETTLED]

    def periods_s(self) -> list[float]:
        """Between deliveries, once settled."""
        return [b - a for a, b in pairwise(self.delivered_s())]

    def late_blocks(self) -> int:
        """Blocks that a viewer would have waited for, who began to watch when the first settled one came."""
        first, *others = self.delivered_s()
        return sum(at > first + n * 12 / FPS for n, at in enumerate(others, 1))

    def first_frame_ms(self) -> float:
        """From the first sound to the first frames, of an open session."""
        return 1e3 * (self.session.timeline.first_frame_s or 0.0)


class Clocks:
    """Notes the clocks of the chip now and then, in a thread of its own: nvidia-smi takes a tenth of a second, in which no audio would be pushed."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(CLOCKS_S):
            self.seen += [now] if (now := clocks()) else []

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def clocks() -> list[float]:
    """MHz of the multiprocessors, watts, degrees; empty where nobody can say."""
    if not ON_GPU or not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5.0)
        return [float(n) for n in done.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


def memory_gb() -> float:
    return torch.cuda.memory_allocated() / 1e9 if ON_GPU else 0.0


def device_mallocs() -> int:
    return torch.cuda.memory_stats()["segment.all.allocated"] if ON_GPU else 0


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    found = {f"p{p}": ordered[min(len(ordered) - 1, p * len(ordered) // 100)] for p in (50, 95, 99)} | {"max": ordered[-1]}
    return {name: round(1e3 * s, 3) for name, s in found.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("sampler", SAMPLERS)
    parametrize(metafunc, ("fp8", "bf16"))


@pytest.mark.timeout(0)  # a soak may take longer than a test may; bench.gpu ends it
def test_session(benchmark: Any, request: pytest.FixtureRequest, sampler: str, gemms: str, attention: str) -> None:
    soak_s, chosen = float(request.config.option.soak), deployment(gemms, attention, DEVICE, sessions=1)
    if not ON_GPU:  # the reference of 8 bits takes a CPU minutes
        chosen = deployment("bf16", "auto", DEVICE, sessions=1)
    info: dict[str, Any] = select(chosen, random14b.CONFIG.dit.head_dim)
    placement, began_s, gb = place(role_specs(StreamConfig(sampler=sampler).steps), "inline"), time.monotonic(), {}
    spec = {"deployment": asdict(chosen), "sampler": sampler}
    with closing(Scheduler(start_pipeline(placement, random14b.MODEL, spec, chosen), 1)) as scheduler:
        info["build_s"], gb["weights"] = time.monotonic() - began_s, memory_gb()
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        for start in ("cold", "warm"):
            feeder = Feeder(scheduler)
            gb["open"] = memory_gb()
            time.sleep(OPENED_S)
            frames = feeder.next().frames_THW3
            assert frames.shape == (12, 8 * random14b.LATENT[0], 8 * random14b.LATENT[1], 3) and frames.dtype == torch.uint8
            info |= {f"open_{start}_s": feeder.open_s, f"first_frame_{start}_ms": feeder.first_frame_ms()}
            if start == "cold":
                for _ in range(SETTLED):
                    feeder.next()  # every fill of the ring has its capture now
                feeder.session.close()
        for _ in range(SETTLED + 4):
            feeder.next()
        block_s = statistics.median(feeder.periods_s())
        mallocs, rounds = device_mallocs(), max(4, min(MOST, int(soak_s / block_s)))
        with closing(Clocks()) as chip:
            benchmark.pedantic(feeder.next, rounds=rounds)
        mallocs = device_mallocs() - mallocs
        periods_s, late = feeder.periods_s(), feeder.late_blocks()
        if ON_GPU:
            gb["peak"], gb["reserved"] = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
        feeder.session.close()
    random14b.forget()
    fps = 12 / statistics.mean(periods_s)
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), shape=f"{8 * random14b.LATENT[1]}x{8 * random14b.LATENT[0]}, {random14b.CONFIG.dit.num_layers} layers",
        dtype=chosen.dtype, attention=attention, sampler=sampler, fps=fps, realtime=fps / FPS, period_ms=percentiles(periods_s), blocks=len(periods_s), late_blocks=late, memory_gb=gb,
        device_mallocs=mallocs, clocks=chip.seen, left_out=["audio front end", "image encoder", "prompt encoder"], **info,
    )  # fmt: skip
    print("\n" + "  ".join(f"{k} {benchmark.extra_info[k]}" for k in ("sampler", "dtype", "attention_selected", "fps", "period_ms", "late_blocks", "memory_gb")))
