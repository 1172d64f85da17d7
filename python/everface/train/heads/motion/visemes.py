"""Mouth shapes from phonemes: each phoneme has a target, and dominance functions blend neighbors (coarticulation, Cohen and Massaro 1993).

Targets are six articulators in 0..1 (`networks.motion.ARTICULATORS`), from which the mesh's actions follow. Dominance falls off slowly backwards and
fast forwards, so that a mouth is at most 60 ms ahead of its audio: a live model hears little ahead. Lips that must touch (m, b, p) do.
"""

from __future__ import annotations

import numpy as np
import torch

from everface.core.config import FPS
from everface.networks.audio.articulators import jaw_gain
from everface.train.heads.motion.speech import Phonemes

AHEAD_S, BEHIND_S = 0.045, 0.075  # decay of dominance before and after a phoneme
#            jaw   spread round closed teeth tongue
REST = (0.00, 0.00, 0.00, 0.60, 0.0, 0.0)
# By letter of the International Phonetic Alphabet: the same sound has the same mouth in all languages
VOWELS = {
    "i": (0.22, 0.95, 0.0, 0, 0, 0.4), "ɪ": (0.30, 0.65, 0.0, 0, 0, 0.3), "ᵻ": (0.30, 0.55, 0.0, 0, 0, 0.3), "e": (0.42, 0.75, 0.0, 0, 0, 0.3),
    "ɛ": (0.55, 0.50, 0.0, 0, 0, 0.2), "æ": (0.70, 0.40, 0.0, 0, 0, 0.1), "a": (0.80, 0.20, 0.0, 0, 0, 0.1), "ɐ": (0.60, 0.15, 0.0, 0, 0, 0.1),
    "ɑ": (0.85, 0.05, 0.05, 0, 0, 0.0), "ʌ": (0.60, 0.15, 0.0, 0, 0, 0.1), "ɒ": (0.62, 0.0, 0.35, 0, 0, 0.0), "ɔ": (0.60, 0.0, 0.55, 0, 0, 0.0),
    "o": (0.48, 0.0, 0.75, 0, 0, 0.0), "ʊ": (0.30, 0.0, 0.70, 0, 0, 0.0), "u": (0.24, 0.0, 1.00, 0, 0, 0.0), "ʉ": (0.24, 0.0, 0.90, 0, 0, 0.1),
    "y": (0.22, 0.0, 0.95, 0, 0, 0.3), "ʏ": (0.30, 0.0, 0.75, 0, 0, 0.3), "ø": (0.35, 0.0, 0.80, 0, 0, 0.2), "œ": (0.45, 0.0, 0.70, 0, 0, 0.2),
    "ɵ": (0.36, 0.0, 0.65, 0, 0, 0.1), "ə": (0.36, 0.20, 0.05, 0, 0, 0.2), "ɜ": (0.42, 0.15, 0.15, 0, 0, 0.2), "ɚ": (0.38, 0.10, 0.30, 0, 0, 0.3),
    "ɨ": (0.26, 0.50, 0.0, 0, 0, 0.3), "ɯ": (0.26, 0.35, 0.0, 0, 0, 0.1),
}  # fmt: skip
CONSONANTS = {
    "m": (0.03, 0.05, 0.05, 1.0, 0, 0.1), "b": (0.05, 0.05, 0.05, 1.0, 0, 0.1), "p": (0.05, 0.05, 0.05, 1.0, 0, 0.1), "β": (0.10, 0.05, 0.1, 0.75, 0, 0.1),
    "f": (0.08, 0.25, 0.0, 0, 1.0, 0.0), "v": (0.10, 0.20, 0.0, 0, 0.9, 0.0), "ʋ": (0.12, 0.20, 0.0, 0, 0.7, 0.0), "w": (0.14, 0.0, 1.0, 0.1, 0, 0.0),
    "θ": (0.18, 0.25, 0, 0, 0, 1.0), "ð": (0.20, 0.25, 0, 0, 0, 1.0), "ʃ": (0.14, 0.05, 0.75, 0, 0, 0.4), "ʒ": (0.14, 0.05, 0.75, 0, 0, 0.4),
    "ʂ": (0.14, 0.10, 0.50, 0, 0, 0.4), "ɕ": (0.14, 0.40, 0.25, 0, 0, 0.4), "ʑ": (0.14, 0.40, 0.25, 0, 0, 0.4), "s": (0.08, 0.60, 0.05, 0, 0, 0.5),
    "z": (0.09, 0.55, 0.05, 0, 0, 0.5), "t": (0.15, 0.30, 0.0, 0, 0, 0.8), "d": (0.17, 0.30, 0.0, 0, 0, 0.8), "n": (0.18, 0.25, 0.0, 0, 0, 0.8),
    "ɳ": (0.18, 0.25, 0.0, 0, 0, 0.8), "l": (0.26, 0.25, 0.0, 0, 0, 1.0), "ɭ": (0.26, 0.25, 0.0, 0, 0, 1.0), "ɫ": (0.26, 0.15, 0.05, 0, 0, 1.0),
    "ɾ": (0.22, 0.20, 0.05, 0, 0, 0.7), "r": (0.24, 0.20, 0.05, 0, 0, 0.7), "ɹ": (0.22, 0.05, 0.45, 0, 0, 0.5), "ʁ": (0.28, 0.10, 0.15, 0, 0, 0.1),
    "ʀ": (0.28, 0.10, 0.15, 0, 0, 0.1), "k": (0.25, 0.20, 0.0, 0, 0, 0.1), "q": (0.27, 0.15, 0.0, 0, 0, 0.0), "ɡ": (0.25, 0.20, 0.0, 0, 0, 0.1),
    "g": (0.25, 0.20, 0.0, 0, 0, 0.1), "ɣ": (0.27, 0.20, 0.0, 0, 0, 0.1), "ŋ": (0.25, 0.20, 0.0, 0, 0, 0.1), "h": (0.30, 0.15, 0.0, 0, 0, 0.0),
    "x": (0.25, 0.15, 0.05, 0, 0, 0.0), "X": (0.25, 0.15, 0.05, 0, 0, 0.0), "ç": (0.16, 0.55, 0.0, 0, 0, 0.4), "j": (0.20, 0.70, 0.0, 0, 0, 0.4),
    "ʝ": (0.18, 0.60, 0.0, 0, 0, 0.4), "ɟ": (0.18, 0.45, 0.0, 0, 0, 0.5), "c": (0.18, 0.45, 0.0, 0, 0, 0.5), "ɲ": (0.20, 0.50, 0.05, 0, 0, 0.5),
    "ʎ": (0.25, 0.40, 0.0, 0, 0, 0.9), "ʦ": (0.10, 0.50, 0.0, 0, 0, 0.6),
}  # fmt: skip
TARGETS = VOWELS | CONSONANTS
STRONG = {"m": 3.0, "b": 3.0, "p": 3.0, "f": 2.2, "v": 2.0, "w": 1.8, "u": 1.5, "ʃ": 1.4, "i": 1.3}


