"""A live session in an engine, with the methods of `LiveSession`.

    with EngineClient(socket="/run/user/1000/everface.sock") as engine, engine.open_live("face.png") as session:
        session.push_audio(samples, 24_000)
        for event in session: ...
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from everface.client.library import load_library
from everface.core.errors import BadInput, Unavailable
from everface.live.audio_input import Samples, as_array
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.live.stats import LiveStats
from everface.runtime.events import Recovered, Recovering

REQUEST_S = 10.0  # for an answer of the engine's
WAIT_S = 0.2
TRANSITIONS = (None, "cut", "dissolve")  # in the order of ef_transition
MOST_REMARK = 1024  # bytes


class EngineClient:
    """Connects to the engine at `socket`, starts one with `command`, or takes the fake one inside the library. Thread-safe but for close."""

    def __init__(
        self, socket: Path | str | None = None, *, command: str | None = None, fake: bool = False, prefix: Path | None = None, timeout_s: float = 120.0
    ) -> None:
        self._ffi, self._lib = load_library(prefix)
        config = self._ffi.new("ef_engine_config *")
        self._lib.ef_engine_config_defaults(config)
        kept = [self._ffi.new("char[]", os.fsencode(value)) for value in (socket, command) if value is not None]
        if socket is not None:
            config.socket_path = kept[0]
        if command is not None:
            config.command = kept[-1]
        config.fake, config.timeout_ms = fake, int(1e3 * timeout_s)
        out = self._ffi.new("ef_engine **")
        self._check(self._lib.ef_engine_open(config, out))
        self._engine = out[0]

    def open_live(
        self, image: Path | str, *, seed: int = 420, idle: bool = True, paced: bool = True, playback_hz: int = 24_000, outbox_s: float = 2.0,
        size: tuple[int, int] | None = None, prompt: str = "", slots: int = 0, timeout_s: float = 120.0,
    ) -> EngineSession:  # fmt: skip
        """As `Avatar.open_live`. size: (height, width). Raises BadInput, Unavailable."""
        config = self._ffi.new("ef_session_config *")
        self._lib.ef_session_config_defaults(config)
        kept = self._ffi.new("char[]", os.fsencode(image)), self._ffi.new("char[]", os.fsencode(prompt))
        config.image, config.prompt = kept
        config.seed, config.idle, config.paced, config.playback_hz, config.outbox_ms = seed, idle, paced, playback_hz, int(1e3 * outbox_s)
        config.height, config.width = size or (0, 0)
        config.slots, config.timeout_ms = slots, int(1e3 * timeout_s)
        out = self._ffi.new("ef_session **")
        self._check(self._lib.ef_session_open(self._engine, config, out))
        return EngineSession(self._ffi, self._lib, out[0])

    def close(self) -> None:
        """Sessions that are open stay open. May be called twice."""
        engine, self._engine = self._engine, self._ffi.NULL
        self._lib.ef_engine_free(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status:
            _fail(self._ffi, self._lib, status)


class EngineSession:
    """Made by `EngineClient.open_live`. Every method may be called from any thread. The handle is freed with the object."""

    def __init__(self, ffi: Any, lib: Any, handle: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._handle = ffi.gc(handle, lib.ef_session_free)
        self._closed = False

    def push_audio(self, samples: Samples, rate_hz: int = 16_000, *, channels: int = 1, timeout_s: float = 0.0) -> int:
        """As `LiveSession.push_audio`; within a segment the channels and the dtype stay the same too."""
        accepted, audio = self._ffi.new("size_t *"), self._audio(samples, rate_hz, channels)
        status = self._lib.ef_session_push_audio(self._handle, *audio, int(1e3 * timeout_s), accepted)
        if status not in (self._lib.EF_OK, self._lib.EF_TIMEOUT, self._lib.EF_CANCELLED):
            _fail(self._ffi, self._lib, status)
        return accepted[0]

    def push_user_audio(self, samples: Samples, rate_hz: int = 16_000, *, channels: int = 1) -> None:
        """As `LiveSession.push_user_audio`."""
        self._check(self._lib.ef_session_push_user_audio(self._handle, *self._audio(samples, rate_hz, channels)))

    def change(
        self, *, image: Path | str | None = None, prompt: str | None = None, transition: str | None = None, timeout_s: float = REQUEST_S
    ) -> None:  # fmt: skip
        """As `LiveSession.change`, once the engine has read the image: a path there. Raises BadInput, Unavailable."""
        if transition not in TRANSITIONS:
            raise BadInput(f"a shot cannot begin with {transition!r}: choose one of {', '.join(filter(None, TRANSITIONS))}")
        change = self._ffi.new("ef_change *")
        self._lib.ef_change_defaults(change)
        kept = [None if value is None else self._ffi.new("char[]", os.fsencode(value)) for value in (image, prompt)]
        change.image, change.prompt = (self._ffi.NULL if value is None else value for value in kept)
        change.transition = TRANSITIONS.index(transition)
        self._check(self._lib.ef_session_change(self._handle, change, int(1e3 * timeout_s)))

    @property
    def remark(self) -> str:
        """As `LiveSession.remark`."""
        text = self._ffi.new("char[]", MOST_REMARK)
        self._lib.ef_session_remark(self._handle, text, MOST_REMARK)
        return self._ffi.string(text).decode("utf-8", "replace")

    def end_segment(self) -> None:
        """As `LiveSession.end_segment`."""
        self._check(self._lib.ef_session_end_segment(self._handle))

    def interrupt(self) -> int:
        """Drop all that was not read yet. Returns the new turn."""
        turn = self._ffi.new("uint64_t *")
        self._check(self._lib.ef_session_interrupt(self._handle, turn))
        return turn[0]

    def read(self, timeout_s: float) -> LiveEvent | None:
        """As `LiveSession.read`."""
        out = self._ffi.new("const ef_event **")
        status = self._lib.ef_session_poll(self._handle, int(1e3 * timeout_s), out)
        if status == self._lib.EF_CLOSED:
            self._closed = True
        if status in (self._lib.EF_CLOSED, self._lib.EF_TIMEOUT, self._lib.EF_CANCELLED):
            return None
        self._check(status)
        try:
            return self._event(out[0])
        finally:
            self._lib.ef_event_release(out[0])

    def __iter__(self) -> Iterator[LiveEvent]:
        while not self._closed:
            event = self.read(WAIT_S)
            if event is not None:
                yield event

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.fileno(), ready.set)
        try:
            while not self._closed:
                event = self.read(0.0)
                if event is not None:
                    yield event
                    continue
                ready.clear()
                await ready.wait()
        finally:
            loop.remove_reader(self.fileno())

    def fileno(self) -> int:
        """A descriptor that is readable when there may be something to read."""
        return self._lib.ef_session_fd(self._handle)

    def stats(self) -> LiveStats:
        """As `LiveSession.stats`. Raises Unavailable when the engine does not answer."""
        s = self._stats()
        return LiveStats(
            s.frames, s.idle_frames, s.held_frames, s.underruns, s.dropped_frames, s.queued_s,
            None if s.block_ms < 0 else s.block_ms, None if s.first_frame_s < 0 else s.first_frame_s,
            s.level, s.level_changes, s.repeated_frames, s.refill_frames,
        )  # fmt: skip

    @property
    def position(self) -> int:
        """As `LiveSession.position`."""
        return self._stats().position

    @property
    def borrowed(self) -> int:
        """Frames that were polled or wait to be, and were not given back."""
        return self._stats().borrowed

    def cancel(self) -> None:
        """End every wait of this session, or the next one."""
        self._lib.ef_session_cancel(self._handle)

    def close(self, drain_s: float = 0.0) -> None:
        """End the session; with `drain_s`, what was pushed can be read first, for so long at most. May be called twice."""
        self._lib.ef_session_close(self._handle, int(1e3 * drain_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _audio(self, samples: Samples, rate_hz: int, channels: int) -> tuple[Any, int, int, int, int]:
        """(data, samples per channel, format, rate, channels) as the library takes them; `data` keeps the memory. Raises BadInput."""
        array = np.ascontiguousarray(as_array(samples, channels))
        if not 0 <= rate_hz < 1 << 32:
            raise BadInput(f"audio at {rate_hz} Hz cannot be used: push 8000 to 192000 Hz")
        kind = self._lib.EF_INT16 if array.dtype == np.int16 else self._lib.EF_FLOAT32
        data = self._ffi.from_buffer(array.reshape(-1).view(np.uint8)) if array.size else self._ffi.NULL
        return data, len(array), kind, rate_hz, array.shape[1]

    def _stats(self) -> Any:
        stats = self._ffi.new("ef_stats *")
        self._lib.ef_stats_defaults(stats)
        self._check(self._lib.ef_session_stats(self._handle, int(1e3 * REQUEST_S), stats))
        return stats

    def _event(self, e: Any) -> LiveEvent | None:
        lib = self._lib
        if e.type == lib.EF_EVENT_VIDEO:
            rows = np.frombuffer(self._ffi.buffer(e.plane[0], e.stride[0] * e.height), np.uint8)
            return VideoFrame(rows.reshape(e.height, e.width, 3).copy(), e.pts, e.time_s, bool(e.idle), bool(e.held))
        if e.type == lib.EF_EVENT_AUDIO:
            dtype = np.dtype(np.int16 if e.sample_format == lib.EF_INT16 else np.float32)
            data = self._ffi.buffer(e.samples, e.sample_count * e.channels * dtype.itemsize)
            return AudioFrame(np.frombuffer(data, dtype).reshape(-1, e.channels).copy(), e.rate_hz, e.pts, e.time_s)
        if e.type == lib.EF_EVENT_SEGMENT_END:
            return LiveSegmentEnd(e.segment, e.pushed_s, e.shown_s, bool(e.interrupted))
        if e.type == lib.EF_EVENT_UNDERRUN:
            return Underrun(e.frames, e.time_s)
        if e.type == lib.EF_EVENT_QUALITY:
            return QualityChange(e.level, self._ffi.string(e.text).decode("utf-8", "replace"), e.time_s)
        if e.type == lib.EF_EVENT_RECOVERING:
            return Recovering(self._ffi.string(e.text).decode("utf-8", "replace"))
        if e.type == lib.EF_EVENT_RECOVERED:
            return Recovered(e.seconds, e.recomputed)
        if e.type == lib.EF_EVENT_ERROR:
            raise _error(lib, e.status, self._ffi.string(e.text).decode("utf-8", "replace"))
        if e.type == lib.EF_EVENT_CLOSED:
            self._closed = True
        return None

    def _check(self, status: int) -> None:
        if status:
            _fail(self._ffi, self._lib, status)


def _error(lib: Any, status: int, text: str) -> BadInput | Unavailable:
    return BadInput(text) if status == lib.EF_BAD_INPUT else Unavailable(text)


def _fail(ffi: Any, lib: Any, status: int) -> NoReturn:
    raise _error(lib, status, ffi.string(lib.ef_last_error()).decode("utf-8", "replace"))
