"""Glasses: two rims, a bridge, two temples, and the lenses' reflection."""

from __future__ import annotations

import numpy as np

from everface.train.heads.mesh import HeadMesh
from everface.train.heads.person.clothing import Solid, join, solid_rows
from everface.train.heads.person.identity import Person

FRAME, LENS = 2, 3


def make_glasses(person: Person, mesh: HeadMesh, shape: np.ndarray) -> Solid | None:
    """The person's glasses on this neutral shape, or None."""
    if not person.glasses:
        return None
    rng = np.random.Generator(np.random.PCG64([person.seed, 7]))
    near = mesh.skin_vertices[(np.abs(np.abs(mesh.base[mesh.skin_vertices, 0]) - 3.1) < 2.6) & (np.abs(mesh.base[mesh.skin_vertices, 1] - 3.2) < 2.0)]
    eyes = mesh.base[:, 2] < 9.7
    eye = shape[(np.abs(mesh.base[:, 0] - 3.1) < 1.5) & (np.abs(mesh.base[:, 1] - 3.6) < 1.5) & eyes].mean(0)
    front = np.percentile(shape[near, 2], 97) + 0.15
    wide, tall = (2.35, 2.2) if person.glasses == "round" else (2.75, 1.95)
    power = {"round": 2.0, "square": 4.5, "thin": 3.0}[person.glasses]
    thick = (0.09 if person.glasses == "thin" else 0.17) * rng.uniform(0.85, 1.2)
    x, y = abs(eye[0]) + 0.12, eye[1] - 0.25
    angle = np.linspace(0, 2 * np.pi, 41)
    c, s = np.cos(angle), np.sin(angle)
    rim = np.stack([np.sign(c) * np.abs(c) ** (2 / power) * wide, np.sign(s) * np.abs(s) ** (2 / power) * tall], 1)
    ear = mesh.base[:, 0] > 7.3
    ear_x = np.percentile(shape[ear & (mesh.base[:, 1] > 2.5), 0], 20) - 0.1
    parts = []
    for sign in (-1, 1):
        bend = 0.16 * np.maximum(rim[:, 0] * 1.0, -1)  # lenses follow the face's curve
        ring = np.stack([sign * (x + rim[:, 0]), y + rim[:, 1], front - np.maximum(bend, -0.1)], 1)
        parts.append(tube(ring, thick))
        parts.append(_lens(ring))
        hinge = np.array([sign * (x + wide), y + 0.55 * tall, front - 0.16 * wide])
        temple = np.array([hinge, [sign * ear_x, y + 0.6 * tall, front - 3.2], [sign * ear_x, y + 0.35 * tall, 1.8], [sign * (ear_x - 0.1), y - 0.6, -0.4]])
        parts.append(tube(temple, thick * 0.9))
    bridge = np.array([[-(x - wide), y + 0.3, front + 0.05], [-0.5, y + 0.62, front + 0.35], [0.5, y + 0.62, front + 0.35], [x - wide, y + 0.3, front + 0.05]])
    parts.append(tube(bridge, thick))
    return join(parts)


def tube(path: np.ndarray, radius: float, sides: int = 6) -> Solid:
    """A round bar along a path [S, 3]."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    up = np.where(np.abs(along[:, 2:]) > 0.7, [[0, 1.0, 0]], [[0, 0, 1.0]])
    side = np.cross(along, up)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
    other = np.cross(side, along)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    normal = side[:, None] * np.cos(angle)[None, :, None] + other[:, None] * np.sin(angle)[None, :, None]
    position = path[:, None] + radius * normal
    i, j = np.meshgrid(np.arange(len(path) - 1), np.arange(sides), indexing="ij")
    a, b = i * sides + j, i * sides + (j + 1) % sides
    triangles = np.stack([np.stack([a, b, a + sides], -1), np.stack([b, b + sides, a + sides], -1)], 2).reshape(-1, 3)
    flat = position.reshape(-1, 3)
    return solid_rows(flat, normal.reshape(-1, 3), np.zeros((len(flat), 2)), FRAME, neck=np.ones(len(flat))), triangles.astype(np.int32)


def _lens(ring: np.ndarray) -> Solid:
    position = np.concatenate([ring.mean(0, keepdims=True), ring])
    normal = np.array([0, 0, 1.0]) + 0.06 * (position - position[:1])
    i = np.arange(1, len(ring))
    triangles = np.stack([np.zeros_like(i), i, i + 1], 1).astype(np.int32)
    return solid_rows(position, normal / np.linalg.norm(normal, axis=1, keepdims=True), np.zeros((len(position), 2)), LENS, neck=np.ones(len(position))), triangles
