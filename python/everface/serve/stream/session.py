"""A client's live session, whatever carries its messages: audio and control in, an outbox of media and events out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from everface.core.errors import BadInput, Unavailable
from everface.live.session import LiveSession
from everface.serve.backend import IMAGES
from everface.serve.service import Service
from everface.serve.stream.encoders import JpegEncoder, MediaEncoder, Mp4Encoder
from everface.serve.stream.messages import Change, Close, Control, EndSegment, Interrupt, Start
from everface.serve.stream.outbox import Message, Outbox
from everface.serve.stream.pusher import Pusher
from everface.serve.stream.reader import Reader
from everface.serve.stream.refusal import Refused
from everface.serve.stream.watch import Watch

DTYPES = {"s16le": "<i2", "f32le": "<f4"}
CLOSE_S = 8.0  # for a session's threads to end
LAST_S = 60.0  # for a reader that does read to take what is left at the end


class StreamSession:
    """Used from the event loop only. First `open`, then `run`; the rest while that runs."""

    def __init__(self, service: Service, start: Start) -> None:
        self.start, self._service, self._limits = start, service, service.settings.limits
        self.remark = ""  # `LiveSession.remark`, after what was last opened or changed
        self._ended: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._closing: asyncio.Task[None] | None = None

    async def open(self, image: Path) -> None:
        """Raises EverfaceError."""
        start = self.start
        if not await self._service.loaded():
            raise self._service.refusal
        options = {"idle": start.idle, "paced": start.paced, "playback_hz": start.rate_hz}
        stream = self._service.stream(start.prompt, start.seed)
        self._live: LiveSession = await self._service.blocking(self._service.backend.open_live, image, stream, **options)
        outbox = self._outbox = Outbox(self._limits.outbox_bytes, self._limits.stall_s)
        if start.format == "fmp4":
            encoder: MediaEncoder = Mp4Encoder(start.rate_hz, start.channels, self._live.format.fps)
        else:
            encoder = JpegEncoder(start.channels, DTYPES[start.encoding], self._live.format.fps)
        self._encoder = encoder
        loop = asyncio.get_running_loop()

        def ended(code: int, reason: str) -> None:
            loop.call_soon_threadsafe(self.end, Refused(code, "slow_reader" if code == 1013 else "failed", reason))

        kind = start.model_dump(include={"image", "format", "rate_hz", "channels", "encoding", "idle", "paced"})
        self.remark = self._live.remark
        outbox.post({"type": "started", **kind, "remark": self.remark})
        self._watch = Watch(self._live, outbox, self._service.metrics, self._limits)
        self._pusher = Pusher(self._live, start.rate_hz, start.channels, DTYPES[start.encoding], self._limits.ahead_s, self.complain)
        self._reader = Reader(self._live, encoder, outbox, ended, self._watch.shown)

    async def run(self, send: Callable[[Message], Awaitable[None]], *more: Coroutine[Any, Any, None]) -> None:
        """Send what comes, and do `more`, until something ends. Raises what it was: Refused, EverfaceError or what `send` and `more` raise."""
        self._service.warnings.add(self._warn)
        sending = asyncio.create_task(self._send_out(send))
        tasks = [sending, *map(asyncio.create_task, (self._pusher.run(), self._watch.run(self.end), *more))]
        try:
            done, _ = await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
            await self._finish(done, sending)
        finally:
            self._service.warnings.discard(self._warn)
            for task in tasks:
                task.cancel()
            await self._close()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def ending(self) -> bool:
        """It is over but for what is left to be sent."""
        return self._ended.done()

    def end(self, why: Refused) -> None:
        if not self._ended.done():
            self._ended.set_result(why)

    # in

    def active(self) -> None:
        """The client sent something."""
        self._watch.active()

    def add_audio(self, data: bytes) -> None:
        """Interleaved samples. Raises BadInput, and takes nothing."""
        self._pusher.add(data)

    def push_user_audio(self, data: bytes) -> None:
        """Samples that the person hears, in the form of its own. Raises BadInput."""
        self._pusher.push_user_audio(data)

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait to be pushed."""
        return self._pusher.waiting_s

    async def control(self, control: Control) -> dict[str, Any] | None:
        """Do what a message says. Returns the event that was sent for an interruption. Raises BadInput."""
        if isinstance(control, EndSegment):
            self._pusher.end_segment()
        elif isinstance(control, Interrupt):
            await self._pusher.settled()  # what was sent before counts as pushed
            self._pusher.clear()
            turn = self._live.interrupt()
            position = self._live.position
            self._reader.interrupted(position)
            event = {"type": "interrupted", "turn": turn, "position": position, "media_s": self._encoder.media_s}
            self._outbox.post(event)
            return event
        elif isinstance(control, Change):
            if control.image is None and control.prompt is None and control.transition is None:
                raise BadInput("nothing is to be changed: name an image or a prompt")
            await self.change(control, IMAGES[known(control.image)] if control.image else None)
        elif isinstance(control, Close):
            if self._closing is None:
                self._closing = asyncio.create_task(self._drain(control.drain))
        else:
            raise BadInput("the session has started already: use change, or open another connection")

    async def change(self, change: Change, image: Path | None) -> None:
        what = {"image": image, "prompt": change.prompt, "transition": change.transition}
        try:
            await self._service.blocking(self._live.change, **{name: value for name, value in what.items() if value is not None})
        except Unavailable as error:
            if self._live.finished:
                raise
            raise BadInput(str(error)) from None  # too many changes wait: that ends nothing
        self.remark = self._live.remark
        self._outbox.post({"type": "changed", "remark": self.remark})

    def complain(self, reason: str) -> None:
        """Tell the client of a message that was dropped."""
        self._outbox.post({"type": "error", "code": "bad_input", "message": reason, "fatal": False})

    # the end

    async def _finish(self, done: Collection[asyncio.Future[Any]], sending: asyncio.Task[None]) -> None:
        """Something has ended: raise why, having sent what is left."""
        if self._ended in done:
            end = self._ended.result()
            self._outbox.close()
            if end.code == 1000:
                await self._send_rest(sending)
            raise end
        for task in done:
            task.result()  # raises

    async def _send_rest(self, sending: asyncio.Task[None]) -> None:
        """Until all is sent, as long as the reader takes something within `stall_s`. Raises Refused when it does not."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LAST_S
        while not sending.done():
            left = self._outbox.waiting_bytes
            await asyncio.wait([sending], timeout=self._limits.stall_s)
            if not sending.done() and (self._outbox.waiting_bytes >= left or loop.time() > end_s):
                raise Refused(1013, "slow_reader", "the end was not read in time: read faster")

    async def _close(self) -> None:
        if self._closing:
            self._closing.cancel()
        self._outbox.close()
        self._reader.closed()

        def close() -> None:
            self._live.close()
            self._reader.join(CLOSE_S)

        await asyncio.shield(self._service.blocking(close))

    async def _drain(self, drain: bool) -> None:
        if drain:
            await self._pusher.drained()
        await self._service.blocking(self._live.close, drain)
        self._reader.closed()

    def _warn(self) -> None:
        self._outbox.post({"type": "closing", "seconds": self._limits.drain_s})

    async def _send_out(self, send: Callable[[Message], Awaitable[None]]) -> None:
        while (message := await self._outbox.get()) is not None:
            await send(message)


def known(image: str) -> str:
    """The name of a bundled image. Raises BadInput."""
    if image not in IMAGES:
        raise BadInput(f"there is no image {image[:40]!r}: choose {', '.join(IMAGES)} or upload")
    return image
