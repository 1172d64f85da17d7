"""A person's skin as a texture of the face: tone times photographed detail, then lips, brows, freckles, wrinkles, stubble and make-up.

Alpha is height, for bumps: 128 is level.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from everface.train.heads.mesh import HeadMesh, read_mesh
from everface.train.heads.person.brows import paint_brows
from everface.train.heads.person.identity import Person

SIDE = 512
BEARD_SHADE = np.array([0.80, 0.80, 0.86])


@lru_cache(maxsize=8)
def _spectrum(sigma: float) -> np.ndarray:
    f = np.fft.fftfreq(SIDE)
    return np.exp(-2 * (np.pi * sigma) ** 2 * (f[:, None] ** 2 + f[None, : SIDE // 2 + 1] ** 2))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [512, 512] or [512, 512, C]."""
    if image.ndim == 3:
        return np.stack([blur(image[..., k], sigma) for k in range(image.shape[2])], -1)
    return np.fft.irfft2(np.fft.rfft2(image, norm="backward") * _spectrum(sigma), s=image.shape).astype(np.float32)


def step(lo: float, hi: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


class SkinDetail:
    """What all people share: photographed detail without brows and stubble, and masks, all on the face's texture."""

    def __init__(self, mesh: HeadMesh) -> None:
        self.position = np.nan_to_num(mesh.surface, nan=0.0)
        self.inside = ~np.isnan(mesh.surface[..., 0])
        v, u = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
        self.u, self.v, side = u, v, np.abs(u - 0.497)
        x, y, z = np.moveaxis(self.position, -1, 0)
        photo = self._photo(mesh.albedo)
        ratio = photo[..., 0] / (photo[..., 1] + 1e-3)
        near_mouth = (side < 0.125) & (v > 0.47) & (v < 0.665)
        shape = np.clip(1 - ((u - 0.497) / 0.108) ** 2 - ((v - 0.563) / 0.083) ** 2, 0, 1)
        self.lips = blur(step(1.55, 1.85, blur(ratio, 2.0)) * near_mouth * (shape > 0) if len(mesh.albedo) else step(0, 0.2, shape), 1.5)
        lower = step(-1.2, -2.6, y) * step(-11.5, -9.5, y) * step(0.2, 2.5, z)
        side_burn = step(6.0, 6.8, np.abs(x)) * step(3.4, 1.0, y) * step(-10, -8, y) * step(1.5, 3.5, z)
        cheek = step(-4.2, -1.4, y + 0.42 * (np.abs(x) - 2.6)) * step(2.2, 3.4, np.abs(x)) * step(7.4, 5.6, np.abs(x))
        self.beard = blur(np.clip(np.maximum(lower * (1 - cheek), side_burn), 0, 1) * (1 - self.lips), 5)
        self.moustache = blur(step(-0.9, -1.5, y) * step(-3.6, -3.0, y) * step(3.0, 2.2, np.abs(x)) * (z > 8) * (1 - self.lips), 3)
        self.chin = step(-4.2, -5.2, y) * step(2.9, 1.7, np.abs(x)) * (z > 6)
        self.lids = np.clip(1 - (np.hypot((side - 0.17) / 0.075, (v - 0.272) / 0.035)), 0, 1)
        self.under_eye = np.clip(1 - (np.hypot((side - 0.15) / 0.07, (v - 0.318) / 0.022)), 0, 1)
        self.cheeks = np.exp(-(((side - 0.235) / 0.07) ** 2) - ((v - 0.41) / 0.055) ** 2)
        self.nose = np.exp(-((side / 0.06) ** 2) - ((v - 0.42) / 0.04) ** 2)
        self.detail = self._clean(photo, side)

    def _photo(self, albedo: np.ndarray) -> np.ndarray:
        if not len(albedo):
            rng = np.random.Generator(np.random.PCG64(7))
            mottle = blur(rng.standard_normal((SIDE, SIDE)).astype(np.float32), 3) * 0.35
            return (0.7 + 0.10 * mottle[..., None] + np.array([0.08, -0.06, -0.12])).astype(np.float32)
        from PIL import Image

        return np.asarray(Image.fromarray(albedo).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255

    def _clean(self, photo: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Ratio to the mean skin, brows and stubble and lips filled from their surroundings, pores added where they were."""
        edge = blur(self.inside.astype(np.float32), 8)
        valid = step(0.75, 0.98, edge)
        mean = photo[self.inside & (self.v > 0.05) & (self.v < 0.16)].mean(0)
        brow = blur(((side > 0.01) & (side < 0.28) & (self.v > 0.175) & (self.v < 0.262)).astype(np.float32), 4)
        hole = np.clip(np.maximum(brow, blur((self.lips > 0.1).astype(np.float32), 4)) * 1.2, 0, 1)
        mole = blur((photo.mean(2) < blur(photo, 4).mean(2) - 0.05).astype(np.float32), 1.5) * (self.v > 0.3)
        known = ((1 - hole) * (1 - np.clip(1.5 * self.beard, 0, 0.98)) * (1 - np.clip(3 * mole, 0, 1)) * self.inside).astype(np.float32) + 1e-4
        wide = blur(photo * known[..., None], 22) / blur(known, 22)[..., None]
        near = blur(photo * known[..., None], 5) / np.maximum(blur(known, 5), 1e-3)[..., None]
        trust = step(0.15, 0.6, blur(known, 5))[..., None]
        low = near * trust + wide * (1 - trust)
        high = np.clip(photo / np.maximum(blur(photo, 5), 0.02), 0.7, 1.3)
        rng = np.random.Generator(np.random.PCG64(3))
        pores = 1 + 0.035 * (blur(rng.standard_normal((SIDE, SIDE)).astype(np.float32), 0.8) * 2.2)[..., None]
        plain = np.clip(known * 1.05, 0, 1)[..., None]
        ratio = low / mean * (high * plain + pores * (1 - plain))
        return 1 + (ratio - 1) * valid[..., None]


@lru_cache(maxsize=2)
def read_detail(path: Path) -> SkinDetail:
    return SkinDetail(read_mesh(path))


def paint_skin(person: Person, detail: SkinDetail) -> np.ndarray:
    """Texture [512, 512, 4] uint8, row 0 at v = 1: sRGB and height."""
    rng = np.random.Generator(np.random.PCG64([person.seed, 2]))

    def noise(sigma: float) -> np.ndarray:
        n = blur(rng.standard_normal((SIDE, SIDE)).astype(np.float32), sigma)
        return n / n.std()

    darkness = float(1 - person.tone.mean())
    color = person.tone * detail.detail ** (person.skin_contrast * (1 - 0.35 * darkness))
    color = color * (1 + 0.014 * noise(14)[..., None] + 0.012 * noise(2.5)[..., None])
    flush = (0.5 * detail.cheeks + 0.35 * detail.nose) * rng.uniform(0.3, 1)
    color = color * (1 - flush[..., None] * np.array([0.0, 0.09, 0.08]))
    height = 0.25 * noise(1.0) + 0.3 * noise(2.0)
    if person.freckles:
        spots = step(2.15, 2.9, noise(1.1)) * (0.3 + detail.cheeks + 1.2 * detail.nose)
        color = color * (1 - (0.55 * person.freckles * np.clip(spots, 0, 1))[..., None] * np.array([0.45, 0.62, 0.75]))
    moles = step(4.1, 4.4, noise(1.6))
    color = color * (1 - 0.6 * moles[..., None])
    color, height = _wrinkle(person, detail, color, height, noise)
    lips = detail.lips[..., None] * 0.9
    color = color * (1 - lips) + person.lips * (1 + 0.05 * noise(1.2)[..., None]) * lips
    height = height * (1 - detail.lips) + detail.lips * 0.5 * noise(1.0)
    if person.stubble or person.beard:
        hairs = np.clip(0.55 + 0.35 * noise(0.7), 0, 1)
        area = detail.beard * {"moustache": 0.25, "goatee": 0.3}.get(person.beard, 1.0) + detail.moustache * 0.5
        shadow = np.clip(area * person.stubble * hairs, 0, 1)[..., None]
        color = color * (1 - 0.4 * shadow * (1 - BEARD_SHADE * 0.6)) + 0.0
        color = color * (1 - 0.5 * shadow) + 0.5 * shadow * (0.6 * person.tone * BEARD_SHADE + 0.4 * person.brow_color)
        if person.beard:
            full = {"short": 0.55, "full": 0.95}.get(person.beard, 0.0) * detail.beard
            some = {"moustache": detail.moustache, "goatee": np.maximum(detail.moustache, detail.chin * detail.beard)}.get(person.beard, full)
            cover = np.clip(np.maximum(full, 0.9 * some) * (0.35 + hairs), 0, 0.93)[..., None]
            color = color * (1 - cover) + cover * person.brow_color * (1 + 0.25 * noise(0.8)[..., None])
    if person.make_up:
        shade = person.make_up * detail.lids[..., None] * 0.7
        color = color * (1 - shade) + shade * np.array([0.42, 0.28, 0.26]) * (0.5 + person.tone.mean())
        color = color * (1 - (0.35 * person.make_up * detail.cheeks)[..., None] * np.array([0.0, 0.22, 0.18]))
    color = paint_brows(person, color)
    rgb = np.clip(color, 0.01, 0.98) * 255
    return np.concatenate([rgb, np.clip(128 + 20 * height, 0, 255)[..., None]], -1).round().astype(np.uint8)


def _wrinkle(person: Person, detail: SkinDetail, color: np.ndarray, height: np.ndarray, noise) -> tuple[np.ndarray, np.ndarray]:
    """Lines of the forehead, beside the eyes, and from the nose to the mouth; bags under the eyes."""
    if person.wrinkles <= 0.02:
        return color * (1 - (0.06 * detail.under_eye)[..., None]), height
    u, v, side = detail.u, detail.v, np.abs(detail.u - 0.497)
    bend = 0.006 * noise(24)
    forehead = np.exp(-((np.sin((v + bend + 0.05 * side**2) * 2 * np.pi / 0.032)) ** 2) / 0.10) * step(0.05, 0.08, v) * step(0.19, 0.165, v) * step(0.3, 0.15, side)
    angle, radius = np.arctan2(v - 0.285, side - 0.20), np.hypot(v - 0.285, side - 0.20)
    crow = np.exp(-((np.sin(angle * 7 + 20 * bend)) ** 2) / 0.12) * step(0.05, 0.07, radius) * step(0.14, 0.09, radius) * (side > 0.24)
    fold = np.exp(-((side - (0.085 + 0.55 * np.clip(v - 0.44, 0, 1) + bend)) ** 2) / 0.00005) * step(0.43, 0.47, v) * step(0.60, 0.53, v)
    lines = person.wrinkles * (0.45 * forehead + 0.5 * crow + 0.7 * fold + 0.35 * detail.under_eye)
    color = color * (1 - (0.30 * np.clip(lines, 0, 1))[..., None] * np.array([0.8, 1.0, 1.0]))
    age_spots = step(2.6, 3.1, noise(3)) * person.wrinkles * step(0.45, 0.9, np.full_like(u, person.wrinkles))
    return color * (1 - 0.18 * age_spots[..., None]), height - 5 * lines
