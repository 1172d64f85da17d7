"""Offline rendering: a session fed from a file or a pipe, frames to an mp4 as they come. Memory does not grow with the audio."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from everface.avatar.avatar import Avatar
from everface.avatar.sources import Source, open_source
from everface.avatar.story import StoryAudio, StoryShot
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.media.image import read_image
from everface.media.output import check_output
from everface.media.output_pipe import OutputPipe, open_stdout
from everface.media.paste_back import PasteBack
from everface.media.video_writer import VideoWriter
from everface.media.wav_stream import PCM
from everface.provenance.audit import log_video
from everface.provenance.signing import check_consent, find_signer
from everface.runtime.events import VideoBlock
from everface.runtime.session import WAIT_S, Session

TAKE_S = 0.01  # for more audio, before finished blocks are looked for


@dataclass(frozen=True)
class RenderJob:
    """What to render, with what, to where. `audio` None: stdin, `out` None: stdout. `pcm`: what stdin is, if it is raw samples. `second`: the
    voice of a second speaker, whose region is the second of `stream.speakers`. `user_audio`: what the person hears, for weights that listen.

    Or a story, whose first shot has the image and the prompt: `of_story`."""

    image: Path
    audio: Path | list[StoryShot] | None
    out: Path | None
    weights: Path | None = None
    lora: Path | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    deployment: Deployment = field(default_factory=Deployment)
    overwrite: bool = False
    pcm: PCM | None = None
    keep_unfinished: bool = True  # what is rendered when it is interrupted
    consent: str = ""  # the note of who consented, in one line: goes into the signed manifest and the audit log
    second: Path | None = None
    user_audio: Path | None = None
    paste_back: bool = False  # the frames are put back into the whole image, which the face was cut out of

    @classmethod
    def of_story(cls, shots: list[StoryShot], out: Path | None, stream: StreamConfig, **options: Any) -> RenderJob:
        """As the first shot has an image, and has a prompt if it is not to be that of `stream`."""
        first = shots[0]
        assert first.image is not None
        return cls(first.image, shots, out, stream=replace(stream, prompt=stream.prompt if first.prompt is None else first.prompt), **options)


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
    signed: bool
    remark: str  # `Session.remark`, at the end

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[int, int | None, float], None]  # frames done, frames in all if the file says, frames per second


def render(job: RenderJob, progress: Progress | None = None) -> RenderReport:
    """Render `job` and return the figures. Raises EverfaceError with one sentence, OutputLost when the reader of stdout is gone.

    After an error in the middle, or Ctrl-C, what was rendered is kept as a playable file that replaces no other; a note of the exception
    says where.
    """
    if job.pcm and job.audio:
        raise BadInput(f"--pcm describes raw samples from stdin, and {job.audio} is a file: leave it out, or pass - for AUDIO")
    if job.out is not None:
        check_output(job.out)
        if job.out.is_file() and not job.overwrite:
            raise BadInput(f"{job.out} is there already: name another file, or pass --force to replace it")
    if len(job.stream.speakers) != (0 if job.second is None else 2):
        raise BadInput(f"regions of {len(job.stream.speakers)} speakers do not fit the audio: give two of them with a second voice, else none")
    if job.second is not None and job.user_audio is not None:
        raise BadInput("two speakers hear each other: leave out what is heard, or the second voice")
    began_s = time.perf_counter()
    source = StoryAudio(job.audio) if isinstance(job.audio, list) else open_source(job.audio, job.second or job.user_audio, job.pcm)
    out = job.out if job.out is not None else open_stdout()
    try:
        with Avatar(job.weights, job.lora, job.deployment) as avatar:
            return render_on(avatar, job, source, out, progress, began_s)
    finally:
        source.close()


def paste_back(avatar: Avatar, job: RenderJob, side: int) -> PasteBack:
    """Frames of this side, put back into the job's image. Raises BadInput where there is nothing to put back into."""
    if isinstance(job.audio, list):
        raise BadInput("a story has an image for each shot, so there is nothing to put back: leave out --paste-back")
    image_HW3 = read_image(job.image)
    region = avatar.model.face_region(job.image, image_HW3, job.stream)
    if region is None:
        raise BadInput(f"no face was found in {job.image}, so there is nothing to put back: leave out --paste-back")
    return PasteBack(image_HW3, region, side)


