"""`everface bench`: frames per second of a session, end to end, on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from everface.avatar.avatar import Avatar
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import SAMPLE_RATE, Deployment, StreamConfig
from everface.media.audio import read_audio


@dataclass(frozen=True)
class BenchReport:
    """Medians over the repeats, with the machine they were taken on."""

    fps: float  # frames / seconds from the first audio pushed to the last frame in hand, decode included
    fps_each: tuple[float, ...]
    first_frame_ms: float
    block_ms: float  # one block through every role, in steady state
    frames: int
    size: tuple[int, int]
    sampler: str
    placement: str
    machine: str
    threads: int
    load: float  # 1-minute load average before the first repeat: above 0.5, distrust the figures


def bench(
    weights: Path | None = None,
    lora: Path | None = None,
    stream: StreamConfig | None = None,
    deployment: Deployment | None = None,
    repeats: int = 5,
    seconds: float = 8.0,
) -> BenchReport:
    """Run the same session `repeats` times, after one that is not counted."""
    stream = stream or StreamConfig()
    load = os.getloadavg()[0]
    audio_S = next(read_audio(AUDIO, int(seconds * SAMPLE_RATE)))
    fps, first_ms, block_ms, frames, size = [], [], [], 0, (0, 0)
    with Avatar(weights, lora, deployment) as avatar:
        image = avatar.fit(IMAGE, stream)
        for repeat in range(repeats + 1):
            session = avatar.open(image, stream)
            began = time.perf_counter()
            stamps, frames = [], 0
            for part in torch.as_tensor(audio_S).split(SAMPLE_RATE // 2):
                while not session.push_audio(part.numpy()):
                    session.wait_room(part.numel(), 1.0)
                    frames += _take(session.poll(), stamps)
                frames += _take(session.poll(), stamps)
            session.end_segment()
            for block in session.frames():
                frames += _take([block], stamps)
                size = (int(block.frames_THW3.shape[1]), int(block.frames_THW3.shape[2]))
            session.close()
            if repeat:
                fps.append(frames / (stamps[-1] - began))
                first_ms.append(1e3 * (stamps[0] - began))
                block_ms.append(1e3 * statistics.median(b - a for a, b in pairwise(stamps)))
    return BenchReport(
        fps=statistics.median(fps),
        fps_each=tuple(round(f, 1) for f in fps),
        first_frame_ms=statistics.median(first_ms),
        block_ms=statistics.median(block_ms),
        frames=frames,
        size=size,
        sampler=stream.sampler,
        placement=(deployment or Deployment()).placement,
        machine=f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        threads=torch.get_num_threads(),
        load=load,
    )


def _take(blocks: list, stamps: list[float]) -> int:
    """Note when blocks arrived; return how many frames they hold."""
    stamps.extend(time.perf_counter() for _ in blocks)
    return sum(len(block.frames_THW3) for block in blocks)


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
