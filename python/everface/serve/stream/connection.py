"""`WS /v1/avatar/stream`: one connection is one live session. docs/serve.md describes its messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.live.session import LiveSession
from everface.serve.backend import IMAGES
from everface.serve.service import Service
from everface.serve.stream.encoders import JpegEncoder, MediaEncoder, Mp4Encoder
from everface.serve.stream.messages import Change, Close, EndSegment, Interrupt, Start, read_control
from everface.serve.stream.outbox import Outbox
from everface.serve.stream.pusher import Pusher
from everface.serve.stream.reader import Reader
from everface.serve.stream.refusal import Refused
from everface.serve.stream.watch import Watch
from everface.serve.uploads import check_upload, sentence

DTYPES = {"s16le": "<i2", "f32le": "<f4"}
PROTOCOL = "everface.v1"
SEND_S = 2.0  # for the last messages of a connection
CLOSE_S = 8.0  # for a session's threads to end


class StreamConnection:
    """Used from the event loop only."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service, self._limits = socket, service, service.settings.limits
        self._ended: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._image_for: Change | None = None  # a change that waits for its image
        self._closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        await self._socket.accept(PROTOCOL if PROTOCOL in self._socket.scope.get("subprotocols", []) else None)
        end = Refused(1000, "closed", "")
        try:
            with self._service.admit():
                await self._session()
        except Refused as refused:
            end = refused
        except EverfaceError as error:
            end = Refused(1013, "unavailable", str(error))
        except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError where a socket was closed before
            return
        except Exception:
            log.exception("a live session ended by a bug")
            end = Refused(1011, "bug", "this session ended by a bug of everface: open another")
        with contextlib.suppress(Exception):
            async with asyncio.timeout(SEND_S):
                if end.reason:
                    await self._send({"type": "error", "code": end.word, "message": end.reason, "fatal": True})
                await self._socket.close(end.code, end.reason.encode()[:120].decode(errors="ignore"))

    # the life of a session

    async def _session(self) -> None:
        start = await self._first_message()
        live = await self._open(start)
        self._live = live
        outbox = self._outbox = Outbox(self._limits.outbox_bytes, self._limits.stall_s)
        if start.format == "fmp4":
            encoder: MediaEncoder = Mp4Encoder(start.rate_hz, start.channels, live.format.fps)
        else:
            encoder = JpegEncoder(start.channels, DTYPES[start.encoding], live.format.fps)
        self._encoder = encoder
        loop = asyncio.get_running_loop()

        def ended(code: int, reason: str) -> None:
            loop.call_soon_threadsafe(self._end, Refused(code, "slow_reader" if code == 1013 else "failed", reason))

        kind = start.model_dump(include={"image", "format", "rate_hz", "channels", "encoding", "idle", "paced"})
        outbox.post({"type": "started", **kind})
        self._watch = Watch(live, outbox, self._service.metrics, self._limits)
        self._pusher = Pusher(live, start.rate_hz, start.channels, DTYPES[start.encoding], self._limits.ahead_s, self._complain)
        self._reader = Reader(live, encoder, outbox, ended, self._watch.shown)
        self._service.warnings.add(self._warn)
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._send_out(), self._pusher.run(), self._watch.run(self._end))]
        try:
            done, _ = await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
            await self._finish(done, tasks[1])
        finally:
            self._service.warnings.discard(self._warn)
            for task in tasks:
                task.cancel()
            await self._close_session()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, done: Collection[asyncio.Future[Any]], sending: asyncio.Task[None]) -> None:
        """Something has ended: raise why, having sent what is left."""
        if self._ended in done:
            end = self._ended.result()
            self._outbox.close()
            if end.code == 1000:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sending, self._limits.stall_s)
            raise end
        for task in done:
            task.result()  # raises

    async def _close_session(self) -> None:
        if self._closing:
            self._closing.cancel()
        self._outbox.close()
        self._reader.closed()

        def close() -> None:
            self._live.close()
            self._reader.join(CLOSE_S)

        await asyncio.shield(self._service.blocking(close))

    def _end(self, end: Refused) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    # in

    async def _first_message(self) -> Start:
        try:
            async with asyncio.timeout(self._limits.start_s):
                message = await self._socket.receive()
        except TimeoutError:
            raise Refused(1008, "start_missing", f"no start message came within {self._limits.start_s:g} s: send it first") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if message.get("text") is None:
            raise Refused(1008, "wrong_order", "audio came before the start message: send that first")
        try:
            start = read_control(message["text"])
        except BadInput as error:
            raise Refused(1008, "bad_message", str(error)) from None
        if not isinstance(start, Start):
            raise Refused(1008, "wrong_order", f"{start.type} came before the start message: send that first")
        return start

    async def _open(self, start: Start) -> LiveSession:
        stream = self._service.stream(start.prompt, start.seed)
        if not await self._service.loaded():
            raise Unavailable("the model is not loaded: try again later")
        options = {"idle": start.idle, "paced": start.paced, "playback_hz": start.rate_hz}
        try:
            async with self._image(start.image) as path:
                return await self._service.blocking(self._service.backend.open_live, path, stream, **options)
        except BadInput as error:
            raise Refused(1008, "bad_input", str(error)) from None

    @contextlib.asynccontextmanager
    async def _image(self, name: str) -> AsyncIterator[Path]:
        """The file of a bundled image, or of the one that the next message is."""
        if name != "upload":
            if name not in IMAGES:
                raise BadInput(f"there is no image {name[:40]!r}: choose {', '.join(IMAGES)} or upload")
            yield IMAGES[name]
            return
        try:
            async with asyncio.timeout(self._limits.start_s):
                data = await self._socket.receive_bytes()
        except (TimeoutError, KeyError):
            raise Refused(1008, "wrong_order", "no image came: send its file as one binary message after the start message") from None
        with _saved(data) as path:
            try:
                check_upload(path, self._limits)
                yield path
            except BadInput as error:
                raise BadInput(sentence(error, path)) from None

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            self._watch.active()
            try:
                if (data := message.get("bytes")) is not None:
                    await self._take(data)
                else:
                    await self._control(read_control(message.get("text") or ""))
            except BadInput as error:
                self._complain(str(error))

    async def _take(self, data: bytes) -> None:
        if self._image_for is None:
            self._pusher.add(data)
            return
        change, self._image_for = self._image_for, None
        with _saved(data) as path:
            try:
                check_upload(path, self._limits)
                await self._change(change, path)
            except BadInput as error:
                raise BadInput(sentence(error, path)) from None

    async def _control(self, control: Any) -> None:
        if isinstance(control, EndSegment):
            self._pusher.end_segment()
        elif isinstance(control, Interrupt):
            self._pusher.clear()
            turn = self._live.interrupt()
            position = self._live.position
            self._reader.interrupted(position)
            self._outbox.post({"type": "interrupted", "turn": turn, "position": position, "media_s": self._encoder.media_s})
        elif isinstance(control, Change):
            if control.image is None and control.prompt is None:
                raise BadInput("nothing is to be changed: name an image or a prompt")
            if control.image == "upload":
                self._image_for = control
            elif control.image is not None and control.image not in IMAGES:
                raise BadInput(f"there is no image {control.image[:40]!r}: choose {', '.join(IMAGES)} or upload")
            else:
                await self._change(control, IMAGES[control.image] if control.image else None)
        elif isinstance(control, Close):
            if self._closing is None:
                self._closing = asyncio.create_task(self._drain(control.drain))
        else:
            raise BadInput("the session has started already: use change, or open another connection")

    async def _change(self, change: Change, image: Path | None) -> None:
        what = {"image": image, "prompt": change.prompt}
        await self._service.blocking(self._live.change, **{name: value for name, value in what.items() if value is not None})
        self._outbox.post({"type": "changed"})

    async def _drain(self, drain: bool) -> None:
        if drain:
            await self._pusher.drained()
        await self._service.blocking(self._live.close, drain)
        self._reader.closed()

    # out

    def _warn(self) -> None:
        self._outbox.post({"type": "closing", "seconds": self._limits.drain_s})

    def _complain(self, reason: str) -> None:
        self._outbox.post({"type": "error", "code": "bad_input", "message": reason, "fatal": False})

    async def _send_out(self) -> None:
        while (message := await self._outbox.get()) is not None:
            await self._send(message)

    async def _send(self, message: bytes | dict[str, Any]) -> None:
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            await self._socket.send_text(json.dumps(message))


@contextlib.contextmanager
def _saved(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="everface-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        yield path
