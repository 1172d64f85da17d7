"""How a person moves who speaks, listens or waits: head, body, gaze, blinks and brows of each frame, for models with motion.

Drawn from the session's seed, and moved by how loud the person and the one it hears are: the head goes with stressed syllables, lids fall as a
phrase ends, and a listener nods after the other's phrase. The same audio and seed give the same motion on every placement. Rendered people
(`train.heads.motion.body`) move by the same amplitudes, but their motion knows the mouth and what comes next; this one is causal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everface.core.config import FPS, SAMPLES_PER_FRAME
from everface.networks.motion import EXPRESSION, HEAD

LOUD_RMS = 0.12  # of a voice that counts as 1
SPEECH_LEVEL = 0.12  # loudness from which somebody speaks
EASE_FRAMES = 25  # in which a stream leaves the pose of its image
# How far a head goes: radians of (pitch, yaw, roll), of a loud voice, of a listener's tilt and nods; head units of shift (right, up, near), body and breath
TURN, STRESS, TILT, NOD = (0.03, 0.05, 0.022), 0.03, (0.012, 0.035), (0.05, 0.09)
SHIFT, SWAY, BREATH = (0.10, 0.06, 0.07), 0.07, 0.06
BREATH_HERTZ = (0.2, 0.32)
NOD_FRAMES, NOD_DIPS = (16, 28), (1, 4)
PAUSE_FRAMES = 4  # of silence end a phrase
PHRASE_FRAMES = 9  # the shortest phrase of another that is answered by a nod
BLINK_FRAMES, BLINK_REST = 7, FPS  # a blink, and the least time between two
BLINK_WAIT = (2 * FPS, 5 * FPS)  # after which one comes without a reason
GAZE_FRAMES = (round(0.8 * FPS), round(3.5 * FPS))  # how long the eyes rest on one place
AWAY_SHARE = 0.3  # of the places are not the camera's, while the person does not listen
KEPT_STATES = 32  # blocks
SMILE_SHARE = 0.5  # of the sessions have a faint smile

Curve = Callable[[Any], Any]
"""Frame number to value; also of several, as an array."""


@dataclass(frozen=True)
class MotionState:
    """What the motion of the next frame depends on, besides the audio and the seed."""

    frame: int = 0
    stress: float = 0.0  # loudness of the person, smoothed
    usual: float = 0.0  # the same over seconds
    user_level: float = 0.0  # loudness of the other, smoothed
    spoken: int = 0  # frames for which the person has spoken
    quiet: int = PAUSE_FRAMES  # frames since
    user_speaks_for: int = 0
    attention: float = 0.0  # 1: listens
    since_blink: int = 0
    blink_due: int = 2 * FPS  # frames after the last one, at the latest
    gaze: tuple[float, float] = (0.0, 0.0)
    gaze_left: int = FPS
    nod: tuple[int, int, float, int] = (0, 0, 0.0, 1)  # frame in it, length, depth in radians, dips


class MotionSource:
    """One person's in a session. Not thread-safe, but `interrupt` may be called from another thread."""

    def __init__(self, seed: int, person: int = 0) -> None:
        self._seed = seed, person
        rng = np.random.Generator(np.random.PCG64([seed, person]))
        self._turn = [sway(rng, amplitude) for amplitude in TURN]
        self._body, self._shift = sway(rng, SWAY, 0.03, 0.2), [sway(rng, amplitude) for amplitude in SHIFT]
        self._brow, self._mood = sway(rng, 0.2), sway(rng, 0.3, 0.03, 0.15)
        self._breath, self._phase = rng.uniform(*BREATH_HERTZ), rng.uniform(0, 2 * math.pi)
        self._tilt = float(rng.choice((-1, 1)) * rng.uniform(*TILT))
        self._smile = float(rng.uniform(0.2, 0.5)) if rng.random() < SMILE_SHARE else 0.0
        self._states = {0: MotionState()}  # before block n
        self._last_turn, self._wanted = 0, 0

    def block(self, index: int, turn: int, voice_S: Tensor, user_S: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values of HEAD [10, T], of which those of the mouth are 0, and of EXPRESSION [8, T], of the T frames of block `index`, whose audio is given. user_S: what the person hears.
        Blocks come in rising order; in a new turn motion goes on from where it was before the block that `interrupt` named."""
        after = index
        if turn != self._last_turn:
            self._last_turn, after = turn, min(self._wanted, index)
        after = max((n for n in self._states if n <= after), default=min(self._states))
        state, rows = self._states[after], list[dict[str, float]]()
        rng = np.random.Generator(np.random.PCG64([*self._seed, 1 + state.frame]))
        own_T = loudness(voice_S)
        for own, other in zip(own_T, loudness(user_S) if user_S is not None else np.zeros_like(own_T), strict=True):
            state = self._advance(state, float(own), float(other), rng)
            rows.append(self._frame(state))
        self._states = {n: s for n, s in self._states.items() if index - KEPT_STATES < n <= after}
        self._states[index + 1] = state
        head_TC, expression_TC = (torch.tensor([[row.get(name, 0.0) for name in names] for row in rows]) for names in (HEAD, EXPRESSION))
        return head_TC.T.contiguous(), expression_TC.T.contiguous()

    def interrupt(self, wanted: int) -> None:
        """Blocks from number `wanted` on were not shown."""
        self._wanted = wanted

    def _advance(self, s: MotionState, own: float, other: float, rng: np.random.Generator) -> MotionState:
        """The next frame's."""
        speaks, hears = own > SPEECH_LEVEL, other > SPEECH_LEVEL and own <= SPEECH_LEVEL
        spoken, quiet = (s.spoken + 1, 0) if speaks else (s.spoken, s.quiet + 1)
        ended = quiet == PAUSE_FRAMES and spoken > 0
        since, due = s.since_blink + 1, s.blink_due
        if since > BLINK_REST and (since >= due or (ended and rng.random() < 0.9)):
            since, due = -BLINK_FRAMES, int(rng.integers(*BLINK_WAIT))
        gaze, left = s.gaze, s.gaze_left - 1
        if left <= 0:
            away = s.attention < 0.5 and rng.random() < AWAY_SHARE
            right, up = rng.normal(0, (0.5, 0.25) if away else (0.16, 0.07))
            gaze, left = (float(right), float(up)), int(rng.integers(*GAZE_FRAMES))
        at, length, depth, dips = s.nod
        nod = (at + 1, length, depth, dips) if at < length else (0, 0, 0.0, 1)
        phrase = s.user_speaks_for >= PHRASE_FRAMES and not hears
        if phrase and not nod[1] and rng.random() < 0.9:
            nod = (0, int(rng.integers(*NOD_FRAMES)), float(rng.uniform(*NOD)), int(rng.integers(*NOD_DIPS)))
        attention = s.attention + 0.05 * ((1.0 if hears else 0.0 if speaks else s.attention) - s.attention)
        return replace(
            s, frame=s.frame + 1, stress=s.stress + 0.12 * (own - s.stress), usual=s.usual + 0.01 * (own - s.usual), user_level=s.user_level + 0.15 * (other - s.user_level),
            spoken=0 if ended else spoken, quiet=quiet, user_speaks_for=s.user_speaks_for + 1 if hears else 0, attention=attention, since_blink=since, blink_due=due,
            gaze=gaze, gaze_left=left, nod=nod,
        )  # fmt: skip

    def _frame(self, s: MotionState) -> dict[str, float]:
        """Values of HEAD and EXPRESSION by name, those that are not 0."""
        n = s.frame - 1
        at_s, (at, length, depth, dips) = n / FPS, s.nod
        dip = depth * math.sin(math.pi * at / length) * math.sin(2 * math.pi * dips * at / length + 0.3) if length else 0.0
        pitch, yaw, roll = (curve(n) for curve in self._turn)
        breath, body = BREATH * math.sin(2 * math.pi * self._breath * at_s + self._phase), self._body(n)
        right, up, near = (curve(n) for curve in self._shift)
        phase = s.since_blink + BLINK_FRAMES + 1  # 1 to BLINK_FRAMES in a blink
        blink = min(1.0, 1.45 * math.sin(math.pi * phase / (BLINK_FRAMES + 1))) if s.since_blink < 0 else 0.0
        named = {
            "pitch": pitch + STRESS * (s.stress - s.usual) + dip, "yaw": yaw, "roll": roll + self._tilt * s.attention, "right": right + body, "up": up + 0.5 * breath,
            "near": near, "sway": body, "breath": breath, "gaze_right": s.gaze[0] - 0.6 * yaw, "gaze_up": s.gaze[1],
            "brow": min(1.0, max(0.0, 0.1 + self._brow(n) + 0.3 * s.stress + 0.5 * s.user_level)), "happy": max(0.0, self._smile * (0.75 + self._mood(n))),
        }  # fmt: skip
        ease = min(1.0, s.frame / EASE_FRAMES)
        ease *= ease * (3 - 2 * ease)
        return {name: ease * value for name, value in named.items()} | {"blink": blink}


def sway(rng: np.random.Generator, amplitude: float, slow: float = 0.05, fast: float = 0.40) -> Curve:
    """Three sines between these frequencies in Hz, which together reach the amplitude."""
    hertz, phase, weight = rng.uniform(slow, fast, 3), rng.uniform(0, 2 * np.pi, 3), 0.3 + rng.random(3)
    return lambda n: amplitude * sum(w * np.sin(2 * np.pi * h * n / FPS + p) for h, p, w in zip(hertz, phase, weight / weight.sum(), strict=True))


def loudness(voice_S: Tensor) -> np.ndarray:
    """[T], 0..1, of each frame: its RMS as a share of a loud voice's."""
    rms_T = voice_S.unflatten(0, (-1, SAMPLES_PER_FRAME)).square().mean(1).sqrt()
    return (rms_T / LOUD_RMS).clamp(max=1).numpy()
