"""Channels of motion: how head, body, eyes and brows move, which a model takes as its pose.

Audio says how the mouth moves, and hardly anything of the rest. A model that gets the rest too has nothing left to guess in its few
steps. `models.live_avatar.motion` makes them for a session; in training they are the truth of the rendered clip, and follow the audio's features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everface.core.config import LATENT_FRAMES
from everface.networks.audio.causal_encoder import PAST_FRAMES

# (name, factor that brings its values to about -1..1, sign in a mirrored image), all relative to the reference image
CHANNELS = (
    ("pitch", 28.0, 1), ("yaw", 20.0, -1), ("roll", 40.0, -1),  # of the head: radians
    ("right", 14.0, -1), ("up", 14.0, 1), ("near", 14.0, 1),  # of the head: units of the head model
    ("sway", 20.0, -1), ("breath", 16.0, 1),  # of the body: the same units
    ("gaze_right", 4.0, -1), ("gaze_up", 6.0, 1),  # shares of how far eyes turn
    ("brow", 2.0, 1), ("blink", 2.0, 1),  # 0..1
    ("happy", 1.5, 1), ("sad", 1.5, 1), ("surprised", 1.5, 1), ("angry", 1.5, 1),  # strength, 0..1
)  # fmt: skip
MOTION = len(CHANNELS)
POSE = LATENT_FRAMES * MOTION  # channels of a latent frame: those of its video frames, one after the other
NAMES = tuple(name for name, _, _ in CHANNELS)
EMOTIONS = NAMES[12:]
_FACTORS_C = torch.tensor([factor for _, factor, _ in CHANNELS])
_SIGNS_C = torch.tensor([float(sign) for _, _, sign in CHANNELS])


def motion_features(motion_TC: Tensor) -> Tensor:
    """Features [MOTION, T] float32 of T video frames, from values in the units of `CHANNELS` [T, MOTION]."""
    return (motion_TC.float() * _FACTORS_C).T.contiguous()


def pose_of(motion_CT: Tensor) -> Tensor:
    """Features [..., MOTION, T] of whole latent frames as a pose [..., POSE, F, 1, 1], the same all over the image."""
    return motion_CT.unflatten(-1, (-1, LATENT_FRAMES)).movedim(-1, -3).flatten(-3, -2)[..., None, None]


def split_pose(features_BLCT: Tensor, audio_dim: int) -> tuple[Tensor, Tensor | None]:
    """Features of a clip of five past frames and whole latent frames: the audio's, and the pose if there are channels of motion behind them."""
    if features_BLCT.shape[2] == audio_dim:
        return features_BLCT, None
    return features_BLCT[:, :, :audio_dim], pose_of(features_BLCT[:, 0, audio_dim:, PAST_FRAMES:])


def mirrored(features_LCT: Tensor) -> Tensor:
    """Features [L, C, T], of which the last `MOTION` channels are motion, as the mirrored image has them."""
    out = features_LCT.clone()
    out[:, -MOTION:] *= _SIGNS_C[:, None].to(out)
    return out
