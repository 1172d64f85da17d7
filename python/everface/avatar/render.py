"""Offline rendering: a session fed from a file, frames to an mp4 as they come. Memory does not grow with the sound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from everface.avatar.avatar import Avatar
from everface.core.config import FPS, SAMPLE_RATE, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.media.audio import probe_audio, read_audio, read_track
from everface.media.output import check_output
from everface.media.video_writer import VideoWriter
from everface.runtime.events import VideoBlock
from everface.runtime.session import WAIT_S, Session

DROPPED_FRAMES = 3  # upstream's files lack the first three frames of a stream


@dataclass(frozen=True)
class RenderJob:
    """What to render, with what, to where."""

    image: Path
    audio: Path
    out: Path
    weights: Path | None = None
    lora: Path | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    deployment: Deployment = field(default_factory=Deployment)
    overwrite: bool = False


@dataclass(frozen=True)
class RenderReport:
    """What came out, and how fast."""

    out: str
    frames: int
    seconds: float  # of video
    width: int
    height: int
    render_s: float  # from the first audio to the last frame written
    fps: float  # frames / render_s
    first_frame_s: float  # from the first audio pushed to the first frame delivered
    load_s: float  # weights, stages and sink
    placement: str
    sampler: str
    compat: str
    seed: int
    rss_mb: float  # of the process that owns the session, at the end

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[int, int | None, float], None]  # frames done, frames in all if the file says, frames per second


def render(job: RenderJob, progress: Progress | None = None) -> RenderReport:
    """Render `job` and return the figures. Raises EverfaceError with one sentence.

    After an error in the middle, or Ctrl-C, what was rendered is kept as a playable file that replaces no other; a note of the exception
    says where.
    """
    info = probe_audio(job.audio)
    check_output(job.out)
    if job.out.is_file() and not job.overwrite:
        raise BadInput(f"{job.out} is there already: name another file, or pass --force to replace it")
    total = None if info.duration_s is None else math.ceil(info.duration_s * FPS)
    began = time.perf_counter()
    with Avatar(job.weights, job.lora, job.deployment) as avatar:
        image_3HW = avatar.fit(job.image, job.stream)
        height, width = image_3HW.shape[-2:]
        writing = VideoWriter(job.out, height, width, info.rate_hz, info.track_channels)
        with writing as writer, avatar.open(image_3HW, job.stream) as session:
            loaded = time.perf_counter()
            for blocks in _feed(session, job.audio, info.rate_hz, writer):
                for block in blocks:
                    cut = DROPPED_FRAMES if block.index == 0 and job.stream.compat == "official" else 0
                    writer.write(block.frames_THW3[cut:].cpu().numpy())
                    if progress:
                        progress(writer.frames, total, writer.frames / (time.perf_counter() - loaded))
            done, frames, first_s = time.perf_counter(), writer.frames, session.timeline.first_frame_s or 0.0
    return RenderReport(
        out=str(writing.saved),
        frames=frames,
        seconds=frames / FPS,
        width=width,
        height=height,
        render_s=done - loaded,
        fps=frames / (done - loaded),
        first_frame_s=first_s,
        load_s=loaded - began,
        placement=job.deployment.placement,
        sampler=job.stream.sampler,
        compat=job.stream.compat,
        seed=job.stream.seed,
        rss_mb=psutil.Process().memory_info().rss / 1e6,
    )


def _feed(session: Session, audio: Path, rate_hz: int, writer: VideoWriter) -> Iterator[list[VideoBlock]]:
    """Push the file's sound into the session and its own track into the video, half a second at a time; yield what is finished."""
    track = read_track(audio, rate_hz // 2)
    for audio_S in read_audio(audio, SAMPLE_RATE // 2):
        part_SC = next(track, None)
        if part_SC is not None:
            writer.write_audio(part_SC)
        while not session.push_audio(audio_S):  # the buffer is full: let the pipeline catch up
            session.wait(WAIT_S)
            yield session.poll()
        yield session.poll()
    for part_SC in track:
        writer.write_audio(part_SC)
    session.end_segment()
    for block in session.frames():
        yield [block]
