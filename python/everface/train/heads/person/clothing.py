"""Clothes as shells of the shoulders with a neckline, and collars as bands around the neck. Rows as in `solid_rows`."""

from __future__ import annotations

import numpy as np

from everface.train.heads.mesh import HeadMesh, neck_weight
from everface.train.heads.person.identity import Person
from everface.train.heads.person.scalp import Skull, step

CLOTH, INNER, TIE = 0, 1, 2  # a tie has the paint of glasses
Solid = tuple[np.ndarray, np.ndarray]  # vertices [V, 12], triangles [F, 3]


def solid_rows(position: np.ndarray, normal: np.ndarray, uv: np.ndarray, material: int, light: np.ndarray | float = 1.0, mask: np.ndarray | float = 1.0, neck: np.ndarray | None = None) -> np.ndarray:
    """[V, 12] float32: position, normal, uv, neck weight, material, how much light reaches it, mask (drawn where >= 0)."""
    n = len(position)
    neck = neck_weight(position) if neck is None else neck
    column = [np.broadcast_to(v, n)[:, None] for v in (neck, float(material), light, mask)]
    return np.concatenate([position, normal, uv, *column], 1).astype(np.float32)


def join(parts: list[Solid]) -> Solid:
    """One solid of many."""
    start = np.cumsum([0] + [len(v) for v, _ in parts])
    return np.concatenate([v for v, _ in parts]), np.concatenate([f + s for (_, f), s in zip(parts, start)]).astype(np.int32)


