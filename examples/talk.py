"""A live session: raw 16 kHz mono s16le sound on stdin, raw RGB frames at 25 per second on stdout.

    arecord -q -t raw -f S16_LE -r 16000 | python examples/talk.py face.png | ffplay -f rawvideo -pixel_format rgb24 -s 128x128 -framerate 25 -
"""

import sys

import numpy as np

from everface import Avatar, StreamConfig

CHUNK_BYTES = 2 * 640  # one video frame of sound


def main(picture: str) -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with Avatar() as avatar, avatar.open(picture, StreamConfig(seed=7)) as session:
        while chunk := source.read(CHUNK_BYTES):
            pcm_S = np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2").astype(np.float32) / 32768
            while not session.push(pcm_S):  # the buffer is full: let the pipeline catch up
                session.wait(1.0)
                show(session.poll(), sink)
            show(session.poll(), sink)
        session.end()
        show(session.frames(), sink)


def show(blocks, sink) -> None:
    """Write finished blocks. block.pts says which sample the first frame belongs to."""
    for block in blocks:
        sink.write(block.frames_THW3.numpy().tobytes())
    sink.flush()


if __name__ == "__main__":
    main(sys.argv[1])
