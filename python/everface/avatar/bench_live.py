"""`everface bench live`: latency, cadence, seams and memory of a live session on this machine, at the pace of the clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.avatar.demo import IMAGE
from everface.avatar.live_report import Figure, LiveReport, figure
from everface.avatar.live_scenario import SEAMS, TERMS, Scenario, Seen
from everface.core.config import Deployment, StreamConfig
from everface.live.stats import LiveStats

WARM_UP_S = 3.0  # of idle motion before anything is counted
SETTLED_S = 60.0  # after which memory is taken as the start, or a tenth of a short run
MOST_DRIFT = 0.1  # of audio against video, frames a minute: one frame in ten minutes
MOST_GROWTH_MB = 10.0
MOST_SEAM = 1.5  # times the 99th percentile of ordinary motion
LEAST_SEAMS = 100


def bench_live(
    weights: Path | None = None,
    lora: Path | None = None,
    stream: StreamConfig | None = None,
    deployment: Deployment | None = None,
    segments: int = 10,
    minutes: float | None = None,
) -> LiveReport:
    """Speak and pause `segments` times, or for so many minutes, chunk by chunk as a microphone does; every second time, interrupt."""
    load, process, began_s = os.getloadavg()[0], psutil.Process(), time.monotonic()
    resident_mb: list[float] = []
    with Avatar(weights, lora, deployment) as avatar:
        with avatar.open_live(IMAGE, stream) as session:
            Scenario(session).next_frame()
            cold_ms = 1e3 * (time.monotonic() - began_s)
        began_s = time.monotonic()
        with avatar.open_live(IMAGE, stream) as session:
            scenario = Scenario(session)
            scenario.next_frame()
            warm_ms = 1e3 * (time.monotonic() - began_s)
            scenario.watch(WARM_UP_S)
            scenario.seen, before, began_s = Seen(), session.stats(), time.monotonic()
            settled_s = min(SETTLED_S, 6.0 * (minutes or 0.0))

            def over(turns: int) -> bool:
                past_s = time.monotonic() - began_s
                if not resident_mb and past_s >= settled_s:
                    resident_mb.append(process.memory_info().rss / 1e6)
                return past_s >= 60 * minutes if minutes else turns >= segments

            turns = scenario.converse(over)
            past_s, after = time.monotonic() - began_s, session.stats()
            resident_mb.append(process.memory_info().rss / 1e6)
    return LiveReport(
        (figure("first frame, cold", "ms", [cold_ms]), figure("first frame, warm", "ms", [warm_ms]), *_figures(scenario.seen, before, after, resident_mb, 1e3 / avatar.format.fps)),
        past_s / 60, turns, after.frames - before.frames, f"{avatar.deployment.dtype}, {cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}", load,
    )  # fmt: skip


def _figures(seen: Seen, before: LiveStats, after: LiveStats, resident_mb: list[float], frame_ms: float) -> list[Figure]:
    ordinary = float(np.percentile(seen.ordinary, 99)) if seen.ordinary else float("nan")
    minutes = np.asarray(seen.av_stamps) / 60
    offsets_ms = 1e3 * np.asarray(seen.av_offsets_s)
    drift = [abs(float(np.polyfit(minutes - minutes[0], offsets_ms, 1)[0]))] if len(minutes) > 1 else []
    interruptions = max(1, len(seen.refills_s))
    return [
        figure("speech to its first frame", "ms", _ms(seen.onsets_s), ("p95", 900)),
        *_terms(seen.onset_terms_s),
        figure("interruption to last stale frame", "ms", _ms(seen.stale_s), ("most", frame_ms)),
        figure("interruption to first new frame", "ms", _ms(seen.refills_s), ("p99", 600)),
        *_terms(seen.refill_terms_s),
        figure("cadence jitter", "ms", [abs(1e3 * (b - a) - frame_ms) for a, b in zip(seen.stamps, seen.stamps[1:])], ("p99", 10)),
        figure("underruns", "", [after.underruns - before.underruns], ("most", 0)),
        figure("frames held in underruns", "", [after.held_frames - before.held_frames]),
        figure("frames held after an interruption, mean", "", [(after.refill_frames - before.refill_frames) / interruptions]),
        figure("quality levels changed", "", [after.level_changes - before.level_changes]),
        figure("audio behind video", "ms", np.abs(offsets_ms).tolist(), ("most", frame_ms)),
        figure("drift of audio and video", "ms/min", drift, ("most", MOST_DRIFT * frame_ms)),
        figure("memory at the start", "MB", resident_mb[:1]),
        figure("memory grown", "MB", [resident_mb[-1] - resident_mb[0]] if len(resident_mb) > 1 else [], ("most", MOST_GROWTH_MB)),
        *(figure(f"seam, {name}", "x motion", [change / ordinary for change in seen.seams[name]], ("most", MOST_SEAM)) for name in SEAMS),
        _enough_seams(sum(map(len, seen.seams.values()))),
    ]


def _terms(terms_s: list[tuple[float, ...]]) -> list[Figure]:
    """What the time in the row above consists of."""
    return [figure(f"  of it {name}", "ms", _ms([parts[i] for parts in terms_s])) for i, name in enumerate(TERMS)]


def _enough_seams(count: int) -> Figure:
    return Figure("seams", "", 1, count, count, count, count, f">= {LEAST_SEAMS}", count >= LEAST_SEAMS)


def _ms(seconds: list[float]) -> list[float]:
    return [1e3 * s for s in seconds]
