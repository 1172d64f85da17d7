"""`/v1/videos/sessions`: the live twin of `/v1/videos`, for who has HTTP but no WebSocket."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from everface.core.errors import BadInput, Unavailable
from everface.serve.backend import IMAGES
from everface.serve.errors import ErrorReport, HttpError
from everface.serve.service import Service
from everface.serve.stream.http_session import DELETED, HttpSession, HttpSessions
from everface.serve.stream.messages import HEADER, JPEG, Close, EndSegment, Interrupt, Start
from everface.serve.stream.outbox import Message
from everface.serve.uploads import check_upload, sentence

NAME = Annotated[str, Field(pattern="^session_[0-9a-f]{24}$", description="as POST /v1/videos/sessions gives it")]
BOUNDARY = "everface"
AUDIO = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}, "audio/wav": {"schema": {"type": "string", "format": "binary"}}}


class SessionStatus(BaseModel):
    """A live session. Times are seconds since 1970."""

    id: str
    object: Literal["video.session"] = "video.session"
    status: Literal["open", "ended"]
    created_at: int
    image: str
    format: Literal["fmp4", "jpeg"]
    rate_hz: int
    channels: int
    encoding: Literal["s16le", "f32le"]
    error: str | None = None
    remark: str = Field("", description="about the image, such as that it is unlike those that the weights know")


class SessionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SessionStatus]


class ChunkTaken(BaseModel):
    """`waiting_s`: seconds of audio that wait to be spoken, besides those that the model has."""

    object: Literal["video.session.chunk"] = "video.session.chunk"
    waiting_s: float


class SessionInterrupted(BaseModel):
    """What is sent now will be at `position`, in samples of 16 kHz; a player of the MP4 may be muted until `media_s`."""

    turn: int
    position: int
    media_s: float


class SessionDeleted(BaseModel):
    id: str
    object: Literal["video.session.deleted"] = "video.session.deleted"
    deleted: Literal[True] = True


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorReport} for code in (400, 401, 403, 422, 429, *statuses)}


async def find(session_id: NAME, request: Request) -> HttpSession:
    """The session that a path names."""
    if (session := request.app.state.sessions.get(session_id)) is None:
        raise HttpError(404, "no_session", "there is no session of this id: it ended long ago")
    return session


async def find_open(session: Annotated[HttpSession, Depends(find)]) -> HttpSession:
    if session.ended is not None:
        raise HttpError(409, "ended", f"this session has ended{': ' + session.ended.reason if session.ended.reason else ''}: open another")
    return session


async def find_running(session: Annotated[HttpSession, Depends(find_open)]) -> HttpSession:
    """One that still takes audio."""
    if session.ending:
        raise HttpError(409, "ended", "this session is ending: open another")
    return session


Found = Annotated[HttpSession, Depends(find)]
Open = Annotated[HttpSession, Depends(find_open)]
Running = Annotated[HttpSession, Depends(find_running)]


def session_routes(service: Service, sessions: HttpSessions) -> APIRouter:
    router = APIRouter(prefix="/v1/videos/sessions", tags=["live"])
    limits = service.settings.limits

    @router.post("", responses=_refusals(413, 415, 503))
    async def create(
        image: Annotated[UploadFile | None, File(description="a portrait: JPEG, PNG, WebP and others; without one, the bundled ada")] = None,
        format: Annotated[Literal["fmp4", "jpeg"], Form()] = "fmp4",
        rate_hz: Annotated[int, Form(ge=8_000, le=192_000)] = 16_000,
        channels: Annotated[int, Form(ge=1, le=2)] = 1,
        encoding: Annotated[Literal["s16le", "f32le"], Form()] = "s16le",
        prompt: Annotated[str, Form(max_length=2000)] = "",
        seed: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
        idle: Annotated[bool, Form(description="the face moves when there is no audio")] = True,
        paced: Annotated[bool, Form(description="25 frames a second; else as fast as they are made")] = True,
        push: Annotated[str | None, Form(max_length=500, description="an rtmp:// address or an HLS folder, where the server may push")] = None,
    ) -> SessionStatus:
        """Open a live session. Its chunks must be read from now on, or are pushed."""
        if not service.ready:
            raise HttpError(503, "not_ready", str(service.refusal))
        if push is not None and format != "fmp4":
            raise HttpError(400, "bad_input", "only fmp4 can be pushed: leave the format out")
        start = Start(
            type="start", image="upload" if image else "ada", format=format, rate_hz=rate_hz, channels=channels, encoding=encoding,
            prompt=prompt, seed=seed, idle=idle, paced=paced,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="everface-") as folder:
            path = Path(folder) / "image"
            try:
                if image is not None:
                    await service.blocking(_save, image, path)
                    await service.blocking(check_upload, path, limits)
                return _status(await sessions.open(start, IMAGES["ada"] if image is None else path, push))
            except BadInput as error:
                raise HttpError(400, "bad_input", sentence(error, path)) from None
            except Unavailable as error:
                raise HttpError(429, "unavailable", str(error), {"Retry-After": "10"}) from None

    @router.get("", responses=_refusals())
    async def list_all() -> SessionList:
        """Open sessions of these routes and the last ones that ended, the newest first."""
        return SessionList(data=[_status(session) for session in sessions.all()])

    @router.get("/{session_id}", responses=_refusals(404))
    async def get(session: Found) -> SessionStatus:
        """Whether it is open, and why not."""
        return _status(session)

    media = {200: {"content": {"video/mp4": {}, "multipart/mixed": {}, "multipart/x-mixed-replace": {}}}}

    @router.get("/{session_id}/chunks", response_class=StreamingResponse, responses={**media, **_refusals(404, 409)})
    async def chunks(session: Open, events: Annotated[bool, Query(description="events too, as parts of a multipart response")] = False) -> StreamingResponse:
        """The video as it is made, in one response as long as the session: it ends with it, and the session ends when its reader goes."""
        try:
            messages = session.messages()
        except BadInput as error:
            raise HttpError(409, "is_read", str(error)) from None
        if events:
            return StreamingResponse(_with_events(messages, session.start.format), media_type=f"multipart/mixed; boundary={BOUNDARY}")
        if session.start.format == "jpeg":
            return StreamingResponse(_images(messages), media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        return StreamingResponse(_media(messages), media_type="video/mp4")

    @router.post("/{session_id}/chunks", responses=_refusals(404, 409, 413, 415), openapi_extra={"requestBody": {"required": True, "content": AUDIO}})
    async def push(session: Running, request: Request, end_segment: Annotated[bool, Query(description="the speech is complete with it")] = False) -> ChunkTaken:
        """Audio to speak: a wav file, or interleaved samples in the encoding of the session."""
        is_wav = request.headers["content-type"].startswith("audio/")
        async with session.receiving:
            try:
                waiting_s = session.add_audio(await request.body(), is_wav)
                if end_segment:
                    await session.control(EndSegment(type="end_segment"))
            except BadInput as error:
                raise HttpError(400, "bad_input", str(error)) from None
            except Unavailable as error:
                raise HttpError(409, "ended", str(error)) from None
        return ChunkTaken(waiting_s=round(waiting_s, 3))

    @router.post("/{session_id}/interrupt", responses=_refusals(404, 409))
    async def interrupt(session: Running) -> SessionInterrupted:
        """Drop all that was not shown yet."""
        try:
            return SessionInterrupted.model_validate(await session.control(Interrupt(type="interrupt")))
        except Unavailable as error:
            raise HttpError(409, "ended", str(error)) from None

    @router.delete("/{session_id}", responses=_refusals(404))
    async def delete(session: Found, drain: Annotated[bool, Query(description="when all of it was shown")] = False) -> SessionDeleted:
        """End it. The response of its chunks is complete when it has ended."""
        if session.ended is None and drain:
            await session.control(Close(type="close", drain=True))
        else:
            session.end(DELETED)
        return SessionDeleted(id=session.id)

    return router


def _save(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)


def _status(session: HttpSession) -> SessionStatus:
    start, ended = session.start, session.ended
    return SessionStatus(
        id=session.id, status="open" if ended is None else "ended", created_at=int(session.created_s), image=start.image, format=start.format,
        rate_hz=start.rate_hz, channels=start.channels, encoding=start.encoding, error=(ended.reason or None) if ended else None, remark=session.remark,
    )  # fmt: skip


# how messages become bodies


async def _media(messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    async for message in messages:
        if isinstance(message, bytes):
            yield message


async def _images(messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    async for message in messages:
        if isinstance(message, bytes) and message[0] == JPEG:
            yield _part("image/jpeg", message[HEADER.size :])


async def _with_events(messages: AsyncIterator[Message], format: str) -> AsyncIterator[bytes]:
    kind = "video/mp4" if format == "fmp4" else "application/octet-stream"
    async for message in messages:
        yield _part(kind, message) if isinstance(message, bytes) else _part("application/json", json.dumps(message).encode())
    yield f"--{BOUNDARY}--\r\n".encode()


def _part(kind: str, body: bytes) -> bytes:
    return f"--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n"
