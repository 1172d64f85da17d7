"""Light and lens of a clip: surroundings as nine spherical harmonics, one key light, a camera; and what a sensor adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EYES_AT = 0.425  # of the image's height from above: the same place as in drawn characters


@dataclass(frozen=True)
class Shot:
    """Light, camera and sensor of a clip. Directions point from the head; distances are in the mesh's units (about cm)."""

    harmonics: np.ndarray  # [9, 3] in the order of the shader
    key: np.ndarray  # [3] unit direction
    key_color: np.ndarray  # [3]
    softness: float  # of the shadow's edge
    distance: float  # camera to head
    height: float  # of the image at the head
    center: np.ndarray  # [2] middle of the image at the head
    blur: float  # pixels of 256
    grain: float  # standard deviation in gray levels
    vignette: float
    jpeg: int  # quality, 0: none
    tint: np.ndarray  # [3] white balance


def lobe(direction: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Irradiance [9, 3] of a distant light: the clamped cosine to the second order."""
    x, y, z = direction / np.linalg.norm(direction)
    k = 5 / 32
    basis = [0.25, y / 2, z / 2, x / 2, 6 * k * x * y, 6 * k * y * z, k * (3 * z * z - 1) / 2, 6 * k * x * z, 1.5 * k * (x * x - y * y)]
    return np.array(basis)[:, None] * np.asarray(color)[None]


def sample_shot(seed: int) -> Shot:
    """Light and lens of this seed: window, lamp, overcast or studio, told apart by the key's strength and color."""
    rng = np.random.Generator(np.random.PCG64([seed, 4]))

    def warm(amount: float) -> np.ndarray:
        return np.array([1 + 0.22 * amount, 1.0, 1 - 0.28 * amount])

    kind = rng.choice(4, p=(0.35, 0.25, 0.2, 0.2))
    key_power, fill, softness = ((1.5, 0.75, 0.006), (1.7, 0.55, 0.003), (0.7, 1.15, 0.010), (1.25, 0.9, 0.005))[kind]
    azimuth, height = rng.normal(0, 0.75), rng.uniform(0.15, 0.85)
    key = np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
    key_warmth = rng.normal((-0.1, 0.35, 0.0, 0.1)[kind], 0.2)
    total = np.zeros((9, 3))
    total[0] += 0.22 * fill * warm(rng.normal(0, 0.15))
    total += lobe(np.array([0, 1.0, 0.1]), 0.55 * fill * warm(rng.normal(-0.2, 0.2)))  # sky or ceiling
    total += lobe(np.array([0, -1.0, 0.2]), 0.22 * fill * warm(rng.normal(0.5, 0.2)))  # floor
    total += lobe(np.array([-np.sign(key[0]) * rng.uniform(0.4, 1), 0.1, 0.7]), rng.uniform(0.25, 0.6) * fill * warm(rng.normal(0, 0.3)))
    if rng.random() < 0.5:  # light from behind, which draws the outline
        total += lobe(np.array([rng.choice([-1, 1]), 0.4, -0.7]), rng.uniform(0.3, 0.8) * warm(rng.normal(0, 0.4)))
    exposure = rng.uniform(0.85, 1.15)
    height_units = rng.uniform(29.0, 33.0)
    return Shot(
        harmonics=(total * exposure).astype(np.float32), key=key.astype(np.float32), key_color=(key_power * exposure * warm(key_warmth)).astype(np.float32),
        softness=float(softness * rng.uniform(0.7, 1.3)), distance=float(rng.uniform(48, 110)), height=float(height_units),
        center=np.array([rng.normal(0, 0.45), 3.5 - (0.5 - EYES_AT) * height_units + rng.normal(0, 0.3)]), blur=float(rng.uniform(0.25, 0.6)),
        grain=float(rng.choice([0.0, 0.6, 1.2])), vignette=float(rng.uniform(0, 0.25)), jpeg=int(rng.choice([0, 0, 95, 90, 82])),
        tint=1 + rng.normal(0, 0.02, 3),
    )  # fmt: skip


def camera_matrix(scene: Shot) -> np.ndarray:
    """[4, 4] from the mesh's space to clip space, for a square image. The head is around z = 5."""
    near, far = scene.distance - 25, scene.distance + 60
    scale = 2 * scene.distance / scene.height
    view = np.eye(4)
    view[:3, 3] = (-scene.center[0], -scene.center[1], -(scene.distance + 5))
    project = np.zeros((4, 4))
    project[0, 0] = project[1, 1] = scale
    project[2, 2], project[2, 3], project[3, 2] = -(far + near) / (far - near), -2 * far * near / (far - near), -1
    return (project @ view).astype(np.float32)


def lamp_matrix(scene: Shot) -> np.ndarray:
    """[4, 4] parallel projection from the key light over head and shoulders."""
    forward = -scene.key
    side = np.cross(forward, [0, 1, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(side, forward)
    turn = np.stack([side, up, -forward])
    out = np.eye(4)
    out[:3, :3] = turn / np.array([[19.0], [21.0], [-34.0]])
    out[:3, 3] = -out[:3, :3] @ np.array([0, -1.0, 2.0])
    return out.astype(np.float32)


def expose(image_HW3: np.ndarray, scene: Shot, rng: np.random.Generator) -> np.ndarray:
    """What lens and sensor add to a drawn image, float32 in 0..255: falloff, white balance, softness, grain, jpeg. Returns uint8."""
    side = image_HW3.shape[0]
    image = image_HW3.astype(np.float32)
    k = np.exp(-0.5 * (np.array([-1, 0, 1]) / max(scene.blur * side / 256, 0.05)) ** 2)
    k = (k / k.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        parts = [np.take(padded, range(i, i + side), axis) for i in range(3)]
        image = k[0] * parts[0] + k[1] * parts[1] + k[2] * parts[2]
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side * 2 - 1
    image = image * (1 - scene.vignette * 0.5 * (x * x + y * y))[..., None].astype(np.float32) * scene.tint.astype(np.float32)
    if scene.grain:
        image = image + scene.grain * rng.standard_normal(image.shape[:2], np.float32)[..., None]
    out = np.clip(image, 0, 255).round().astype(np.uint8)
    return _jpeg(out, scene.jpeg) if scene.jpeg else out


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
