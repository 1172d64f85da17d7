"""`/v1/videos`: videos that are rendered one after the other, for who asks and comes back for them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from everface.core.errors import EverfaceError
from everface.media.image import read_image
from everface.provenance.signing import MOST_CONSENT, check_consent
from everface.serve.backend import IMAGES
from everface.serve.errors import ErrorReport, HttpError
from everface.serve.service import Service
from everface.serve.settings import Limits
from everface.serve.uploads import check_audio, check_upload, sentence
from everface.serve.videos.jobs import DONE, FAILED, Jobs, QueueFull, VideoJob

NAME = Annotated[str, Field(pattern="^video_[0-9a-f]{24}$", description="as POST /v1/videos gives it")]
PIECE = 1 << 20
DECODES = threading.BoundedSemaphore(2)  # images that are decoded at once: one of 16 megapixels can take 340 MB
GONE = "there is no video of this id: it was deleted, or is too old"


class VideoStatus(BaseModel):
    """A render. Times are seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="percent")
    created_at: int
    completed_at: int | None = None
    seed: int | None = None
    prompt: str = ""
    consent: str = ""
    error: str | None = None
    remark: str = Field("", description="about the image, such as that it is unlike those that the weights know")


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VideoStatus]


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorReport} for code in (400, 401, 403, 422, *statuses)}


async def find(video_id: NAME, request: Request) -> VideoJob:
    """The job that a path names."""
    if (job := request.app.state.service.jobs.get(video_id)) is None:
        raise HttpError(404, "no_video", GONE)
    return job


Found = Annotated[VideoJob, Depends(find)]


def video_routes(service: Service, jobs: Jobs) -> APIRouter:
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    limits = service.settings.limits

    @router.post("", responses=_refusals(413, 415, 429, 503))
    def create(
        audio: Annotated[UploadFile, File(description="speech: wav, mp3, m4a, ogg, flac and others")],
        image: Annotated[UploadFile | None, File(description="a portrait: JPEG, PNG, WebP and others; without one, the bundled ada")] = None,
        prompt: Annotated[str, Form(max_length=2000)] = "",
        seed: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
        consent: Annotated[str, Form(max_length=MOST_CONSENT, description="who consented, in one line: is signed with the video")] = "",
    ) -> VideoStatus:
        """Render a video of the image speaking the audio."""
        if not service.ready:
            raise HttpError(503, "not_ready", str(service.refusal))
        try:
            consent = check_consent(consent)
        except EverfaceError as error:
            raise HttpError(400, "bad_input", str(error)) from None
        try:
            with jobs.place() as (name, folder):
                job = VideoJob(name, folder, IMAGES["ada"] if image is None else folder / "image", prompt, seed, consent)
                _take(job, audio, image, limits)
                jobs.submit(job)
        except QueueFull as error:
            raise HttpError(429, "queue_full", str(error), {"Retry-After": "10"}) from None
        return _video(job)

    @router.get("", responses=_refusals())
    async def list_all() -> VideoList:
        """All videos that are there, the newest first."""
        return VideoList(data=[_video(job) for job in jobs.all()])

    @router.get("/{video_id}", responses=_refusals(404))
    async def get(job: Found) -> VideoStatus:
        """How far it is."""
        return _video(job)

    @router.get("/{video_id}/content", response_class=FileResponse, responses={200: {"content": {"video/mp4": {}}}, **_refusals(404, 409)})
    async def content(job: Found) -> FileResponse:
        """The MP4, once it is completed."""
        if job.status != DONE:
            reason = f"this video has failed: {job.error}" if job.status == FAILED else "this video is not complete yet: ask for its status first"
            raise HttpError(409, job.status, reason)
        return FileResponse(job.video, media_type="video/mp4", filename=f"{job.id}.mp4")

    @router.delete("/{video_id}", responses=_refusals(404))
    def delete(job: Found) -> VideoDeleted:
        """Delete it; if it is being rendered, that ends at once."""
        if not jobs.delete(job.id):
            raise HttpError(404, "no_video", GONE)
        return VideoDeleted(id=job.id)

    return router


def _take(job: VideoJob, audio: UploadFile, image: UploadFile | None, limits: Limits) -> None:
    """Save and check what was uploaded. Raises HttpError."""
    try:
        _save(audio, job.audio)
        check_audio(job.audio, limits)
        if image is not None:
            _save(image, job.image)
            check_upload(job.image, limits)
            with DECODES:
                read_image(job.image)
    except EverfaceError as error:
        raise HttpError(400, "bad_input", sentence(error, job.image, job.audio)) from None


def _save(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, PIECE)


def _video(job: VideoJob) -> VideoStatus:
    ended = None if job.ended_s is None else int(job.ended_s)
    return VideoStatus(
        id=job.id, status=job.status, progress=job.progress, created_at=int(job.created_s), completed_at=ended, seed=job.seed,  # pyright: ignore[reportArgumentType]  jobs.py has these four only
        prompt=job.prompt, consent=job.consent, error=job.error, remark=job.remark,
    )  # fmt: skip
