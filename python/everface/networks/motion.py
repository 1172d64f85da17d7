"""Channels of motion: how head, body, eyes and brows move, as features that follow the audio's.

Audio says how the mouth moves, and hardly anything of the rest. A model that gets the rest as features has nothing left to guess in its few
steps. `models.live_avatar.motion` makes them for a session; in training they are the truth of the rendered clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

# (name, factor that brings its values to about -1..1, sign in a mirrored image), all relative to the reference image
CHANNELS = (
    ("pitch", 14.0, 1), ("yaw", 10.0, -1), ("roll", 20.0, -1),  # of the head: radians
    ("right", 7.0, -1), ("up", 7.0, 1), ("near", 7.0, 1),  # of the head: units of the head model
    ("sway", 10.0, -1), ("breath", 10.0, 1),  # of the body: the same units
    ("gaze_right", 4.0, -1), ("gaze_up", 6.0, 1),  # shares of how far eyes turn
    ("brow", 2.0, 1), ("blink", 2.0, 1),  # 0..1
    ("happy", 1.5, 1), ("sad", 1.5, 1), ("surprised", 1.5, 1), ("angry", 1.5, 1),  # strength, 0..1
)  # fmt: skip
MOTION = len(CHANNELS)
NAMES = tuple(name for name, _, _ in CHANNELS)
EMOTIONS = NAMES[12:]
_FACTORS_C = torch.tensor([factor for _, factor, _ in CHANNELS])
_SIGNS_C = torch.tensor([float(sign) for _, _, sign in CHANNELS])


def motion_features(motion_TC: Tensor) -> Tensor:
    """Features [MOTION, T] float32 of T video frames, from values in the units of `CHANNELS` [T, MOTION]."""
    return (motion_TC.float() * _FACTORS_C).T.contiguous()


def mirrored(features_LCT: Tensor) -> Tensor:
    """Features [L, C, T], of which the last `MOTION` channels are motion, as the mirrored image has them."""
    out = features_LCT.clone()
    out[:, -MOTION:] *= _SIGNS_C[:, None].to(out)
    return out
