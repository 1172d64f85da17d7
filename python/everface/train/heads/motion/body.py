"""All that moves besides the mouth: head, gaze, blinks, breathing, brows, emotion; and what a listener does instead of speaking."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from everface.core.config import FPS
from everface.models.live_avatar.motion import (
    BREATH,
    BREATH_HERTZ,
    NOD,
    NOD_DIPS,
    NOD_FRAMES,
    PHRASE_FRAMES,
    SHIFT,
    SPEECH_LEVEL,
    STRESS,
    SWAY,
    TILT,
    TURN,
    sway,
)  # fmt: skip
from everface.train.synthetic.motion import blink_frames

EMOTIONS = {
    "neutral": {}, "happy": {"mouthSmile": 0.45, "cheekSquint": 0.35, "eyeSquint": 0.15}, "sad": {"mouthFrown": 0.35, "browInnerUp": 0.5},
    "surprised": {"browInnerUp": 0.45, "browOuterUp": 0.45, "eyeWide": 0.35}, "angry": {"browDown": 0.55, "noseSneer": 0.2, "eyeSquint": 0.2},
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    """Frame by frame: blink [T] 0..1, gaze [T, 2] (right, up), turn [T, 3] radians, shift [T, 3] and sway of the body [T, 3], brow [T], the
    emotion and its strength [T], and whether the person listens [T]. rest [3]: rotation of the head in the reference image."""

    blink: np.ndarray
    gaze: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    body: np.ndarray
    brow: np.ndarray
    emotion: str
    strength: np.ndarray
    listening: np.ndarray
    rest: np.ndarray


def sample_body(jaw_T: np.ndarray, user_T: np.ndarray | None, rng: np.random.Generator) -> Body:
    """Motion for a mouth that opens by jaw_T. user_T: how loud someone else speaks, 0..1, to a person who listens; None: nobody does. A
    listener nods after a phrase, raises the brows with the other's voice, tilts the head and looks at the camera.

    Heads sway by 3 degrees at most and nod by 5, as of someone who speaks to a camera: docs/training/heads.md has why."""
    T = len(jaw_T)
    listening = user_T is not None
    time_s = np.arange(T) / FPS

    def swayed(amplitude: float, slow: float = 0.05, fast: float = 0.40) -> np.ndarray:
        return sway(rng, amplitude, slow, fast)(np.arange(T))

    stress = _smooth(jaw_T, 0.12)
    base = rng.normal(0, (0.03, 0.09, 0.03))
    turn = base + np.stack([swayed(amplitude) for amplitude in TURN], 1)
    turn[:, 0] += STRESS * (stress - stress.mean())
    if user_T is not None:
        turn[:, 2] += rng.choice((-1, 1)) * rng.uniform(*TILT) * _smooth(np.minimum(1, 3 * user_T), 0.06)
        for start, strength in nods(user_T, rng):  # one to three dips
            length = int(rng.integers(*NOD_FRAMES))
            t = np.arange(length) / length
            dips = strength * rng.uniform(*NOD) * np.sin(np.pi * t) * np.sin(2 * np.pi * rng.integers(*NOD_DIPS) * t + 0.3)
            turn[start : start + length, 0] += dips[: T - start]
    gaze = np.zeros((T, 2))
    aim = rng.normal(0, (0.12, 0.06))
    for start in _events(T, 0.8, 3.5, rng):
        aim = rng.normal(0, (0.16, 0.07)) if listening or rng.random() < 0.7 else rng.normal(0, (0.5, 0.25))
        gaze[start:] = aim
    gaze[:, 0] -= 0.6 * (turn[:, 1] - base[1])  # eyes stay on the camera while the head turns
    breath = BREATH * np.sin(2 * np.pi * rng.uniform(*BREATH_HERTZ) * time_s + rng.uniform(0, 6.28))
    body = np.stack([swayed(SWAY, 0.03, 0.2), breath, np.zeros(T)], 1)
    shift = np.stack([swayed(amplitude) for amplitude in SHIFT], 1)
    shift[:, 0] += body[:, 0]
    shift[:, 1] += 0.5 * breath
    emotion = str(rng.choice(list(EMOTIONS), p=(0.4, 0.32, 0.08, 0.12, 0.08)))
    strength = np.clip(rng.uniform(0.2, 0.9) * (0.75 + swayed(0.5, 0.03, 0.15)), 0, 1)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    blink = blink_frames(torch.from_numpy(jaw_T.astype(np.float32)), generator).numpy()
    brow = np.clip(0.1 + swayed(0.2) + 0.45 * stress, 0, 1)
    if user_T is not None:
        brow = np.clip(brow + 0.5 * _smooth(user_T, 0.15), 0, 1)
    return Body(blink, gaze, turn, shift, body, brow, emotion, strength, np.full(T, listening), base)


def hold_head(body: Body) -> Body:
    """The same with head and body at rest: only the face moves."""
    return replace(body, turn=np.tile(body.rest, (len(body.turn), 1)), shift=np.zeros_like(body.shift), body=np.zeros_like(body.body))


def nods(user_T: np.ndarray, rng: np.random.Generator) -> list[tuple[int, float]]:
    """(first frame, strength) of each nod: most phrases of the other end in one, and long ones have smaller ones at what is stressed. Each
    begins 80 to 200 ms after its cause, so that a causal model can know it."""
    out, speaking_for, since = list[tuple[int, float]](), 0, 100
    level = _smooth(user_T, 0.5)
    for t in range(1, len(level)):
        since += 1
        loud = level[t] > SPEECH_LEVEL
        ended = not loud and speaking_for >= PHRASE_FRAMES
        stressed = loud and since > 22 and level[t] > 0.6 and level[t] < level[t - 1]
        if (ended and since > 8 and rng.random() < 0.9) or (stressed and rng.random() < 0.5):
            out.append((t + int(rng.integers(2, 6)), 1.0 if ended else 0.5))
            since = 0
        speaking_for = speaking_for + 1 if loud else 0
    return [(start, strength) for start, strength in out if start < len(user_T)]


def body_actions(body: Body, t: int) -> dict[str, float]:
    """Action weights of frame t, without the mouth's."""
    out: dict[str, float] = {}
    for name, value in EMOTIONS[body.emotion].items():
        for side in "LR":
            out[f"{name}_{side}"] = value * float(body.strength[t])
    right, up, shut = float(body.gaze[t, 0]), float(body.gaze[t, 1]), float(body.blink[t])
    for side, sign in (("L", 1), ("R", -1)):  # the person's left eye looks outwards to the image's right
        out[f"eyeBlink_{side}"] = shut
        out[f"eyeWide_{side}"] = out.get(f"eyeWide_{side}", 0) * (1 - shut)
        out[f"eyeSquint_{side}"] = out.get(f"eyeSquint_{side}", 0) * (1 - shut)
        out[f"eyeLook{'Out' if sign * right > 0 else 'In'}_{side}"] = min(1.0, abs(right))
        out[f"eyeLook{'Up' if up > 0 else 'Down'}_{side}"] = min(1.0, abs(up))
        out[f"browOuterUp_{side}"] = out.get(f"browOuterUp_{side}", 0) + 0.25 * float(body.brow[t])
        out[f"browInnerUp_{side}"] = out.get(f"browInnerUp_{side}", 0) + 0.30 * float(body.brow[t])
    return out


def _events(T: int, least_s: float, most_s: float, rng: np.random.Generator) -> list[int]:
    at, out = int(FPS * rng.uniform(0, most_s)), []
    while at < T:
        out.append(at)
        at += int(FPS * rng.uniform(least_s, most_s))
    return out


def _smooth(x: np.ndarray, rate: float) -> np.ndarray:
    out, level = np.zeros(len(x)), float(x[0]) if len(x) else 0.0
    for i, value in enumerate(x.tolist()):
        level += rate * (value - level)
        out[i] = level
    return out