def make_clothes(person: Person, mesh: HeadMesh, shape: np.ndarray) -> Solid:
    """The person's clothes on this neutral shape."""
    rng = np.random.Generator(np.random.PCG64([person.seed, 6]))
    skull, normals = Skull(shape[mesh.skin_vertices]), mesh.normals(shape)
    depth = rng.uniform(0.0, 1.2)

    def shell(material: int, gap: float, front: float, back: float, opening: float = 0.0) -> Solid:
        base = mesh.base
        z = step(-3, 5, base[:, 2])
        line = back * (1 - z) + front * z + 0.0  # height of the neckline
        mask = line - base[:, 1] + 0.06 * np.abs(base[:, 0])
        if opening:  # a jacket's V
            mask = np.minimum(mask, (np.abs(base[:, 0]) - opening * (base[:, 1] + 21) * (base[:, 2] > 0)) * 0.8 + 3 * (base[:, 2] < 1))
        faces = mesh.faces[(mesh.material <= 1) & (mask[mesh.faces].max(1) > 0) & (base[mesh.faces][:, :, 1].max(1) < -6)]
        used, index = np.unique(faces, return_inverse=True)
        fold = 0.10 * np.sin(base[used, 0] * 1.7 + 1.3 * base[used, 1]) + 0.08 * np.sin(base[used, 1] * 2.3 - base[used, 0])
        position = shape[used] + normals[used] * (gap * step(-0.1, 0.5, mask[used]) + fold * 0.6 * step(0, 3, mask[used]))[:, None]
        position = position + np.array([0, 0, 1.0]) * (0.25 * step(-13, -18, base[used, 1]) * (base[used, 2] > 0))[:, None]
        uv = np.stack([np.arctan2(base[used, 0], base[used, 2]), base[used, 1] / 6], 1)
        light = 0.55 + 0.45 * step(0, 2.5, mask[used])
        return solid_rows(position, normals[used], uv, material, light, mask[used], neck_weight(base[used])), index.reshape(-1, 3).astype(np.int32)

    def band(material: int, low: float, high: float, dip: float, gap: float, flare: float, gape: float = 0.0, thick: float = 0.0, around: int = 48, steep: float = 2.5) -> Solid:
        angle = np.linspace(-np.pi + gape, np.pi - gape, around) + np.pi  # begins and ends at the front
        front = (0.5 + 0.5 * np.cos(angle)) ** steep
        rows = []
        profile = np.linspace(0, 1, 6)
        for s in profile:
            y = low + (high - low) * s - dip * front
            ring = np.stack([np.sin(angle), y, np.cos(angle)], 1)
            bulge = thick * np.sin(np.pi * s) if thick else flare * (1 - s)
            point = np.stack([ring[:, 0] * 0.1, y, Skull.CENTER[2] + ring[:, 2] * 0.1], 1)
            rows.append(skull.push_out(point, gap + bulge))
        position = np.stack(rows)
        across, along = np.gradient(position, axis=0), np.gradient(position, axis=1)
        normal = np.cross(along, across)
        outward = position - np.array([0, 0, Skull.CENTER[2]])
        outward[..., 1] = 0
        normal *= np.sign((normal * outward).sum(2, keepdims=True))
        normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-6
        uv = np.stack(np.broadcast_arrays(angle[None], profile[:, None]), 2)
        i = (np.arange(5)[:, None] * around + np.arange(around - 1)[None]).ravel()
        triangles = np.concatenate([np.stack([i, i + 1, i + around], 1), np.stack([i + around, i + 1, i + around + 1], 1)])
        light = np.repeat(0.6 + 0.4 * np.sin(np.pi * (0.3 + 0.7 * profile)), around)
        return solid_rows(position.reshape(-1, 3), normal.reshape(-1, 3), uv.reshape(-1, 2), material, light), triangles

    kind = person.clothes
    if kind == "t-shirt":
        return join([shell(CLOTH, 0.28, -13.0 - depth, -8.6), band(CLOTH, -9.9, -9.2, 3.6 + depth, 0.34, 0.0, thick=0.12)])
    if kind == "sweater":
        high = rng.random() < 0.3
        return join([shell(CLOTH, 0.5, -11.8, -8.0), band(CLOTH, -9.4, -5.8 if high else -7.9, 2.4, 0.45, 0.2, thick=0.35)])
    if kind == "hoodie":
        return join([shell(CLOTH, 0.55, -12.2, -8.0), band(CLOTH, -10.5, -6.6, 3.2, 0.7, 0.8, 0.25, thick=0.9)])
    tie = kind == "suit" and person.sex == "man" and rng.random() < 0.6
    # It falls to the front as an open collar does; one that stands up to its ends looks clerical.
    collar = band(INNER, -9.7, -7.6, 3.9 if tie else 5.6, 0.42, 0.95, 0.08 if tie else 0.16, steep=1.5)
    if kind == "shirt":
        body = shell(CLOTH, 0.35, -13.4, -8.0)
        collar[0][:, 9] = CLOTH
        return join([body, collar])
    jacket = shell(CLOTH, 0.75, -9.4, -8.3, opening=rng.uniform(0.26, 0.42))
    shirt = shell(INNER, 0.3, -11.6 if tie else -13.6, -8.0)
    return join([shirt, collar, jacket, *([_tie(skull)] if tie else [])])


def _tie(skull: Skull) -> Solid:
    y = np.linspace(-10.6, -19, 14)
    half = np.interp(y, [-19, -12.0, -11.6, -10.6], [1.3, 0.62, 0.45, 0.75])
    middle = skull.push_out(np.stack([np.zeros(14), y, np.full(14, 1.0)], 1), 0.75)
    position = np.concatenate([middle + np.array([s, 0, 0]) * half[:, None] - np.array([0, 0, 0.12]) * abs(s) for s in (-1, 0, 1)])
    normal = np.concatenate([np.tile([0.5 * s, 0.0, 1.0], (14, 1)) / np.hypot(1, 0.5 * s) for s in (-1, 0, 1)])
    i = np.concatenate([np.arange(13), np.arange(14, 27)])
    triangles = np.concatenate([np.stack([i, i + 1, i + 14], 1), np.stack([i + 14, i + 1, i + 15], 1)]).astype(np.int32)
    return solid_rows(position, normal, np.stack([position[:, 0], np.tile(y, 3)], 1), TIE), triangles
