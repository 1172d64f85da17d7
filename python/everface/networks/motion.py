"""How a person moves: what moves within the face is the transformer's pose, what moves the head as a whole a warp of the decoded frames
(`networks.video.head_warp`).

Audio hardly says anything of head, eyes and brows, and a model that has to guess them shows a mean of all that may be in its few steps: `models.live_avatar.motion`
draws them for a session. What audio says of the mouth a small network (`networks.audio.articulators`) reads. In training both are the truth of the clip, and follow
the audio's features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everface.core.config import LATENT_FRAMES, LipsConfig
from everface.networks.audio.causal_encoder import PAST_FRAMES

# Of the head, relative to the reference image: radians, then shift of the head in units of some 0.035 of the image's width, then of the body; and how much
# wider and taller the mouth is than the transformer draws it, as shares
HEAD = ("pitch", "yaw", "roll", "right", "up", "near", "sway", "breath", "wide", "tall")
# Of the mouth, 0..1. closed: lips, 0.6 at rest; teeth: lower lip at the upper teeth
ARTICULATORS = ("jaw", "spread", "round", "closed", "teeth", "tongue")
# Of the face: names, and factors that bring values to about -1..1
_EXPRESSION = {
    "gaze_right": 4.0, "gaze_up": 6.0,  # shares of how far eyes turn
    "brow": 2.0, "blink": 2.0,  # 0..1
    "happy": 1.5, "sad": 1.5, "surprised": 1.5, "angry": 1.5,  # strength, 0..1
}  # fmt: skip
_FACE = _EXPRESSION | dict.fromkeys(ARTICULATORS, 2.0)
EXPRESSION, FACE = tuple(_EXPRESSION), tuple(_FACE)
POSE = LATENT_FRAMES * len(FACE)  # channels of a latent frame: those of its video frames, one after the other
_FACTORS_C = torch.tensor(list(_FACE.values()))
_SIGNS_C = torch.tensor([-1.0 if name == "gaze_right" else 1.0 for name in FACE])  # in a mirrored image


def face_features(face_TC: Tensor) -> Tensor:
    """Features [C, T] float32 of T video frames, from the values of FACE [T, C]."""
    return (face_TC.float() * _FACTORS_C).T.contiguous()


def face_values(features_CT: Tensor) -> Tensor:
    """Values of FACE [T, C] float32, from the features of a clip, of which theirs are the last."""
    return features_CT[-len(FACE) :].float().T / _FACTORS_C


def compensated(features_CT: Tensor, lips: LipsConfig) -> Tensor:
    """Features [C, T], of which the last are those of FACE, with a jaw that opens `lips.jaw` times as far, at most as far as it goes: the input of a
    stream. Training has the true jaw."""
    out, jaw = features_CT.clone(), FACE.index("jaw") - len(FACE)
    out[jaw] = (lips.jaw * out[jaw]).clamp(max=_FACE["jaw"])
    return out


def with_mouth(head_KT: Tensor, articulators_AT: Tensor, lips: LipsConfig) -> Tensor:
    """Values of HEAD [10, T], of which "wide" and "tall" follow the mouth's ARTICULATORS [6, T]."""
    jaw_T, spread_T, round_T = (articulators_AT[ARTICULATORS.index(name)] for name in ("jaw", "spread", "round"))
    return torch.cat([head_KT[:-2], torch.stack([lips.wider * spread_T - lips.narrower * round_T, lips.taller * jaw_T]).to(head_KT)])


def pose_of(features_CT: Tensor) -> Tensor:
    """Features [..., C, T] of whole latent frames as a pose [..., POSE, F, 1, 1], the same all over the image."""
    return features_CT.unflatten(-1, (-1, LATENT_FRAMES)).movedim(-1, -3).flatten(-3, -2)[..., None, None]


def split_pose(features_BLCT: Tensor, audio_dim: int) -> tuple[Tensor, Tensor | None]:
    """Features of a clip of five past frames and whole latent frames: the audio's, and the pose if features of FACE follow them."""
    if features_BLCT.shape[2] == audio_dim:
        return features_BLCT, None
    return features_BLCT[:, :, :audio_dim], pose_of(features_BLCT[:, 0, audio_dim:, PAST_FRAMES:])


def mirrored(features_LCT: Tensor) -> Tensor:
    """Features [L, C, T], of which the last are those of FACE, as the mirrored image has them."""
    out = features_LCT.clone()
    out[:, -len(FACE) :] *= _SIGNS_C[:, None].to(out)
    return out
