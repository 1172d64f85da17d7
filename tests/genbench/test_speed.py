"""Speed and memory of a stream from stamps that are known, and the latency of a live session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everface.genbench.clips import live_latency, speed
from everface.genbench.clips.live_latency import SPEECH, LatencyRecord, measure_latency, read_latency
from everface.genbench.clips.speed import SpeedMeter, growth
from everface.genbench.clips.systems import EverfaceSystem

WANTED = {"fps", "first_frame_s", "cold_first_frame_s", "block_ms_p50", "block_ms_p95", "block_ms_p99", "deadline_misses", "rss_mb", "memory_mb_per_1000s"}


class FakeProcess:
    """Uses 100 MB, and a child 20 MB; the child's grow by 1 MB at every look."""

    def __init__(self) -> None:
        self.child_mb = 20.0

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=100e6)

    def children(self, recursive: bool) -> list[Any]:
        assert recursive
        self.child_mb += 1
        return [SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=self.child_mb * 1e6))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now.s)
    yield now


def test_figures_follow_from_the_stamps(clock: SimpleNamespace) -> None:
    meter = SpeedMeter(FakeProcess(), 25, loading_since=0.0)  # type: ignore[arg-type]  all that it asks of a process
    clock.s = 3.0
    meter.opened()
    clock.s = 3.5
    meter.add_block(12)
    for gap_s in [0.24] * 197 + [0.5, 0.6]:  # 12 frames play for 0.48 s
        clock.s += gap_s
        meter.add_block(12)
    meter.finished()
    found = meter.measures()
    assert found["first_frame_s"] == pytest.approx(0.5) and found["cold_first_frame_s"] == pytest.approx(3.5)
    assert found["fps"] == pytest.approx(2400 / (0.5 + 197 * 0.24 + 1.1))
    assert (found["block_ms_p50"], found["block_ms_p95"]) == (pytest.approx(240), pytest.approx(240))
    assert found["block_ms_p99"] == pytest.approx(240 + 0.02 * 260) and found["deadline_misses"] == pytest.approx(2 / 199)
    assert found["memory_mb_per_1000s"] == pytest.approx(1000 / 5.28)  # 1 MB a look, a look every eleven blocks of 0.48 s
    assert found.keys() == WANTED


def test_windows_have_their_own_figures(clock: SimpleNamespace) -> None:
    meter = SpeedMeter(FakeProcess(), 25)  # type: ignore[arg-type]  as above
    meter.opened()
    for n in range(300):  # 144 s of video, from 72 s on half as fast
        clock.s += 0.12 if n < 150 else 0.24
        meter.add_block(12)
    found = meter.windows()
    assert found.keys() == {"0", "100"}
    assert (found["0"]["fps"], found["100"]["fps"]) == (pytest.approx(100), pytest.approx(50))
    assert found["0"]["block_ms_p99"] == pytest.approx(120) and found["100"]["rss_mb"] > found["0"]["rss_mb"] + 15


def test_a_clip_without_blocks_has_no_figures() -> None:
    meter = SpeedMeter(FakeProcess(), 25)  # type: ignore[arg-type]  as above
    assert meter.measures() == meter.windows() == {} == growth([])


def test_latency_is_measured_once_and_a_failure_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [LatencyRecord(error="no audio device"), LatencyRecord(dict(zip(SPEECH, (400.0, 500.0)))), LatencyRecord(error="again")]
    monkeypatch.setattr(live_latency, "_measure", lambda system: results.pop(0))
    system = EverfaceSystem()
    assert measure_latency(system, tmp_path).error == "no audio device"
    assert measure_latency(system, tmp_path).measures == {"speech_ms_p50": 400, "speech_ms_p95": 500} == measure_latency(system, tmp_path).measures
    assert read_latency(tmp_path) == measure_latency(system, tmp_path) and len(results) == 1


def test_a_live_session_that_cannot_start_gives_its_reason(tmp_path: Path) -> None:
    system = EverfaceSystem({"seed": 1}, {"placement": "inline", "threads": 1}, tmp_path / "nothing")
    assert "nothing" in measure_latency(system, tmp_path).error


@pytest.mark.long
def test_a_live_session_has_a_latency(small_model: Path, tmp_path: Path) -> None:
    found = measure_latency(EverfaceSystem({}, {"threads": 1}, small_model), tmp_path)
    assert found.error == "" and 0 < found.measures["speech_ms_p50"] <= found.measures["speech_ms_p95"] < 10_000
