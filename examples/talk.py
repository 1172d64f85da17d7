"""A live session: raw 16 kHz mono s16le audio on stdin, raw RGB frames at 25 per second on stdout.

    arecord -q -t raw -f S16_LE -r 16000 | python examples/talk.py face.png | ffplay -f rawvideo -pixel_format rgb24 -s 256x256 -framerate 25 -
"""

import sys
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from everface import Avatar, StreamConfig, VideoBlock

CHUNK_BYTES = 2 * 640  # audio of one video frame


def main(image: str) -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with Avatar() as avatar, avatar.open(image, StreamConfig(seed=7)) as session:
        while chunk := source.read(CHUNK_BYTES):
            audio_S = np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2").astype(np.float32) / 32768
            while not session.push_audio(audio_S):  # the audio buffer is full: let the pipeline catch up
                session.wait_room(len(audio_S), 1.0)
                show(session.poll(), sink)
            show(session.poll(), sink)
        session.end_segment()
        show(session.frames(), sink)


def show(blocks: Iterable[VideoBlock], sink: BinaryIO) -> None:
    """Write finished blocks. block.pts is the audio sample that the first frame belongs to."""
    for block in blocks:
        sink.write(block.frames_THW3.numpy().tobytes())
    sink.flush()


if __name__ == "__main__":
    main(sys.argv[1])
