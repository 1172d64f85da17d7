"""One client's session inside the engine: its requests go into a live session, and the live session's events go out to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from everface.core.errors import BadInput, EverfaceError
from everface.core.log import log
from everface.engine import protocol
from everface.engine.frame_ring import FrameRing
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.events import Recovered, Recovering
from everface.runtime.transport.socket_stream import SocketStream

WINDOW_MS = 10_000  # of audio that waits here at most, before the session's own buffer
SPARE_MS = 100  # of rounding in a client's count
WAIT_S = 0.02  # longest single wait of the thread
STOP_S = 5.0
MOST_AT_ONCE = 8  # notices in one system call
MOST_CHANGES = 16  # that may wait


def status_of(error: EverfaceError) -> int:
    return protocol.BAD_INPUT if isinstance(error, BadInput) else protocol.UNAVAILABLE


def check_names(request: protocol.OpenRequest | protocol.ChangeRequest) -> None:
    """Raises BadInput for a path or a prompt that is too long."""
    if len(request.image) > protocol.MOST_NAME or len(request.prompt) > protocol.MOST_NAME:
        raise BadInput(f"an image path or a prompt has more than {protocol.MOST_NAME} characters: use a shorter one")


def samples_of(chunk: protocol.AudioPush | protocol.UserAudioPush) -> np.ndarray:
    """[S, C]. Raises BadInput for a form that the protocol does not know."""
    dtype = np.int16 if chunk.format == protocol.INT16 else np.float32
    frame_bytes = chunk.channels * protocol.SAMPLE_BYTES.get(chunk.format, 0)
    if frame_bytes <= 0 or chunk.channels > 2 or chunk.rate_hz <= 0 or len(chunk.data) % frame_bytes:
        raise BadInput("audio came in a form that the protocol does not know: use another version of the library")
    return np.frombuffer(chunk.data, dtype).reshape(-1, chunk.channels)


class HostedSession:
    """Owns the live session and the frames' memory. `handle` is called by the connection's thread; one thread of its own sends events, and
    one reads the images of changes, which takes its time."""

    def __init__(self, stream: SocketStream, live: LiveSession, ring: FrameRing) -> None:
        self._stream, self._live, self._ring = stream, live, ring
        self._order = threading.Lock()  # guards the four below, and puts pushes and interruptions in one order
        self._turn = 0
        self._begin = 0  # frames before this position belong to an earlier turn
        self._pending: deque[tuple[np.ndarray, int] | None] = deque()  # (samples [S, C], rate); None: the segment ends
        self._drain_end_s: float | None = None
        self._draining: threading.Thread | None = None
        self._changes = ThreadPoolExecutor(1, "everface engine change")
        self._changing = threading.Semaphore(MOST_CHANGES)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everface engine session", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def handle(self, request: protocol.Request) -> None:
        """Raises EverfaceError or OSError for what ends the session."""
        match request:
            case protocol.AudioPush():
                self._accept(request)
            case protocol.EndSegmentRequest():
                with self._order:
                    self._pending.append(None)
                self._feed()
            case protocol.InterruptRequest():
                self._interrupt(request.turn)
            case protocol.UserAudioPush():
                self._live.push_user_audio(samples_of(request), request.rate_hz)
            case protocol.ChangeRequest():
                check_names(request)
                if not self._changing.acquire(blocking=False):
                    raise BadInput(f"{MOST_CHANGES} changes wait already: wait for their replies")
                with contextlib.suppress(RuntimeError):  # the session was closed just now
                    self._changes.submit(self._change, request)
            case protocol.SlotRelease():
                self._ring.release(request.slot)
            case protocol.StatsRequest():
                self._send(self._stats(request.number))
            case protocol.CloseRequest() if request.drain_ms > 0:
                self.drain(request.drain_ms / 1e3)
            case protocol.CloseRequest():
                self._over.set()
            case _:
                raise BadInput(f"{type(request).__name__} makes no sense in an open session: use another version of the library")

    def drain(self, timeout_s: float) -> None:
        """Give out what was pushed, for so long at most, then end the session. From any thread."""
        with self._order:
            self._pending.append(None)
            end_s = time.monotonic() + timeout_s
            self._drain_end_s = end_s if self._drain_end_s is None else min(end_s, self._drain_end_s)

    @property
    def over(self) -> bool:
        """It gives out nothing more."""
        return self._over.is_set()

    def close(self) -> None:
        """Free everything. May be called twice, from any thread but the session's own."""
        self._over.set()
        self._stream.cut()
        self._changes.shutdown(wait=False, cancel_futures=True)
        self._live.close()
        if self._thread.ident is not None:  # else the client went before it began
            self._thread.join(STOP_S)
        self._ring.close()  # at once, not when objects that refer to each other are collected

    # in

    def _accept(self, chunk: protocol.AudioPush) -> None:
        if chunk.turn != self._turn or self._drain_end_s is not None:
            return  # an interruption, or the end, overtook it
        samples_SC = samples_of(chunk)
        with self._order:
            waiting_s = sum(len(part[0]) / part[1] for part in self._pending if part)
            if waiting_s + len(samples_SC) / chunk.rate_hz > (WINDOW_MS + SPARE_MS) / 1e3:
                raise BadInput(f"more than {WINDOW_MS} ms of audio came without an acknowledgement: wait for room")
            self._pending.append((samples_SC, chunk.rate_hz))
        self._feed()

    def _feed(self) -> None:
        """Move waiting audio into the live session, as far as it has room."""
        taken = 0
        with self._order:
            while self._pending:
                part = self._pending[0]
                if part is None:
                    self._live.end_segment()
                else:
                    count = self._live.push_audio(part[0], part[1])
                    taken += count
                    if count < len(part[0]):
                        self._pending[0] = (part[0][count:], part[1])
                        break
                self._pending.popleft()
            turn = self._turn
        if taken:
            self._send(protocol.AudioAck(turn, taken))

    def _interrupt(self, turn: int) -> None:
        with self._order:
            if turn <= self._turn:
                raise BadInput(f"turn {turn} cannot follow turn {self._turn}: use another version of the library")
            self._pending.clear()
            self._live.interrupt()
            self._turn, self._begin = turn, self._live.turn_begin

    def _change(self, request: protocol.ChangeRequest) -> None:
        what: dict[str, Any] = {"image": Path(request.image)} if request.image else {}
        what |= {"prompt": request.prompt} if request.has_prompt else {}
        what |= {"transition": request.transition} if request.transition else {}
        status, text = protocol.OK, ""
        try:
            if not what:
                raise BadInput("nothing is to be changed: name an image, a prompt or a transition")
            self._live.change(**what)
        except EverfaceError as error:
            status, text = status_of(error), str(error)
        except Exception:
            log.exception("a change in the engine failed")
            status, text = protocol.UNAVAILABLE, "the engine failed: see its log"
        self._changing.release()
        with contextlib.suppress(OSError):  # the client is gone
            self._send(protocol.ChangeReply(request.number, status, text, self._live.remark))

    # out

    def _run(self) -> None:
        """The session's own thread."""
        notices: list[protocol.Notice] = []
        try:
            while not self._over.is_set() and not self._live.finished:
                self._feed()
                self._check_drain()
                self._collect(notices)
                self._send(*notices)
                notices.clear()
        except EverfaceError as error:
            notices.append(protocol.ErrorNotice(status_of(error), str(error)))
        except OSError:
            pass  # the client is gone, which the connection's thread sees too
        except Exception:
            log.exception("a session of the engine failed")
            notices.append(protocol.ErrorNotice(protocol.UNAVAILABLE, "the engine failed: see its log"))
        with contextlib.suppress(OSError):
            self._send(*notices, protocol.ClosedNotice())
        self._over.set()
        self._live.close()
        self._stream.end_sending()

    def _check_drain(self) -> None:
        if self._drain_end_s is None or self._draining is not None:
            return
        left_s = self._drain_end_s - time.monotonic()
        if left_s <= 0 or not self._pending:
            target = self._close_live
            self._draining = threading.Thread(target=target, args=(left_s,), name="everface engine drain", daemon=True)
            self._draining.start()

    def _close_live(self, left_s: float) -> None:
        try:
            self._live.close(drain=left_s > 0, timeout_s=left_s)
        except EverfaceError:
            self._live.close()

    def _collect(self, notices: list[protocol.Notice]) -> None:
        """Wait for an event, and add its notice and those of events that are there already: a send for each frame would wake the client as often."""
        wait_s = WAIT_S
        while len(notices) < MOST_AT_ONCE and self._ring.wait_free(wait_s) and (event := self._live.read(wait_s)) is not None:
            if notice := self._notice(event):
                notices.append(notice)
            wait_s = 0.0

    def _notice(self, event: LiveEvent) -> protocol.Notice | None:
        turn, begin = self._turn, self._begin
        match event:
            case VideoFrame() | AudioFrame() if event.pts < begin:
                return None  # read before an interruption, and late
            case VideoFrame():
                slot = self._ring.put(event.image_HW3)
                return protocol.FrameNotice(turn, slot, event.pts, event.time_s, event.idle, event.held)
            case AudioFrame():
                samples = event.samples_SC
                kind = protocol.INT16 if samples.dtype == np.int16 else protocol.FLOAT32
                data = np.ascontiguousarray(samples).tobytes()
                return protocol.AudioNotice(turn, event.pts, event.time_s, event.rate_hz, samples.shape[1], kind, data)
            case LiveSegmentEnd():
                return protocol.SegmentNotice(event.segment, event.pushed_s, event.shown_s, event.interrupted)
            case Underrun():
                return protocol.UnderrunNotice(event.frames, event.time_s)
            case QualityChange():
                return protocol.QualityNotice(event.level, event.what, event.time_s)
            case Recovering():
                return protocol.RecoveringNotice(event.reason)
            case Recovered():
                return protocol.RecoveredNotice(event.seconds, event.recomputed)
        return None

    def _stats(self, number: int) -> protocol.StatsReply:
        s = self._live.stats()
        unknown = -1.0
        return protocol.StatsReply(
            number, s.frames, s.idle_frames, s.held_frames, s.underruns, s.dropped_frames, s.queued_s,
            unknown if s.block_ms is None else s.block_ms, unknown if s.first_frame_s is None else s.first_frame_s, self._live.position,
            s.level, s.level_changes, s.repeated_frames, s.refill_frames,
        )  # fmt: skip

    def _send(self, *notices: protocol.Notice) -> None:
        if notices:
            self._stream.send(b"".join(map(protocol.encode, notices)))
