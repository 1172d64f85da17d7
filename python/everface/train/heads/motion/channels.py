"""What moves in the face of a clip, as the model gets it (`networks.motion`): the truth of rendered people and of drawn characters."""

from __future__ import annotations

import numpy as np
import torch

from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import ARTICULATORS, FACE, face_features
from everface.train.heads.motion.body import Body, sample_body
from everface.train.heads.motion.visemes import REST
from everface.train.synthetic.motion import NEUTRAL_WIDTH
from everface.train.synthetic.parameters import ANIMATION


def body_face(body: Body, articulators_TA: np.ndarray) -> torch.Tensor:
    """[1, C, 5 + T]; before the clip as in its first frame."""
    return features_of(values_of(body) | dict(zip(ARTICULATORS, articulators_TA.T, strict=True)))


def drawn_face(anim_TA: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The same of a drawn character. What cannot be seen of it moves as people's does, so that the model learns to pass over it."""
    shown = dict(zip(ANIMATION, anim_TA.double().numpy().T, strict=True))
    body = sample_body(shown["open"], None, rng)
    return features_of(values_of(body) | {name: shown[name] for name in ("blink", "brow")} | drawn_mouth(shown["open"], shown["wide"]))


def drawn_mouth(open_T: np.ndarray, wide_T: np.ndarray) -> dict[str, np.ndarray]:
    """Articulators that show a drawn mouth: one that is open so far, and so wide."""
    wider_T = (wide_T - NEUTRAL_WIDTH) / np.where(wide_T > NEUTRAL_WIDTH, 1 - NEUTRAL_WIDTH, NEUTRAL_WIDTH)
    return {"jaw": open_T, "spread": np.maximum(wider_T, 0), "round": np.maximum(-wider_T, 0), "closed": REST[3] * np.maximum(1 - 5 * open_T, 0)}


def values_of(body: Body) -> dict[str, np.ndarray]:
    """[T] of each name of FACE that is not 0."""
    emotion = {} if body.emotion == "neutral" else {body.emotion: body.strength}
    return {"gaze_right": body.gaze[:, 0], "gaze_up": body.gaze[:, 1], "brow": body.brow, "blink": body.blink} | emotion


def features_of(values: dict[str, np.ndarray]) -> torch.Tensor:
    values_TC = np.stack([values.get(name, np.zeros(len(values["blink"]))) for name in FACE], 1)
    features_CT = face_features(torch.from_numpy(values_TC))
    return torch.cat([features_CT[:, :1].expand(-1, PAST_FRAMES), features_CT], 1)[None]
