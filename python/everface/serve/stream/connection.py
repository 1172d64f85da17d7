"""`WS /v1/avatar/stream`: one connection is one live session. docs/serve.md describes its messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from starlette.websockets import WebSocket, WebSocketDisconnect

from everface.core.errors import BadInput, EverfaceError
from everface.serve.backend import IMAGES
from everface.serve.rate import RequestRate
from everface.serve.service import Service
from everface.serve.stream.messages import Change, Control, Start, UserAudioSwitch, read_control
from everface.serve.stream.outbox import Message
from everface.serve.stream.refusal import Refused, why
from everface.serve.stream.session import StreamSession, known
from everface.serve.uploads import check_upload, sentence

PROTOCOL = "everface.v1"
SEND_S = 2.0  # for the last messages of a connection
MESSAGES_S, WAIT_S = 200.0, 0.02  # messages of a client that are taken, a second; it is asked so often whether there are more


class StreamConnection:
    """Used from the event loop only."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service, self._limits = socket, service, service.settings.limits
        self._image_for: Change | None = None  # a change that waits for its image
        self._takes_user_audio = False  # binary messages are what the person hears
        self._rate = RequestRate(MESSAGES_S)

    async def run(self) -> None:
        await self._socket.accept(PROTOCOL if PROTOCOL in self._socket.scope.get("subprotocols", []) else None)
        end = Refused(1000, "closed", "")
        try:
            with self._service.admit():
                start = await self._first_message()
                self._session = StreamSession(self._service, start)
                await self._open(start)
                await self._session.run(self._send, self._receive())
        except EverfaceError as error:
            end = why(error)
        except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError where a socket was closed before
            return
        except Exception as error:
            end = why(error)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(SEND_S):
                if end.reason:
                    await self._send({"type": "error", "code": end.word, "message": end.reason, "fatal": True})
                await self._socket.close(end.code, end.reason.encode()[:120].decode(errors="ignore"))

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

    async def _open(self, start: Start) -> None:
        try:
            async with self._image(start.image) as path:
                await self._session.open(path)
        except BadInput as error:
            raise Refused(1008, "bad_input", str(error)) from None

    @contextlib.asynccontextmanager
    async def _image(self, name: str) -> AsyncIterator[Path]:
        """The file of a bundled image, or of the one that the next message is."""
        if name != "upload":
            yield IMAGES[known(name)]
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
            await asyncio.sleep(0)  # with thousands of messages in its queue, `receive` alone never lets others run
            while self._rate.take("") < 0:
                await asyncio.sleep(WAIT_S)
            self._session.active()
            try:
                if (data := message.get("bytes")) is not None:
                    await self._take(data)
                else:
                    await self._control(read_control(message.get("text") or ""))
            except BadInput as error:
                self._session.complain(str(error))

    async def _take(self, data: bytes) -> None:
        if self._image_for is None:
            (self._session.push_user_audio if self._takes_user_audio else self._session.add_audio)(data)
            return
        change, self._image_for = self._image_for, None
        with _saved(data) as path:
            try:
                check_upload(path, self._limits)
                await self._session.change(change, path)
            except BadInput as error:
                raise BadInput(sentence(error, path)) from None

    async def _control(self, control: Control) -> None:
        if isinstance(control, Change) and control.image == "upload":
            self._image_for = control
        elif isinstance(control, UserAudioSwitch):
            self._takes_user_audio = control.on
        else:
            await self._session.control(control)

    async def _send(self, message: Message) -> None:
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