def render_on(
    avatar: Avatar, job: RenderJob, source: Source | StoryAudio, out: Path | OutputPipe, progress: Progress | None, began_s: float
) -> RenderReport:
    """`render` on a model that is loaded; `source` and `out` stand for the audio and out of `job`."""
    signer, consent = find_signer(), check_consent(job.consent)
    if job.paste_back:
        job = replace(job, stream=replace(job.stream, crop="face"))
    if job.user_audio is not None and not avatar.format.user_audio:
        raise BadInput(f"these weights were not trained to listen: render without {job.user_audio}, or use weights that listen")
    image_3HW = avatar.fit(job.image, job.stream)
    height, width = image_3HW.shape[-2:]
    paste = paste_back(avatar, job, width) if job.paste_back else None
    stream = job.stream
    if isinstance(source, StoryAudio):
        stream = replace(stream, size=(height, width))
        source.check_images(lambda image: avatar.fit(image, stream))
    fps, dropped = avatar.format.fps, avatar.model.dropped_frames(job.stream)
    source.check()  # before the weights are loaded
    with avatar.open(image_3HW, stream, job.image) as session:
        info = source.info()  # of a pipe it may be long in coming, so the model is loaded meanwhile
        total = None if info.duration_s is None else math.ceil(info.duration_s * fps)
        sign = partial(signer.sign, consent=consent) if signer else None
        audio = info.rate_hz, info.track_channels
        shown = (height, width) if paste is None else (paste.height, paste.width)
        writing = VideoWriter(out, *shown, *audio, fps=fps, keep_unfinished=job.keep_unfinished, sign=sign)
        with writing as writer:
            loaded = time.perf_counter()
            for blocks in _feed(session, source, writer):
                for block in blocks:
                    cut = 0 if block.index else dropped
                    frames_THW3 = block.frames_THW3[cut:].cpu().numpy()
                    writer.write(frames_THW3 if paste is None else paste.apply(frames_THW3))
                    if progress:
                        progress(writer.frames, total, writer.frames / (time.perf_counter() - loaded))
            remark = session.remark
            done, frames, first_s = time.perf_counter(), writer.frames, session.timeline.first_frame_s or 0.0
    log_video(str(writing.saved), frames, job.stream.seed, writing.signed, consent)
    return RenderReport(
        out=str(writing.saved),
        frames=frames,
        seconds=frames / fps,
        width=shown[1],
        height=shown[0],
        render_s=done - loaded,
        fps=frames / (done - loaded),
        first_frame_s=first_s,
        load_s=loaded - began_s,
        placement=job.deployment.placement,
        sampler=job.stream.sampler,
        compat=job.stream.compat,
        seed=job.stream.seed,
        rss_mb=psutil.Process().memory_info().rss / 1e6,
        signed=writing.signed,
        remark=remark,
    )


def _feed(session: Session, source: Source | StoryAudio, writer: VideoWriter) -> Iterator[list[VideoBlock]]:
    """Push the audio into the session and its own track into the video as it comes; yield what is finished."""
    while not source.ended:
        part = source.take(TAKE_S)
        if part is not None:
            if isinstance(source, StoryAudio) and source.cut is not None:
                session.cut(**source.cut)
            if len(part.track_SC):
                writer.write_audio(part.track_SC)
            while not session.push_audio(part.mono_S):  # the buffer is full: let the pipeline catch up
                session.wait_room(part.mono_S.shape[-1], WAIT_S)
                yield session.poll()
        yield session.poll()
    session.end_segment()
    for block in session.frames():
        yield [block]
