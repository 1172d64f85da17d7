"""GenBench's scenarios for pytest-benchmark, so that the speed of `everface genbench run` is tracked from commit to commit:

    python -m pytest bench/stream/bench_genbench.py --benchmark-autosave
    python -m pytest bench/stream/bench_genbench.py --benchmark-compare --benchmark-compare-fail=median:10%

What is timed is the figure itself: a clip (FPS is 200 over its seconds), the first frame of a warm and of a cold model, and the interval between
two blocks, of which the jitter is the deviation and the maximum. The bundled model shows the first sample of the short set; -k picks a placement.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from bench.rows import commit

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.core.config import FPS, SAMPLE_RATE, Deployment
from everface.genbench.build import build_set
from everface.media.audio import read_audio
from everface.runtime.session import Session

SECONDS, BLOCK_FRAMES = 8, 12
BLOCKS, WARM_BLOCKS = 60, 8  # intervals that are timed, and those before, until every cache is full
Sample = tuple[Path, np.ndarray]  # image, and SECONDS of its voice


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    made = build_set("short", tmp_path_factory.mktemp("set"), 1)
    return made.image(made.samples[0]), next(read_audio(made.voice(made.samples[0]), SECONDS * SAMPLE_RATE))


@pytest.fixture(scope="module", params=["inline", "2", "5"])
def deployment(request: pytest.FixtureRequest) -> Deployment:
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    return Deployment(request.param, device, dtype, None if request.param == "inline" else 1)


@pytest.fixture(scope="module")
def avatar(deployment: Deployment, sample: Sample) -> Iterator[Avatar]:
    """Warm: it has made one clip."""
    with Avatar(deployment=deployment) as avatar:
        with avatar.open(sample[0]) as session:
            speak(session, sample[1])
        yield avatar


def speak(session: Session, audio_S: np.ndarray, blocks: int | None = None) -> int:
    """Push all audio at once and take so many blocks, or all. Returns their frames."""
    session.push_audio(audio_S)
    session.end_segment()
    return sum(len(block.frames_THW3) for _, block in zip(range(blocks or len(audio_S)), session.frames()))


def record(benchmark: Any, deployment: Deployment, **info: object) -> None:
    machine = f"{cpu_name()}, {psutil.cpu_count()} cores, torch {torch.__version__}"
    benchmark.extra_info.update(commit=commit(), machine=machine, placement=deployment.placement, device=deployment.device, **info)


def test_clip(benchmark: Any, avatar: Avatar, deployment: Deployment, sample: Sample) -> None:
    def setup() -> tuple[tuple[Session, np.ndarray], dict[str, Any]]:
        return (avatar.open(sample[0]), sample[1]), {}

    frames = benchmark.pedantic(speak, setup=setup, teardown=lambda session, *_: session.close(), rounds=3)
    assert frames == SECONDS * FPS
    if benchmark.stats:
        record(benchmark, deployment, fps=frames / benchmark.stats.stats.median)


def test_first_frame(benchmark: Any, avatar: Avatar, deployment: Deployment, sample: Sample) -> None:
    def setup() -> tuple[tuple[Session, np.ndarray, int], dict[str, Any]]:
        return (avatar.open(sample[0]), sample[1], 1), {}

    assert benchmark.pedantic(speak, setup=setup, teardown=lambda session, *_: session.close(), rounds=10) == BLOCK_FRAMES
    record(benchmark, deployment)


def test_cold_first_frame(benchmark: Any, deployment: Deployment, sample: Sample) -> None:
    """With loading the model and starting its processes, but not the interpreter."""
    loaded: list[Avatar] = []

    def load() -> int:
        loaded.append(Avatar(deployment=deployment))
        return speak(loaded[-1].open(sample[0]), sample[1], 1)

    assert benchmark.pedantic(load, teardown=lambda: loaded.pop().close(), rounds=3) == BLOCK_FRAMES
    record(benchmark, deployment)


def test_block_interval(benchmark: Any, avatar: Avatar, deployment: Deployment, sample: Sample) -> None:
    """Between two blocks of a stream that never lacks audio."""
    parts, at = np.array_split(sample[1], 2 * SECONDS), cycle(range(2 * SECONDS))
    with avatar.open(sample[0]) as session:
        blocks = session.frames()

        def fill() -> None:
            while session.room() >= len(parts[0]):
                session.push_audio(parts[next(at)])

        for _ in range(WARM_BLOCKS):
            fill()
            next(blocks)
        benchmark.pedantic(lambda: next(blocks), setup=fill, rounds=BLOCKS)
        if benchmark.stats:
            intervals_s = benchmark.stats.stats.data
            p50, p95, p99 = (1e3 * float(np.percentile(intervals_s, p)) for p in (50, 95, 99))
            late = float(np.mean(np.array(intervals_s) > BLOCK_FRAMES / FPS))
            record(benchmark, deployment, p50_ms=p50, p95_ms=p95, p99_ms=p99, deadline_misses=late)
