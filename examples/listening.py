"""A person who hears a question, nods, and answers it (docs/beyond.md). Other weights than the bundled ones must be weights that listen.

python examples/listening.py face.png question.wav answer.wav talk.mp4 [WEIGHTS]
"""

import sys
from pathlib import Path

import numpy as np

from everface import Avatar, StreamConfig
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter

image, question, answer, out, *weights = map(Path, sys.argv[1:])
user_S, own_S = (np.concatenate(list(read_audio(path))) for path in (question, answer))  # mono, 16 kHz
audio_2S = np.zeros((2, len(user_S) + len(own_S)), np.float32)  # the first row is what the person says, the second what it hears
audio_2S[1, : len(user_S)] = user_S
audio_2S[0, len(user_S) :] = own_S
stream = StreamConfig(seed=7)
with Avatar(weights[0] if weights else None) as avatar:
    if not avatar.format.user_audio:
        sys.exit(f"{weights[0]} was not trained to listen: name weights that were")
    picture_3HW = avatar.fit(image, stream)
    with avatar.open(picture_3HW, stream) as session, VideoWriter(out, *picture_3HW.shape[-2:], audio_channels=2) as video:
        video.write_audio(audio_2S.T)
        for block in session.stream(np.array_split(audio_2S, audio_2S.shape[1] // 8_000 + 1, axis=1)):
            video.write(block.frames_THW3.numpy())
print(f"{out}: {video.frames} frames of a question and its answer")
