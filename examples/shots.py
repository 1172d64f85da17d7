"""Two people in turn, in one stream with a cut every two seconds.

python examples/shots.py first.png second.png speech.wav talk.mp4
"""

import sys
from pathlib import Path

from everface import Avatar, StreamConfig
from everface.media.audio import read_audio
from everface.media.video_writer import VideoWriter

*images, speech, out = map(Path, sys.argv[1:])
with Avatar() as avatar:
    pictures_3HW = [avatar.fit(image, StreamConfig()) for image in images]
    with avatar.open(pictures_3HW[0]) as session, VideoWriter(out, *pictures_3HW[0].shape[-2:], fps=avatar.format.fps) as video:
        shot = 0
        for shot, audio_S in enumerate(read_audio(speech, 32_000)):  # two seconds at 16 kHz
            if shot:
                session.cut(image=pictures_3HW[shot % len(pictures_3HW)], transition="cut" if shot % 2 else "dissolve")
            video.write_audio(audio_S)
            while not session.push_audio(audio_S):
                session.wait(0.2)
                for block in session.poll():
                    video.write(block.frames_THW3.numpy())
        session.end_segment()
        for block in session.frames():
            video.write(block.frames_THW3.numpy())
print(f"{out}: {video.frames} frames, {shot + 1} shots")
