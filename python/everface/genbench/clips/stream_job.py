"""The process in which everface makes clips: an EverfaceJob as JSON on stdin, one JSON object a line on stdout.

    {"id": "short-000", "frames": 120}               progress
    {"id": "short-000", "speed": {"fps": 51.2, ..}, "windows": {"0": {"fps": 52.0, ..}}}  done
    {"id": "short-000", "error": "..."}              failed; the next clip follows
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLE_RATE, StreamConfig
from everface.core.errors import EverfaceError
from everface.genbench.clips.speed import SpeedMeter
from everface.genbench.clips.systems import Clip, EverfaceJob, raw_path
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter
from everface.runtime.session import WAIT_S

CHUNK = SAMPLE_RATE // 2


def looped_audio(path: Path, seconds: float) -> Iterator[np.ndarray]:
    """The voice in chunks of half a second, again from its beginning until it has lasted `seconds`; memory does not grow."""
    left = round(seconds * SAMPLE_RATE)
    for chunk_S in itertools.chain.from_iterable(read_audio(path, CHUNK) for _ in itertools.count()):
        if left <= 0:
            return
        yield chunk_S[:left]
        left -= len(chunk_S)


def make_clip(avatar: Avatar, clip: Clip, stream: StreamConfig, meter: SpeedMeter, raw: bool = False) -> None:
    """Stream one clip into its file, and with `raw` its frames' bytes into another beside it. Raises EverfaceError."""
    image_3HW = avatar.fit(Path(clip.image), stream)
    partial = Path(clip.out).with_suffix(".making.mp4")
    partial.unlink(missing_ok=True)
    writing = VideoWriter(partial, *image_3HW.shape[-2:], fps=avatar.format.fps)
    with ExitStack() as files, writing as writer, avatar.open(image_3HW, stream) as session:
        raw_file = files.enter_context(open(raw_path(clip.out), "wb")) if raw else None
        meter.opened()

        def keep(blocks: list[Any]) -> None:
            for block in blocks:
                meter.add_block(len(block.frames_THW3))
                frames_THW3 = block.frames_THW3.cpu().numpy()
                writer.write(frames_THW3)
                if raw_file:
                    raw_file.write(frames_THW3.tobytes())
                print(json.dumps({"id": clip.id, "frames": writer.frames}), flush=True)

        for audio_S in looped_audio(Path(clip.audio), clip.seconds):
            writer.write_audio(audio_S)
            while not session.push_audio(audio_S):
                session.wait_room(len(audio_S), WAIT_S)
                keep(session.poll())
            keep(session.poll())
        session.end_segment()
        for block in session.frames():
            keep([block])
        meter.finished()
    partial.rename(clip.out)


def main() -> int:
    """Make all clips of the job on stdin."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=EverfaceJob)
    began: float | None = time.perf_counter()
    weights, lora, stream, deployment = job.parts()
    with Avatar(weights, lora, deployment) as avatar:
        for clip in job.clips:
            meter = SpeedMeter(psutil.Process(os.getpid()), avatar.format.fps, began)
            try:
                make_clip(avatar, clip, replace(stream, prompt=clip.prompt), meter, job.raw)
            except EverfaceError as error:
                print(json.dumps({"id": clip.id, "error": str(error)}), flush=True)
            else:
                print(json.dumps({"id": clip.id, "speed": meter.measures(), "windows": meter.windows()}), flush=True)
            began = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
