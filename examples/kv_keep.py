"""What a share of the KV cache costs: the same video with all keys and with fewer (docs/beyond.md).

python examples/kv_keep.py face.png speech.wav 0.667
"""

import sys
import time
from pathlib import Path

import torch

from everface import Avatar, Deployment, StreamConfig
from everface.media.audio import read_audio

image, speech, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])


def make(kv_keep: float) -> torch.Tensor:
    """All frames, uint8 [T, H, W, 3]."""
    blocks = list[torch.Tensor]()
    with Avatar(deployment=Deployment(kv_keep=kv_keep)) as avatar, avatar.open(image, StreamConfig(seed=7)) as session:
        began_s = time.monotonic()
        for audio_S in read_audio(speech, 8_000):  # half a second at 16 kHz
            while not session.push_audio(audio_S):
                session.wait_room(len(audio_S), 0.2)
                blocks += [block.frames_THW3 for block in session.poll()]
        session.end_segment()
        blocks += [block.frames_THW3 for block in session.frames()]
        frames_THW3 = torch.cat(blocks)
        print(f"{kv_keep:g} of the keys: {len(frames_THW3) / (time.monotonic() - began_s):.1f} frames per second")
    return frames_THW3


error = (make(1.0).float() - make(share).float()).square().mean()
print(f"PSNR {10 * float((255**2 / error).log10()):.1f} dB")
