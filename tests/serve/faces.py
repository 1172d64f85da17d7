"""The WebSocket and the HTTP routes as faces of the session contract: clients with the methods of a LiveSession."""

from __future__ import annotations

import io
import json
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tests.serve.hosting import Host, hosted
from websockets.exceptions import ConnectionClosed

from everface.core.errors import Unavailable
from everface.live.audio_input import as_array
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, Underrun, VideoFrame
from everface.serve.stream.messages import HEADER, HELD, IDLE, JPEG

MODEL_HZ = 16_000


class RemoteSession(ABC):
    """Starts with the first audio, in its format, or with the first read."""

    def __init__(self, host: Host, idle: bool = True, paced: bool = True, **_: Any) -> None:
        self._host = host
        self._options = {"format": "jpeg", "idle": idle, "paced": paced}
        self._started = self._closed = False
        self._opening = threading.Lock()  # a test closes from another thread, which may be there before the session is open
        self._form = ("s16le", 1, MODEL_HZ)
        self._events: queue.Queue[LiveEvent | None] = queue.Queue()
        self._stats: queue.Queue[dict[str, Any]] = queue.Queue(1)
        self._interrupted: queue.Queue[dict[str, Any]] = queue.Queue()
        self.position = 0

    @abstractmethod
    def open(self, options: dict[str, Any]) -> None: ...

    @abstractmethod
    def send(self, message: bytes | str) -> None:
        """Audio, or a control message's type."""

    @abstractmethod
    def messages(self) -> Iterator[bytes | dict[str, Any]]: ...

    @abstractmethod
    def hang_up(self) -> None: ...

    def push_audio(self, samples: Any, rate_hz: int = MODEL_HZ, *, channels: int = 1, timeout_s: float = 0.0) -> int:
        if self._closed:
            raise Unavailable("the session is closed")
        samples_SC = as_array(samples, channels)
        self._start("f32le" if samples_SC.dtype == np.float32 else "s16le", samples_SC.shape[1], rate_hz)
        self.send(np.ascontiguousarray(samples_SC).tobytes())
        return len(samples_SC)

    def end_segment(self) -> None:
        self.send("end_segment")

    def interrupt(self) -> int:
        self.send("interrupt")
        event = self._interrupted.get(timeout=20)
        self.position = event["position"]
        kept = [e for e in iter(lambda: self._events.get() if self._events.qsize() else None, None) if isinstance(e, LiveSegmentEnd)]
        for event in kept:
            self._events.put(event)
        return 0

    def read(self, timeout_s: float) -> LiveEvent | None:
        self._start()
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def stats(self) -> Any:
        while self._stats.qsize():
            self._stats.get()
        return SimpleNamespace(**self._stats.get(timeout=10))

    def close(self) -> None:
        self._closed = True
        with self._opening:
            self.hang_up()
        self._events.put(None)

    async def __aiter__(self) -> Any:
        while not self._closed:
            if (event := self.read(0.05)) is not None:
                yield event

    def _start(self, encoding: str = "s16le", channels: int = 1, rate_hz: int = MODEL_HZ) -> None:
        with self._opening:
            if self._started or self._closed:
                return
            self._started, self._form = True, (encoding, channels, rate_hz)
            form = {"encoding": encoding, "channels": channels, "rate_hz": rate_hz}
            self.open(self._options | form)
            threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        for message in self.messages():
            if isinstance(message, bytes):
                self._events.put(self._media(message))
            else:
                self._event(message)

    def _media(self, message: bytes) -> LiveEvent:
        kind, flags, channels, rate_hz, pts = HEADER.unpack_from(message)
        body = message[HEADER.size :]
        if kind == JPEG:
            image_HW3 = np.asarray(Image.open(io.BytesIO(body)))
            return VideoFrame(image_HW3, pts, pts / MODEL_HZ, bool(flags & IDLE), bool(flags & HELD))
        dtype = "<i2" if self._form[0] == "s16le" else "<f4"
        return AudioFrame(np.frombuffer(body, dtype).reshape(-1, channels), rate_hz, pts, pts / MODEL_HZ)

    def _event(self, event: dict[str, Any]) -> None:
        kind = event.pop("type")
        if kind == "segment_end":
            self._events.put(LiveSegmentEnd(**event))
        elif kind == "underrun":
            self._events.put(Underrun(**event))
        elif kind == "interrupted":
            self._interrupted.put(event)
        elif kind == "stats":
            if self._stats.full():
                self._stats.get()
            self._stats.put(event)


class WebSocketSession(RemoteSession):
    def open(self, options: dict[str, Any]) -> None:
        self._socket = self._host.socket()
        self._socket.send(json.dumps({"type": "start"} | options))

    def send(self, message: bytes | str) -> None:
        self._socket.send(message if isinstance(message, bytes) else json.dumps({"type": message}))

    def messages(self) -> Iterator[bytes | dict[str, Any]]:
        with suppress(ConnectionClosed):
            for message in self._socket:
                yield message if isinstance(message, bytes) else json.loads(message)

    def hang_up(self) -> None:
        if self._started:
            self._socket.close()


class HttpSession(RemoteSession):
    def open(self, options: dict[str, Any]) -> None:
        files = {"format": (None, "jpeg")}  # a multipart body
        response = self._host.http.post("/v1/videos/sessions", data=options, files=files)
        assert response.status_code == 200, response.text
        self.path = f"/v1/videos/sessions/{response.json()['id']}"

    def send(self, message: bytes | str) -> None:
        if isinstance(message, bytes):
            self._post("chunks", message)
        elif message == "end_segment":
            self._post("chunks?end_segment=true", b"")
        else:
            self._post(message, b"")

    def _post(self, what: str, data: bytes) -> None:
        headers = {"content-type": "application/octet-stream"}
        response = self._host.http.post(f"{self.path}/{what}", content=data, headers=headers)
        assert response.status_code == 200, response.text

    def messages(self) -> Iterator[bytes | dict[str, Any]]:
        with suppress(httpx.HTTPError), self._host.http.stream("GET", f"{self.path}/chunks?events=true") as response:
            yield from parts(response.iter_raw())

    def hang_up(self) -> None:
        if self._started:
            self._host.http.delete(self.path)


def parts(pieces: Iterator[bytes]) -> Iterator[bytes | dict[str, Any]]:
    """The parts of a multipart response, as they come."""
    data = b""
    for piece in pieces:
        data += piece
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = int(data[:end].rpartition(b"Content-Length: ")[2])
            if len(data) < end + 6 + length:
                break
            body = data[end + 4 : end + 4 + length]
            yield json.loads(body) if b"json" in data[:end] else body
            data = data[end + 6 + length :]


@contextmanager
def remote_live(kind: type[RemoteSession], **options: Any) -> Iterator[RemoteSession]:
    with hosted() as host:
        session = kind(host, **options)
        try:
            yield session
        finally:
            session.close()
