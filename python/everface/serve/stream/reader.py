"""A live session's own thread: takes its frames and events, encodes them, and puts them into the outbox."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from everface.core.errors import EverfaceError
from everface.core.log import log
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.events import Recovering
from everface.serve.stream.encoders import JpegEncoder, MediaEncoder
from everface.serve.stream.messages import HEADER
from everface.serve.stream.outbox import Message, Outbox, SlowReader

READ_S = 0.2

Ended = Callable[[int, str], None]  # WebSocket close code, reason


class Reader:
    """`ended` is called once, from the thread, when the session is over. `shown`: called with the pts of each frame that is sent."""

    def __init__(self, live: LiveSession, encoder: MediaEncoder, outbox: Outbox, ended: Ended, shown: Callable[[int], None]) -> None:
        self._live, self._encoder, self._outbox, self._ended, self._shown = live, encoder, outbox, ended, shown
        self._since = 0  # frames before this position were interrupted
        self._described = self._speaking = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everface stream", daemon=True)
        self._thread.start()

    def interrupted(self, since: int) -> None:
        """Nothing from before position `since` is sent from now on; of an MP4, what is encoded already is."""
        self._since = since
        if isinstance(self._encoder, JpegEncoder):
            self._outbox.drop(lambda message: isinstance(message, bytes) and HEADER.unpack_from(message)[-1] < since)

    def closed(self) -> None:
        """The live session is closed: send what is left of it, and end."""
        self._closed.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        code, reason = 1000, ""
        try:
            while True:
                closed = self._closed.is_set()
                event = self._live.read(READ_S)
                if event is None and closed:
                    break
                if event is not None and not self._send(event):
                    break
            for message in self._encoder.close():
                self._outbox.put(message)
        except SlowReader:
            code, reason = 1013, "the messages were not read in time: read them as they come, or ask for smaller ones"
        except EverfaceError as error:
            code, reason = 1011, str(error)
        except Exception:
            log.exception("a live session could not be encoded")
            code, reason = 1011, "this session ended by a bug of everface: open another"
        finally:
            with suppress(Exception):  # it has ended with what it could not encode
                self._encoder.close()
        self._ended(code, reason)

    def _send(self, event: LiveEvent) -> bool:
        if not isinstance(event, VideoFrame | AudioFrame):
            return self._outbox.put(describe(event))
        if event.pts < self._since:
            return True
        if isinstance(event, VideoFrame):
            if not self._described:
                self._described = True
                height, width = event.image_HW3.shape[:2]
                fps, mime = self._live.format.fps, self._encoder.open(height, width)
                self._outbox.put({"type": "media", "width": width, "height": height, "fps": fps, "mime": mime})
            if not event.held:
                self._shown(event.pts)
                self._report_speech(not event.idle)
        messages: list[Message] = [*self._encoder.encode(event)]
        return all([self._outbox.put(message) for message in messages])


    def _report_speech(self, on: bool) -> None:
        """When the frames of a client's audio begin and end, in the time of the media."""
        if on != self._speaking:
            self._speaking = on
            self._outbox.put({"type": "speech", "on": on, "media_s": round(self._encoder.media_s, 3)})


def describe(event: LiveEvent) -> dict[str, Any]:
    """An event as its JSON message."""
    if isinstance(event, LiveSegmentEnd):
        return {
            "type": "segment_end", "segment": event.segment, "pushed_s": event.pushed_s, "shown_s": event.shown_s,
            "interrupted": event.interrupted,
        }  # fmt: skip
    if isinstance(event, Underrun):
        return {"type": "underrun", "frames": event.frames, "time_s": event.time_s}
    if isinstance(event, QualityChange):
        return {"type": "quality", "level": event.level, "what": event.what, "time_s": event.time_s}
    if isinstance(event, Recovering):
        return {"type": "recovering"}  # the reason names processes of the server
    return {"type": "recovered", "seconds": getattr(event, "seconds", 0.0)}
