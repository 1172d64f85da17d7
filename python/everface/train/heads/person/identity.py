"""Who a person is: shape, age, sex, colors, and which hair, brows, glasses and clothes, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HAIR_KINDS = (
    "bald", "buzz", "crop", "side part", "swept back", "fringe", "long straight", "long wavy", "bob", "curly", "afro", "ponytail", "bun", "receding",
)  # fmt: skip
HAIR_ODDS = {
    "man": (0.06, 0.14, 0.20, 0.17, 0.12, 0.08, 0.02, 0.02, 0.0, 0.08, 0.03, 0.0, 0.0, 0.08),
    "woman": (0.0, 0.01, 0.03, 0.06, 0.06, 0.08, 0.17, 0.17, 0.13, 0.08, 0.03, 0.09, 0.09, 0.0),
}
TONES = ((0.90, 0.72, 0.63), (0.86, 0.66, 0.55), (0.80, 0.59, 0.46), (0.70, 0.49, 0.36), (0.56, 0.37, 0.26), (0.46, 0.31, 0.225), (0.36, 0.245, 0.185))
HAIR_COLORS = ((0.035, 0.027, 0.024), (0.075, 0.048, 0.032), (0.15, 0.088, 0.05), (0.27, 0.17, 0.09), (0.52, 0.37, 0.20), (0.66, 0.52, 0.32), (0.36, 0.13, 0.05))
GRAY = (0.56, 0.55, 0.54)
IRIS_COLORS = ((0.16, 0.085, 0.04), (0.26, 0.15, 0.07), (0.32, 0.25, 0.11), (0.22, 0.29, 0.17), (0.22, 0.34, 0.46), (0.36, 0.42, 0.46))
CLOTHES = ("t-shirt", "shirt", "suit", "sweater", "hoodie")


@dataclass(frozen=True)
class Person:
    """All that stays the same in a clip. Colors are sRGB in 0..1."""

    seed: int
    components: np.ndarray  # [100] identity coefficients
    sex: str
    age: float  # years
    tone: np.ndarray
    skin_contrast: float
    freckles: float
    wrinkles: float
    make_up: float
    stubble: float
    beard: str  # "", "short", "full", "moustache", "goatee"
    lips: np.ndarray
    hair: str
    hair_color: np.ndarray
    brow_color: np.ndarray
    brow_arch: float
    brow_weight: float
    iris: np.ndarray
    pupil: float
    teeth: np.ndarray
    glasses: str  # "", "round", "square", "thin"
    glasses_color: np.ndarray
    clothes: str
    cloth_color: np.ndarray
    inner_color: np.ndarray


def sample_person(seed: int) -> Person:
    """The person of this seed, the same on every machine."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    sex = "woman" if rng.random() < 0.5 else "man"
    age = float(18 + 62 * rng.beta(1.2, 1.9))
    components = rng.normal(0, 0.72, 100).clip(-1.7, 1.7)
    depth = rng.beta(1.0, 1.25) * (len(TONES) - 1)
    low = int(depth)
    tone = np.array(TONES[low]) * (1 - depth + low) + np.array(TONES[min(low + 1, len(TONES) - 1)]) * (depth - low)
    tone = tone * rng.uniform(0.95, 1.05) + rng.normal(0, 0.008, 3)
    dark = depth > 3.2
    color = np.array(HAIR_COLORS[int(rng.integers(0, 3 if dark else len(HAIR_COLORS)))] if not (2 < depth <= 3.2) else HAIR_COLORS[int(rng.integers(0, 4))])
    gray = float(np.clip((age - 42 + rng.normal(0, 8)) / 30, 0, 1)) * (1 if rng.random() < (0.85 if sex == "man" else 0.45) else 0.1)
    hair_color = color * rng.uniform(0.85, 1.2) * (1 - gray) + np.array(GRAY) * gray * rng.uniform(0.8, 1.15)
    brow = color * (1 - 0.6 * gray) + 0.6 * gray * np.array(GRAY)
    iris = np.array(IRIS_COLORS[int(rng.integers(0, 2 if dark else len(IRIS_COLORS)))]) * rng.uniform(0.8, 1.2)
    hair = str(rng.choice(HAIR_KINDS, p=np.array(HAIR_ODDS[sex]) / sum(HAIR_ODDS[sex])))
    if dark and rng.random() < 0.5:
        hair = str(rng.choice(["afro", "curly", "buzz", "crop"] if sex == "man" else ["afro", "curly", "long wavy", "bun"]))
    beard = str(rng.choice(["", "short", "full", "moustache", "goatee"], p=(0.52, 0.2, 0.14, 0.05, 0.09))) if sex == "man" else ""
    make_up = float(rng.uniform(0.3, 1)) if sex == "woman" and rng.random() < 0.55 else 0.0
    lip_tint = np.array([0.74, 0.36, 0.34]) if make_up < 0.5 else np.array([rng.uniform(0.5, 0.8), 0.16, rng.uniform(0.2, 0.34)])
    strength = 0.30 + 0.35 * make_up + (0.12 if sex == "woman" else 0)
    cloth = rng.choice([0.14, 0.22, 0.32, 0.5, 0.75]) * (0.6 + 0.4 * rng.random(3)) + rng.normal(0, 0.03, 3)
    return Person(
        seed=seed, components=components, sex=sex, age=age, tone=tone.clip(0.08, 0.95), skin_contrast=float(rng.uniform(0.75, 1.05)),
        freckles=float(rng.uniform(0.3, 1)) if depth < 2.2 and rng.random() < 0.22 else 0.0,
        wrinkles=float(np.clip((age - 30) / 40, 0, 1)), make_up=make_up,
        stubble=float(rng.uniform(0.15, 0.8)) if sex == "man" and rng.random() < 0.65 else 0.0,
        beard=beard, lips=(tone * np.array([0.92, 0.62, 0.62]) * (1 - strength) + lip_tint * strength * (0.35 + 0.65 * tone[0])).clip(0.05, 0.9),
        hair=hair, hair_color=hair_color.clip(0.015, 0.85), brow_color=(brow * min(1.0, 0.42 / brow.max())).clip(0.02, 0.5),
        brow_arch=float(rng.uniform(0, 1)), brow_weight=float(rng.uniform(0.45, 0.8) if sex == "woman" else rng.uniform(0.7, 1.25)),
        iris=iris.clip(0.03, 0.6), pupil=float(rng.uniform(0.36, 0.5)), teeth=np.array([0.86, 0.83, 0.76]) * rng.uniform(0.88, 1.05) - np.array([0, 0, 0.06 * rng.random()]),
        glasses=str(rng.choice(["round", "square", "thin"])) if rng.random() < 0.22 else "", glasses_color=rng.choice([0.02, 0.05, 0.3]) * (0.5 + rng.random(3)),
        clothes=str(rng.choice(CLOTHES, p=(0.28, 0.22, 0.22, 0.18, 0.10))), cloth_color=cloth.clip(0.02, 0.9),
        inner_color=np.array([0.85, 0.85, 0.86]) if rng.random() < 0.6 else (0.3 + 0.5 * rng.random(3)),
    )  # fmt: skip
