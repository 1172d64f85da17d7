"""A live session over plain HTTP: requests bring its audio, and one response carries all that comes of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from everface.core.errors import BadInput, Unavailable
from everface.media.wav_stream import read_wav_header
from everface.serve.service import Service
from everface.serve.stream.messages import Control, Start
from everface.serve.stream.outbox import Message
from everface.serve.stream.push import check_target, push
from everface.serve.stream.refusal import Refused, why
from everface.serve.stream.session import DTYPES, StreamSession

KEPT = 64  # ended sessions that can be asked why they ended
DELETED = Refused(1000, "closed", "")
ENDING = Refused(1012, "ending", "the server has ended: try again later")


class HttpSession:
    """Used from the event loop only."""

    def __init__(self, service: Service, start: Start) -> None:
        self.id, self.created_s, self.start = f"session_{secrets.token_hex(12)}", time.time(), start
        self.receiving = asyncio.Lock()  # one request's audio at a time is in memory
        self.ended: Refused | None = None
        self._service, self._session = service, StreamSession(service, start)
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._read = False
        self._pushing: asyncio.Task[None] | None = None
        self._refused: Refused | None = None  # why the push failed

    async def open(self, image: Path, push_to: str | None = None) -> None:
        """`push_to`: where to send the media, in place of a reader. Raises BadInput, Unavailable."""
        target = check_target(push_to, self._service.settings.push_to) if push_to else None
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(image, opened))
        await opened
        if target is not None:
            self._pushing = asyncio.create_task(self._push(target))

    async def _push(self, target: str) -> None:
        try:
            await push(self.messages(), target)
        except Exception as error:
            self._refused = why(error)
            self.end(self._refused)
            if self.ended is not None:  # before the push
                self.ended = self._refused

    async def _live(self, image: Path, opened: asyncio.Future[None]) -> None:
        try:
            with self._service.admit():
                try:
                    await self._session.open(image)
                except (BadInput, Unavailable) as error:
                    opened.set_exception(error)
                    raise
                opened.set_result(None)
                await self._session.run(self._send)
        except Exception as error:
            self.ended = self._refused or why(error)  # it may have failed while the session was about to end
            if not opened.done():
                opened.set_exception(error)
        finally:
            if self.ended is not None and self.ended.reason:
                self._messages.put_nowait({"type": "error", "code": self.ended.word, "message": self.ended.reason, "fatal": True})
            self._messages.put_nowait(None)

    async def _send(self, message: Message) -> None:
        self._messages.put_nowait(message)
        await self._messages.join()  # until it is read: what waits is bounded by the outbox, as at a WebSocket

    def messages(self) -> AsyncIterator[Message]:
        """All media and events. There is one reader, and the session ends with it. Raises BadInput for another."""
        if self._read:
            raise BadInput("the chunks of this session are being read or pushed, or were: open another session")
        self._read = True
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Message]:
        try:
            while (message := await self._messages.get()) is not None:
                self._messages.task_done()
                yield message
        finally:
            self.end(DELETED)

    @property
    def ending(self) -> bool:
        return self.ended is not None or self._session.ending

    @property
    def remark(self) -> str:
        """`StreamSession.remark`."""
        return self._session.remark

    def add_audio(self, data: bytes, is_wav: bool) -> float:
        """Interleaved samples, or a whole wav file of them. Returns the seconds that wait. Raises BadInput, or Unavailable when it is ending, and takes nothing."""
        self._session.active()
        self._session.add_audio(self._samples(data) if is_wav else data)
        return self._session.waiting_s

    async def control(self, control: Control) -> dict[str, Any] | None:
        self._session.active()
        return await self._session.control(control)

    def end(self, reason: Refused) -> None:
        if self.ended is None:
            self._session.end(reason)

    async def over(self) -> None:
        """Until it has ended."""
        await asyncio.wait([task for task in (self._task, self._pushing) if task])

    def _samples(self, wav: bytes) -> bytes:
        start, header = self.start, read_wav_header(lambda size: wav[:size])
        if header is None:
            raise BadInput("this is no wav file of plain samples: send one, or the samples as application/octet-stream")
        pcm, at = header
        if (pcm.rate_hz, pcm.channels, pcm.samples) != (start.rate_hz, start.channels, DTYPES[start.encoding]):
            form = f"{start.rate_hz} Hz, {start.channels} channel(s) and {start.encoding}"
            raise BadInput(f"the wav file has {pcm.rate_hz} Hz, {pcm.channels} channel(s) and samples {pcm.samples}, but the session was opened for {form}")
        data = wav[at:] if pcm.length is None else wav[at : at + pcm.length]
        return data[: len(data) - len(data) % pcm.width]


class HttpSessions:
    """Those that are open, and the last ones that were."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions: dict[str, HttpSession] = {}

    async def open(self, start: Start, image: Path, push_to: str | None) -> HttpSession:
        """As `HttpSession.open`."""
        session = HttpSession(self._service, start)
        await session.open(image, push_to)
        self._sessions[session.id] = session
        ended = [s.id for s in self._sessions.values() if s.ended is not None]
        for name in ended[:-KEPT]:
            del self._sessions[name]
        return session

    async def close(self) -> None:
        """End those that are open."""
        for session in self._sessions.values():
            session.end(ENDING)
        await asyncio.gather(*(session.over() for session in self._sessions.values()))

    def get(self, name: str) -> HttpSession | None:
        return self._sessions.get(name)

    def all(self) -> list[HttpSession]:
        """The newest first."""
        return list(self._sessions.values())[::-1]
