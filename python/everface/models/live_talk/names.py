"""The roles of LiveTalk, the names of the tensors that travel with its blocks, and its rate."""

from __future__ import annotations

from everface.core.config import SAMPLE_RATE
from everface.core.live_talk_config import LiveTalkConfig
from everface.networks.transformer.live_talk import FRAMES_PER_LATENT
from everface.runtime.model import BlockFormat, RoleSpec

FPS = 16
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
STEPS = 4  # forwards that make a block; one more leaves its clean keys and values in the cache

REFERENCE = "reference"  # at an opening, and into a block that begins the stream again with another image: [16, 1, h, w]
TEXT = "text"  # at an opening, and into a block that follows another prompt: [L, C]
AUDIO = "audio"  # into a block: the vectors of its layers, [A, F, D]
DENOISE, DECODE = "denoise", "decode"
ROLES = (RoleSpec(DENOISE, STEPS + 1.0), RoleSpec(DECODE, 1.6, own_thread=True))  # cost: counted operations, in forwards

# The front end's window, in video frames: with a block's 12 it is about the 81 frames that the model was trained on.
LOOKBACK_FRAMES, LOOKAHEAD_FRAMES = 64, 4


def block_format(cfg: LiveTalkConfig) -> BlockFormat:
    """A block's frames. The first latent of a stream is one frame, the image itself. The first blocks stay in the cache for ever, the others
    for as long as the ring behind them is."""
    frames = FRAMES_PER_LATENT * cfg.block_frames
    return BlockFormat(
        frames=frames,
        first_frames=frames - FRAMES_PER_LATENT + 1,
        samples_per_frame=SAMPLES_PER_FRAME,
        lookback_samples=LOOKBACK_FRAMES * SAMPLES_PER_FRAME,
        lookahead_samples=LOOKAHEAD_FRAMES * SAMPLES_PER_FRAME,
        history=cfg.window_blocks - cfg.sink_blocks - 1,
        first_history=cfg.sink_blocks,
    )
