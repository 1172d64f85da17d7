"""`everface soak`: a live session in this process, or a server with a client, for hours of media, at the pace of the clock or as fast as it goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from everface.avatar.avatar import Avatar
from everface.avatar.demo import IMAGE
from everface.core.config import SAMPLE_RATE, Deployment, StreamConfig
from everface.core.errors import Unavailable
from everface.live.events import VideoFrame
from everface.live.session import LiveSession
from everface.soak.rows import Row, SoakReport, look, write_rows
from everface.soak.talker import Talker, read_speech
from everface.soak.watchers import EventWatcher, FragmentWatcher

ROWS = 60  # of a run, but at most one in LEAST_S of media
LEAST_S = 1.0
STUCK_S = 120.0  # without a frame, the session counts as lost
START_S = 300.0  # for the server to load its model


@dataclass(frozen=True)
class SoakJob:
    """`fast`: without the pace of the clock. `server`: through a server process; its arguments are `server_flags`."""

    hours: float
    fast: bool = False
    server: bool = False
    out: Path | None = None
    weights: Path | None = None
    lora: Path | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    deployment: Deployment = field(default_factory=Deployment)
    server_flags: tuple[str, ...] = ()


Show = Callable[[Row], None]


def soak(job: SoakJob, show: Show) -> SoakReport:
    """Run it. Rows go to `show` as they are made, and to `job.out` at the end. Raises EverfaceError."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    try:
        if job.server:
            _soak_server(job, add)
        else:
            with (
                Avatar(job.weights, job.lora, job.deployment) as avatar,
                avatar.open_live(IMAGE, job.stream, paced=not job.fast) as live,
            ):
                watch_live(live, 3600 * job.hours, add)
    finally:
        if job.out is not None:
            write_rows(job.out, rows)
    return SoakReport(rows)


class _Clock:
    """When the next row is due, and when a session counts as lost."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.step_s = seconds, max(LEAST_S, seconds / ROWS)
        self.began_s = self.moved_s = time.monotonic()
        self.next_s = self.last_s = self.row_s = 0.0

    def due(self, media_s: float) -> bool:
        """Also raises Unavailable when nothing comes any more."""
        now_s = time.monotonic()
        if media_s > self.last_s:
            self.last_s, self.moved_s = media_s, now_s
        elif now_s - self.moved_s > STUCK_S:
            raise Unavailable(f"no frame came for {STUCK_S:.0f} s after {media_s:.1f} s of media: see the log")
        if media_s < self.next_s:
            return False
        self.next_s += self.step_s
        self.row_s = media_s
        return True

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began_s


class _Session:
    """A live session for the talker."""

    def __init__(self, live: LiveSession, watcher: EventWatcher) -> None:
        self.live, self.watcher = live, watcher

    def push(self, samples_S: np.ndarray) -> None:
        if self.live.push_audio(samples_S, SAMPLE_RATE, timeout_s=STUCK_S) != len(samples_S):
            raise Unavailable(f"the session took no audio for {STUCK_S:.0f} s: see the log")

    def end_segment(self) -> None:
        self.live.end_segment()

    def interrupt(self) -> None:
        self.live.interrupt()
        self.watcher.jump()


def watch_live(live: LiveSession, seconds: float, add: Show, process: psutil.Process | None = None) -> EventWatcher:
    """Drive a session for so many seconds of media."""
    watcher, clock, process = EventWatcher(live.format.fps), _Clock(seconds), process or psutil.Process()
    talker = Talker(_Session(live, watcher), read_speech(), live.format.fps)
    while watcher.seen.media_s < seconds:
        event = live.read(1.0)
        if event is not None:
            watcher.add(event)
        if clock.due(watcher.seen.media_s):
            add(look(process, watcher.seen, clock.wall_s))
        if isinstance(event, VideoFrame) and not event.held:
            talker.frame()
    if watcher.seen.media_s > clock.row_s:
        add(look(process, watcher.seen, clock.wall_s))
    return watcher


class _Socket:
    """A connection for the talker."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    def push(self, samples_S: np.ndarray) -> None:
        self.socket.send(samples_S.tobytes())

    def end_segment(self) -> None:
        self.socket.send('{"type": "end_segment"}')

    def interrupt(self) -> None:
        self.socket.send('{"type": "interrupt"}')


def _soak_server(job: SoakJob, add: Show) -> None:
    try:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect
    except ModuleNotFoundError as error:
        raise Unavailable(f"--server needs the package {error.name}: run pip install 'everface[serve]'") from None
    seconds = 3600 * job.hours
    with (
        _server(job, seconds) as (process, port),
        connect(f"ws://127.0.0.1:{port}/v1/avatar/stream", max_size=None, compression=None, open_timeout=START_S) as socket,
    ):
        try:
            socket.send(json.dumps({"type": "start", "format": "fmp4", "paced": not job.fast}))
            watch_socket(socket, seconds, process, add)
        except ConnectionClosed as error:
            raise Unavailable(f"the server ended the session, it says why above ({error})") from None


def watch_socket(socket: Any, seconds: float, process: psutil.Process, add: Show) -> FragmentWatcher:
    """Drive a started connection for so many seconds of media; `process` is the server's."""
    watcher, clock = FragmentWatcher(), _Clock(seconds)
    talker, spoken = None, 0
    while watcher.seen.media_s < seconds:
        try:
            message = socket.recv(1.0)
            watcher.add(message if isinstance(message, bytes) else json.loads(message))
        except TimeoutError:
            pass
        if clock.due(watcher.seen.media_s):
            add(look(process, watcher.seen, clock.wall_s))
        if watcher.seen.frames:  # its rate is known
            talker = talker or Talker(_Socket(socket), read_speech(), watcher.seen.fps)
            for _ in range(watcher.seen.frames - spoken):
                talker.frame()
        spoken = watcher.seen.frames
    if watcher.seen.media_s > clock.row_s:
        add(look(process, watcher.seen, clock.wall_s))
    return watcher


@contextmanager
def _server(job: SoakJob, seconds: float) -> Iterator[tuple[psutil.Process, int]]:
    """A server of its own on a free port."""
    lifetime = str(int(10 * seconds + START_S))
    command = [sys.executable, "-m", "everface", "serve", "--port", "0", "--lifetime-s", lifetime, "--idle-s", lifetime, *job.server_flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Unavailable("the server did not start: it says why above")
        yield psutil.Process(process.pid), int(line.rpartition("/")[0].rpartition(":")[2])
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
