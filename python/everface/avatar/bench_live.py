"""`everface bench live`: latency, cadence and seams of a live session on this machine, at the pace of the clock."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import FPS, SAMPLE_RATE, Deployment, StreamConfig
from everface.live.events import AudioFrame, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.live.session import LiveSession
from everface.media.audio import read_audio

WARM_UP_S = 3.0  # of idle motion before anything is counted
CHUNK_S = 0.02  # audio comes as a microphone's does


@dataclass(frozen=True)
class LiveReport:
    """Milliseconds as (p50, p95, p99) unless said otherwise."""

    first_frame_ms: float  # of the stream, from the opened session on; nothing was said yet
    onset_ms: tuple[float, float, float]  # from the first chunk of speech to its first video frame
    interrupt_ms: tuple[float, float, float]  # from an interruption to the first idle frame after it
    stale_frames: int  # frames of interrupted audio that came after their interruption
    jitter_ms: tuple[float, float, float]  # of the cadence: how far from a frame's time a frame came after the one before
    seam_ratio: float  # largest change between two frames at a seam over the 99th percentile of ordinary motion
    underruns: int
    held_frames: int
    frames: int
    segments: int
    machine: str
    load: float  # 1-minute load average before the run: above 0.5, distrust the figures


@dataclass
class _Seen:
    """What a run has shown so far."""

    stamps: list[float] = field(default_factory=list[float])
    changes: list[float] = field(default_factory=list[float])
    seams: list[float] = field(default_factory=list[float])
    underruns: int = 0
    last: np.ndarray | None = None
    idle: bool = True
    seam_frames: int = 0  # frames to come that belong to a seam

    def add(self, frame: VideoFrame, at_s: float) -> None:
        self.stamps.append(at_s)
        if frame.idle != self.idle:
            self.idle, self.seam_frames = frame.idle, 2
        if self.last is not None and not frame.held:
            change = float(np.abs(frame.image_HW3.astype(np.int16) - self.last).mean())
            (self.seams if self.seam_frames > 0 else self.changes).append(change)
        self.seam_frames -= 1
        self.last = frame.image_HW3


def bench_live(
    weights: Path | None = None,
    lora: Path | None = None,
    stream: StreamConfig | None = None,
    deployment: Deployment | None = None,
    segments: int = 10,
) -> LiveReport:
    """Speak and pause `segments` times into one live session, chunk by chunk as a microphone does; every second time, interrupt."""
    load = os.getloadavg()[0]
    speech_S = np.asarray(next(read_audio(AUDIO, 4 * SAMPLE_RATE)))
    rng, seen = random.Random(0), _Seen()
    onsets: list[float] = []
    interrupts: list[float] = []
    stale = 0
    with Avatar(weights, lora, deployment) as avatar, avatar.open_live(IMAGE, stream) as session:
        opened_s = time.monotonic()
        _watch(session, seen, WARM_UP_S)
        first_ms = 1e3 * (seen.stamps[0] - opened_s)
        seen.stamps.clear()
        for number in range(segments):
            seconds = rng.uniform(1.0, 2.5)
            latency_s = _speak(session, seen, speech_S[: int(seconds * SAMPLE_RATE)])
            if latency_s is not None:
                onsets.append(latency_s)
            if number % 2:
                turn_s = time.monotonic()
                begin = session.position
                session.interrupt()
                stale += _watch(session, seen, 1.2, since=begin, reached=interrupts, began_s=turn_s)
            else:
                session.end_segment()
                _watch(session, seen, rng.uniform(0.6, 1.8))
        stats = session.stats()
    gaps = [abs(b - a - 1 / FPS) for a, b in zip(seen.stamps, seen.stamps[1:])]
    ordinary = float(np.percentile(seen.changes, 99)) if seen.changes else float("nan")
    return LiveReport(
        first_frame_ms=first_ms,
        onset_ms=_percentiles(onsets),
        interrupt_ms=_percentiles(interrupts),
        stale_frames=stale,
        jitter_ms=_percentiles(gaps),
        seam_ratio=max(seen.seams, default=float("nan")) / ordinary,
        underruns=seen.underruns,
        held_frames=stats.held_frames,
        frames=stats.frames,
        segments=segments,
        machine=f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        load=load,
    )


def _speak(session: LiveSession, seen: _Seen, speech_S: np.ndarray) -> float | None:
    """Push chunks at the pace of the clock. Returns how long after the first of them its first video frame came, in seconds."""
    chunk, began_s = int(CHUNK_S * SAMPLE_RATE), time.monotonic()
    latency_s: float | None = None
    for number, at in enumerate(range(0, len(speech_S), chunk)):
        session.push_audio(speech_S[at : at + chunk], SAMPLE_RATE, timeout_s=1.0)
        until_s = began_s + (number + 1) * CHUNK_S
        while (left_s := until_s - time.monotonic()) > 0:
            event = session.read(left_s)
            if isinstance(event, VideoFrame):
                seen.add(event, time.monotonic())
                if latency_s is None and not event.idle:
                    latency_s = time.monotonic() - began_s
            seen.underruns += isinstance(event, Underrun)
    return latency_s


def _watch(
    session: LiveSession, seen: _Seen, seconds: float, since: int | None = None, reached: list[float] | None = None, began_s: float = 0.0
) -> int:
    """Read for so long. Frames that show audio before position `since` are stale; when the first later one came goes into `reached`."""
    end_s, stale, waiting = time.monotonic() + seconds, 0, reached is not None
    while (left_s := end_s - time.monotonic()) > 0:
        event = session.read(left_s)
        if isinstance(event, VideoFrame):
            seen.add(event, time.monotonic())
            if since is not None and not event.held:
                stale += event.pts < since
                if waiting and reached is not None and event.pts >= since:
                    reached.append(time.monotonic() - began_s)
                    waiting = False
        elif isinstance(event, Underrun):
            seen.underruns += 1
        else:
            assert event is None or isinstance(event, AudioFrame | LiveSegmentEnd | QualityChange), event
    return stale


def _percentiles(seconds: list[float]) -> tuple[float, float, float]:
    if not seconds:
        return float("nan"), float("nan"), float("nan")
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return round(1e3 * float(p50), 1), round(1e3 * float(p95), 1), round(1e3 * float(p99), 1)
