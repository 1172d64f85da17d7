"""A talking face by LiveTalk-1.3B, block by block, with the weights of `everface pull livetalk-1.3b`.

python examples/livetalk.py face.png speech.wav talk.mp4 weights/livetalk
"""

import sys
from pathlib import Path

from everface import Avatar, StreamConfig, best_deployment
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter

image, speech, out, weights = map(Path, sys.argv[1:])
with Avatar(weights, deployment=best_deployment()) as avatar:
    picture_3HW = avatar.fit(image, StreamConfig())
    with avatar.open(picture_3HW) as session, VideoWriter(out, *picture_3HW.shape[-2:], fps=avatar.format.fps) as video:
        parts = list(read_audio(speech, 8_000))  # of half a second at 16 kHz
        for audio_S in parts:
            video.write_audio(audio_S)
        for block in session.stream(parts):
            video.write(block.frames_THW3.numpy())
print(f"{out}: {video.frames} frames at {avatar.format.fps} per second")