def targets(phoneme: str) -> list[tuple[tuple[float, ...], float]]:
    """(articulators, weight) of each part of a phoneme in IPA, which last equally long: one a letter that is known, so two of a diphthong (aɪ) and of an
    affricate (tʃ). "_": silence. Empty: what has no mouth of its own (a glottal stop, a change of language), and belongs to the phoneme before."""
    if phoneme == "_":
        return [(REST, 0.8)]
    letters = [] if phoneme.startswith("(") else [letter for letter in phoneme if letter in TARGETS]
    long = 1.25 if "ː" in phoneme else 1.0
    return [(TARGETS[letter], long * STRONG.get(letter, 1.0 if letter in VOWELS else 0.75)) for letter in letters]


def articulate(phonemes: Phonemes, pcm_S: np.ndarray, frames: int, start_s: float, style: float = 1.0) -> np.ndarray:
    """Articulators [T, 6] at 25 frames per second from `start_s`. Loud speech opens the jaw more; `style` scales all of it."""
    spoken = [(t, parts) for t, name in phonemes if (parts := targets(name))]
    ends = [t for t, _ in spoken[1:]] + [spoken[-1][0]] if spoken else []
    rows = [(t + (end - t) * k / len(parts), *part) for (t, parts), end in zip(spoken, ends, strict=True) for k, part in enumerate(parts)]
    begin = np.array([r[0] for r in rows] or [0.0])
    end = np.append(begin[1:], begin[-1] + 60.0)
    values = np.array([r[1] for r in rows] or [REST])
    weight = np.array([r[2] for r in rows] or [1.0])
    time_T1 = (start_s + (np.arange(frames) + 0.5) / FPS)[:, None]
    near = (end > time_T1[0, 0] - 1) & (begin < time_T1[-1, 0] + 1)
    begin, end, values, weight = begin[near], end[near], values[near], weight[near]
    before, after = np.maximum(begin - time_T1, 0), np.maximum(time_T1 - end, 0)
    long = np.clip((end - begin) / 0.08, 0.35, 1.3)
    dominance = weight * long * np.exp(-((before / AHEAD_S) ** 1.3)) * np.exp(-((after / BEHIND_S) ** 1.1))
    out = (dominance @ values) / (dominance.sum(1, keepdims=True) + 1e-9)
    touch = (values[:, 3] >= 0.99) * np.clip(1 - np.maximum(before - 0.02, after - 0.005) / 0.035, 0, 1)
    closed = touch.max(1, initial=0)
    out[:, 3] = np.maximum(np.minimum(out[:, 3], REST[3]), closed)
    gain = jaw_gain(torch.from_numpy(pcm_S), round(start_s * FPS), frames).numpy()
    out[:, 0] *= np.clip(style * gain, 0, 1.25) * (1 - closed)
    return np.clip(out, 0, 1)


def mouth_actions(articulators: np.ndarray) -> dict[str, float]:
    """The mesh's action weights for one frame's articulators [6]."""
    jaw, spread, rounding, closed, teeth = (float(v) for v in articulators[:5])  # the mesh has no action of the tongue
    out = {
        "jawOpen": 0.62 * jaw, "mouthFunnel": 0.55 * rounding * (0.4 + 0.6 * jaw), "mouthPucker": 0.75 * rounding * (1 - 0.55 * jaw),
        "mouthClose": 0.05 * closed, "mouthRollLower": 0.35 * teeth + 0.10 * closed, "mouthRollUpper": 0.08 * closed, "mouthShrugLower": 0.10 * closed,
    }  # fmt: skip
    for side in "LR":
        out[f"mouthStretch_{side}"] = 0.42 * spread
        out[f"mouthSmile_{side}"] = 0.10 * spread
        out[f"mouthUpperUp_{side}"] = 0.44 * jaw * (1 - 0.6 * rounding) + 0.16 * teeth + 0.20 * spread * (1 - closed)  # upper teeth show
        out[f"mouthLowerDown_{side}"] = 0.34 * jaw + 0.26 * spread * (1 - closed) * (1 - teeth)
        out[f"mouthPress_{side}"] = 0.30 * max(0.0, closed - 0.6)
    return out
