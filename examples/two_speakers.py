"""Two people in one image, each with a voice: the left half speaks the one file, the right half the other (docs/beyond.md).

python examples/two_speakers.py both.png left.wav right.wav talk.mp4
"""

import sys
from pathlib import Path

import numpy as np

from everface import Avatar, StreamConfig
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)  # edges as fractions of the image: left, top, right, bottom

image, left, right, out = map(Path, sys.argv[1:])
voices = [np.concatenate(list(read_audio(path))) for path in (left, right)]  # mono, 16 kHz
samples = max(map(len, voices))
audio_2S = np.stack([np.pad(voice_S, (0, samples - len(voice_S))) for voice_S in voices])  # behind the shorter one is silence
stream = StreamConfig(seed=7, speakers=(LEFT, RIGHT))
with Avatar() as avatar:
    picture_3HW = avatar.fit(image, stream)
    with avatar.open(picture_3HW, stream) as session, VideoWriter(out, *picture_3HW.shape[-2:], audio_channels=2) as video:
        video.write_audio(audio_2S.T)
        for block in session.stream(np.array_split(audio_2S, samples // 8_000 + 1, axis=1)):
            video.write(block.frames_THW3.numpy())
print(f"{out}: {video.frames} frames of two speakers")
