"""A soak of thirty seconds of media, what its watchers see, and clocks that begin near where their counters wrap."""

from __future__ import annotations

import csv
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.live.faces import live_in_process
from tests.runtime import toy

from everface import cli
from everface.core.config import SAMPLES_PER_FRAME, Deployment
from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline
from everface.soak.rows import Row, SoakReport
from everface.soak.run import watch_live
from everface.soak.watchers import EventWatcher, FragmentWatcher, slope

IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_thirty_seconds_through_the_command(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    code = cli.main(["soak", "--hours", str(30 / 3600), "--fast", "--weights", str(small_model), "-o", str(out), "--threads", "1"])
    text = capsys.readouterr().out
    assert "30 s of media" in text and " 0 gaps, 0 out of order" in text
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 30 and float(rows[-1]["media_s"]) >= 30 and int(rows[-1]["segments"]) >= 3
    assert {row["gaps"] for row in rows} == {row["disorder"] for row in rows} == {"0"}
    assert abs(float(rows[-1]["av_ms"])) < 1 and rows[-1]["descriptors"] == rows[5]["descriptors"]
    assert code == 0 or "memory grew" in text  # so short a run may still be warming up


def test_a_server_that_ends_is_told_in_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    code = cli.main(["soak", "--server", "--fast", "--hours", "0.01", "--size", "128x128", "--threads", "1"])  # no size of the bundled weights
    said = capfd.readouterr().err
    assert code == 2 and "the server ended the session, it says why above" in said and "Traceback" not in said


def test_at_the_pace_of_the_clock() -> None:
    with live_in_process() as live:
        rows: list[Row] = []
        watcher = watch_live(live, 4.0, rows.append)
    assert (watcher.seen.gaps, watcher.seen.disorder) == (0, 0) and watcher.seen.media_s >= 4
    assert rows[-1].wall_s >= 2.5


def test_a_server_with_a_client() -> None:
    pytest.importorskip("fastapi")
    from tests.serve.hosting import hosted

    from everface.soak.run import watch_socket

    with hosted() as host:
        socket = host.socket()
        socket.send(json.dumps({"type": "start", "format": "fmp4", "paced": False}))
        rows: list[Row] = []
        watcher = watch_socket(socket, 30.0, psutil.Process(), rows.append)
        socket.close()
    seen = watcher.seen
    assert (seen.gaps, seen.disorder, seen.recoveries) == (0, 0, 0) and seen.segments >= 2 and seen.media_s >= 30
    assert max(row.av_ms for row in rows[5:]) - min(row.av_ms for row in rows[5:]) < 200


def frame(number: int, held: bool = False) -> list[VideoFrame | AudioFrame]:
    pts = number * SAMPLES_PER_FRAME
    return [VideoFrame(IMAGE, pts, 0, False, held), AudioFrame(np.zeros((SAMPLES_PER_FRAME, 1), np.int16), 16_000, pts, 0)]


def watched(*events: VideoFrame | AudioFrame | LiveSegmentEnd) -> tuple[int, int, int]:
    watcher = EventWatcher(25)
    for event in events:
        watcher.add(event)
    return watcher.seen.frames, watcher.seen.gaps, watcher.seen.disorder


def test_what_the_watcher_of_events_sees() -> None:
    f0, f1, f2, f3 = (frame(n) for n in range(4))
    assert watched(*f0, *f1, *f2) == (3, 0, 0)
    assert watched(*f0, *f2) == (2, 1, 0)  # a frame is missing
    assert watched(*f0, *f1, *f1) == (3, 1, 0)  # one came twice
    assert watched(f0[0], *f1) == (2, 0, 1)  # its audio is missing
    assert watched(f0[1], *f0) == (1, 0, 1)
    assert watched(*f0, frame(1, held=True)[0], *f1) == (2, 0, 0)  # held until the next was ready
    assert watched(*f0, *frame(1, held=True), *f2) == (3, 0, 0)  # the ladder showed one for two
    ends = [LiveSegmentEnd(n, 1, 1, False) for n in (1, 2, 3)]
    assert watched(ends[0], ends[2]) == (0, 0, 1) and watched(ends[0], ends[0]) == (0, 0, 1) and watched(*ends) == (0, 0, 0)
    watcher = EventWatcher(25)
    for event in (*f0, f1[0]):
        watcher.add(event)
    watcher.jump()
    for event in f3:
        watcher.add(event)
    assert (watcher.seen.gaps, watcher.seen.disorder, watcher.seen.av_ms) == (0, 0, 0)


def row(number: int, **values: float) -> Row:
    return replace(Row(10.0 * number, number, 500.0, 0.0, 9, 5, 0.0, 0, 0, 0, number, 0), **values)


def test_the_bars() -> None:
    good = [row(n) for n in range(100)]
    assert SoakReport(good).faults() == [] and "all bars held" in SoakReport(good).summary()
    for what, values in (
        ("memory", {"rss_mb": 510.0}), ("device", {"gpu_mb": 1.0}), ("descriptors", {"descriptors": 10}), ("threads", {"threads": 6}),
        ("place", {"gaps": 1}), ("order", {"disorder": 1}),
    ):  # fmt: skip
        [fault] = SoakReport([*good, *(row(n, **values) for n in range(100, 110))]).faults()
        assert what in fault
    assert SoakReport([*good, *(row(n, rss_mb=520.0) for n in range(100, 109)), row(109)]).faults() == []  # not given back yet
    [fault] = SoakReport([row(n, av_ms=0.02 * n) for n in range(100)]).faults()
    assert "drifts from video by 2.00 ms" in fault
    assert SoakReport([row(0, rss_mb=300.0), *good]).faults() == []  # it warms up
    assert slope([(0, 0), (1, 1)]) == 0


@pytest.mark.parametrize("first", [0, 2**31 // 512 - 40, 2**32 // 512 - 40, 2**53 // 4096])
def test_the_servers_mp4_goes_on_where_counters_wrap(first: int) -> None:
    """The muxer counts 512 a frame: 2^31 after 46 hours, 2^32 after 93; audio at 48 kHz reaches 2^31 after 12, 2^32 after 25."""
    from everface.serve.stream.encoders import Mp4Encoder

    encoder, watcher = Mp4Encoder(48_000, 1, 25), FragmentWatcher()
    encoder._frames = first
    encoder.open(64, 64)
    encoder._audio._received = encoder._audio._encoded = first * 1920
    for _ in range(100):
        for event in (VideoFrame(np.zeros((64, 64, 3), np.uint8), 0, 0, False), AudioFrame(np.zeros((1920, 1), np.int16), 48_000, 0, 0)):
            for piece in encoder.encode(event):
                watcher.add(piece)
    encoder.close()
    assert watcher.seen.gaps == 0 and watcher.seen.frames >= 90 and abs(watcher.seen.av_ms) < 200


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with live_in_process(paced=False) as live:
        watch_live(live, 3.0, lambda row: None)
    assert threading.active_count() <= before


@pytest.mark.parametrize("wrap", [2**31, 2**32])
def test_a_live_session_goes_on_where_positions_wrap(wrap: int) -> None:
    """2^31 samples of 16 kHz are 37 hours."""
    pipeline = start_pipeline(place(toy.roles_of(2), "inline"), toy.MODEL, toy.SPEC, Deployment())
    scheduler = Scheduler(pipeline)
    try:
        session = toy.open_at(scheduler).wait_open()
        first = (wrap - 3 * 16_000) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
        session._buffer.begin = session._buffer.at = session._buffer.accepted = session._sent = session._shown = first
        with LiveSession(session, paced=False) as live:
            live._next_pts = first
            watcher = watch_live(live, 12.0, lambda row: None)
            assert live.position > wrap + 16_000
    finally:
        scheduler.close()
    assert (watcher.seen.gaps, watcher.seen.disorder) == (0, 0) and abs(watcher.seen.av_ms) < 1
