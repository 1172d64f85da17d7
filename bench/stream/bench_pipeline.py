"""What a pipeline of real processes costs beyond the work of its stages, and whether `everface simulate` predicts it.

    python -m pytest bench/stream/bench_pipeline.py --benchmark-json FILE -s

Sleeping stages show the runtime alone. The bundled model shows a real stream: on few cores its stages share them, so the forecast is
made from the times that the stages themselves measured in that run, where each has one role.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from bench.rows import commit
from bench.stream.sleepers import MODEL, ROLES, SleepSession

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import SAMPLE_RATE, Deployment, StreamConfig
from everface.media.audio import read_audio
from everface.models.live_avatar.forecast import block_times
from everface.models.live_avatar.names import role_specs
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.planning.forecast import Times, simulate
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline

ROOT = str(Path(__file__).parents[2])
STEP_MS, BLOCKS, BLOCK = 50.0, 100, 7680


def stream(session: Session, blocks: int) -> list[float]:
    """Push so much sound, take all frames; when each block was delivered."""
    stamps: list[float] = []
    for _ in range(blocks):
        while not session.push_audio(torch.zeros(BLOCK)):
            session.wait(1.0)
            stamps += [time.perf_counter() for _ in session.poll()]
        stamps += [time.perf_counter() for _ in session.poll()]
    session.end_segment()
    stamps += [time.perf_counter() for _ in session.frames()]
    return stamps


def record(benchmark: Any, **info: object) -> None:
    machine = f"{cpu_name()}, {psutil.cpu_count()} cores, torch {torch.__version__}"
    benchmark.extra_info.update(commit=commit(), machine=machine, **info)
    print("\n" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()))


@pytest.mark.parametrize("processes", ["2", "5"])
def test_sleeping_stages(benchmark: Any, monkeypatch: pytest.MonkeyPatch, processes: str) -> None:
    monkeypatch.syspath_prepend(ROOT)
    placement = place(ROLES, processes)
    deepest = max(len(roles) for roles in placement.devices)
    pipeline = start_pipeline(placement, MODEL, {"ms": STEP_MS}, Deployment(processes, threads=1))
    assert isinstance(pipeline, ProcessPipeline)
    with closing(Scheduler(pipeline)) as scheduler:
        with scheduler.open_session(SleepSession()).wait_open() as warm:
            stream(warm, 10)
        with scheduler.open_session(SleepSession()).wait_open() as session:
            stamps = benchmark.pedantic(stream, (session, BLOCKS), rounds=1)
            slept_ms = [1e3 * statistics.mean(seconds[-BLOCKS:]) for seconds in pipeline.block_seconds()]
        with scheduler.open_session(SleepSession()).wait_open() as alone:
            for _ in range(12):  # one block at a time: nothing waits for anything
                alone.push_audio(torch.zeros(BLOCK))
                while not alone.poll():
                    alone.wait(1.0)
            latency_ms = 1e3 * statistics.median(b.seconds for b in alone.timeline.blocks if b.seconds)
    gaps = [b - a for a, b in pairwise(stamps[4:])]  # without the filling of the pipe
    rate, ideal = 1 / statistics.mean(gaps), 1e3 / (deepest * STEP_MS)
    slept = sum(slept_ms)  # a sleep takes a little longer than it was asked to
    transfer_ms = (latency_ms - slept) / (len(placement.devices) + 1)
    forecast = simulate(placement, Times({role.name: STEP_MS for role in ROLES}, transfer_ms), blocks=BLOCKS)
    record(
        benchmark, placement=processes, blocks_per_s=rate, ideal=ideal, share_of_ideal=rate / ideal, transfer_ms=transfer_ms,
        work_ms=[round(ms, 2) for ms in slept_ms],
        period_p99_ms=1e3 * sorted(gaps)[int(0.99 * len(gaps))], forecast_blocks_per_s=forecast.fps / 12,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", ["official", "skip-null"])
@pytest.mark.parametrize("placement", ["inline", "1", "2", "3", "4", "5"])
def test_the_bundled_model(benchmark: Any, placement: str, sampler: str) -> None:
    if sampler == "skip-null" and placement == "5":
        pytest.skip("three steps and a decoder have four places")
    config = StreamConfig(sampler=sampler)
    audio_S = next(read_audio(AUDIO, 8 * SAMPLE_RATE))
    with Avatar(deployment=Deployment(placement, threads=None if placement in ("inline", "1") else 1)) as avatar:
        image = avatar.fit(IMAGE, config)

        def once() -> tuple[list[float], float]:
            with avatar.open(image, config) as session:
                stamps = []
                began = time.perf_counter()
                session.push_audio(torch.as_tensor(audio_S).contiguous())
                session.end_segment()
                for _ in session.frames():
                    stamps.append(time.perf_counter())
                return stamps, began

        once()
        stamps, began = benchmark.pedantic(once, rounds=1)
        gaps = [b - a for a, b in pairwise(stamps[5:])]
        fps = 12 / statistics.mean(gaps)
        info: dict[str, object] = {}
        pipeline = avatar.start(config).pipeline
        if isinstance(pipeline, ProcessPipeline):
            work = [1e3 * statistics.mean(seconds[-10:]) for seconds in pipeline.block_seconds()]
            info["work_ms"] = [round(ms, 1) for ms in work]
            if placement == "5":  # a stage a role: the forecast knows each role's time
                forecast = simulate(place(role_specs(4), 5), block_times(4, statistics.mean(work[:4]), work[4], transfer_ms=1.0))
                info["forecast_fps"], info["error"] = forecast.fps, forecast.fps / fps - 1
        record(benchmark, placement=placement, sampler=sampler, fps=fps, first_frame_ms=1e3 * (stamps[0] - began), **info)
