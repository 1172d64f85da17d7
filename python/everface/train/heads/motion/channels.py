"""The motion of a clip as the model gets it: `networks.motion`, from the truth of rendered people and of drawn characters."""

from __future__ import annotations

import numpy as np
import torch

from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import MOTION, NAMES, motion_features
from everface.train.heads.motion.body import Body, sample_body
from everface.train.synthetic.parameters import ANIMATION

# How far drawn characters move, as rendered people do: the ratios of their sways' amplitudes.
DRAWN_RIGHT, DRAWN_UP, DRAWN_ROLL = 0.10 / 0.047, -0.06 / 0.032, 0.022 / 0.052


def body_motion(body: Body) -> torch.Tensor:
    """[1, MOTION, 5 + T]: relative to the reference image; before the clip as in its first frame."""
    return features_of(motion_of(body))


def drawn_motion(anim_TA: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The same of a drawn character. What cannot be seen of it moves as people do, so that the model learns to pass over it."""
    values_TC = motion_of(sample_body(anim_TA[:, ANIMATION.index("open")].numpy(), None, rng))
    shown = dict(zip(ANIMATION, anim_TA.double().numpy().T, strict=True))
    shown = {"blink": shown["blink"], "brow": shown["brow"], "right": DRAWN_RIGHT * shown["dx"], "up": DRAWN_UP * shown["dy"], "roll": DRAWN_ROLL * shown["rot"]}
    for name, values_T in shown.items():
        values_TC[:, NAMES.index(name)] = values_T
    return features_of(values_TC)


def motion_of(body: Body) -> np.ndarray:
    """[T, MOTION] in the units of `networks.motion.CHANNELS`."""
    pitch_yaw_roll = (body.turn - body.rest).T
    columns = dict(zip(NAMES, (*pitch_yaw_roll, *body.shift.T, body.body[:, 0], body.body[:, 1], *body.gaze.T, body.brow, body.blink)))
    if body.emotion != "neutral":
        columns[body.emotion] = body.strength
    return np.stack([columns.get(name, np.zeros(len(body.blink))) for name in NAMES], 1)


def features_of(values_TC: np.ndarray) -> torch.Tensor:
    features_CT = motion_features(torch.from_numpy(values_TC))
    return torch.cat([features_CT[:, :1].expand(MOTION, PAST_FRAMES), features_CT], 1)[None]
