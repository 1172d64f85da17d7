"""Two people in turn, in one stream with a cut every two seconds.

python examples/shots.py first.png second.png speech.wav talk.mp4
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everface import Avatar, StreamConfig
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter

*images, speech, out = map(Path, sys.argv[1:])
with Avatar() as avatar:
    pictures_3HW = [avatar.fit(image, StreamConfig()) for image in images]
    with avatar.open(pictures_3HW[0]) as session, VideoWriter(out, *pictures_3HW[0].shape[-2:], fps=avatar.format.fps) as video:
        parts = list(read_audio(speech, 32_000))  # of two seconds at 16 kHz

        def shots() -> Iterator[np.ndarray]:
            for shot, audio_S in enumerate(parts):
                if shot:
                    session.cut(image=pictures_3HW[shot % len(pictures_3HW)], transition="cut" if shot % 2 else "dissolve")
                video.write_audio(audio_S)
                yield audio_S

        for block in session.stream(shots()):
            video.write(block.frames_THW3.numpy())
print(f"{out}: {video.frames} frames, {len(parts)} shots")
