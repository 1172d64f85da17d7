"""One video: a live session without a pace or idle motion, fed from a file, written as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from everface.core.config import StreamConfig
from everface.core.errors import BadInput
from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame
from everface.live.session import LiveSession
from everface.media.audio import probe_audio, read_track
from everface.media.video_writer import VideoWriter
from everface.provenance.audit import log_video
from everface.provenance.signing import find_signer
from everface.serve.service import LiveSource
from everface.serve.settings import Limits
from everface.serve.uploads import too_long
from everface.serve.videos.jobs import Aborted, VideoJob

READ_S = 0.2
PIECES_PER_S = 4


def render_job(job: VideoJob, backend: LiveSource, stream: StreamConfig, limits: Limits) -> None:
    """Make `job.video`. Raises EverfaceError, or Aborted once the job is."""
    info = probe_audio(job.audio)
    channels = info.channels if info.channels <= 2 else 1
    with backend.open_live(job.image, stream, idle=False, paced=False, playback_hz=info.rate_hz) as live:
        job.remark = live.remark
        total = max(1, math.ceil((info.duration_s or limits.audio_s) * live.format.fps))
        _render(job, live, info.rate_hz, channels, stream.seed, limits, lambda frames: setattr(job, "progress", min(99, 100 * frames // total)))


def _render(
    job: VideoJob, live: LiveSession, rate_hz: int, channels: int, seed: int, limits: Limits, progress: Callable[[int], None]
) -> None:
    writer: VideoWriter | None = None
    signer = find_signer()
    sign = partial(signer.sign, consent=job.consent) if signer else None
    audio = read_track(job.audio, rate_hz // PIECES_PER_S)
    waiting, pushed, ended = next(audio, None), 0, False
    try:
        while True:
            if job.aborted.is_set():
                raise Aborted
            if waiting is not None:
                mono_SC = waiting if waiting.shape[1] == channels else waiting.mean(1, keepdims=True)
                taken = live.push_audio(mono_SC, rate_hz)
                pushed += taken
                waiting = waiting[taken:] if taken < len(waiting) else next(audio, None)
                if pushed > limits.audio_s * rate_hz:
                    raise BadInput(too_long(limits))
            elif not ended:
                live.end_segment()
                ended = True
            event = live.read(READ_S if waiting is None else 0.01)
            if isinstance(event, VideoFrame):
                height, width = event.image_HW3.shape[:2]
                writer = writer or VideoWriter(job.video, height, width, rate_hz, channels, fps=live.format.fps, sign=sign)
                writer.write(event.image_HW3[None])
                progress(writer.frames)
            elif isinstance(event, AudioFrame) and writer is not None:
                samples_SC = event.samples_SC
                writer.write_audio(samples_SC if samples_SC.shape[1] == channels else samples_SC.repeat(channels, 1))
            elif isinstance(event, LiveSegmentEnd):
                break
    except BaseException:
        if writer is not None:
            writer.close(finished=False)
        raise
    assert writer is not None
    writer.close()
    log_video(job.id, writer.frames, seed, writer.signed, job.consent)
