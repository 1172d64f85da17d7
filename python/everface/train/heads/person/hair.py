"""Hair as cards: strips of a dozen hairs that grow from the scalp, fall, curl and stay out of the head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from everface.train.heads.mesh import HeadMesh
from everface.train.heads.person.identity import Person
from everface.train.heads.person.scalp import Skull, scalp_mask, step


@dataclass(frozen=True)
class Style:
    """A kind of hair. Lengths in mesh units (about cm)."""

    cards: int = 900
    top: float = 7.0
    side: float = 3.0
    back: float = 4.0
    lift: float = 0.35  # how far roots stand up
    volume: float = 0.9  # gap between head and outermost hair
    fall: float = 0.25  # how much of gravity each step adds
    part: float | None = None  # where hair divides, in x; None: no part
    forward: float = 0.0  # 1: combed to the forehead, -1: back
    curl: float = 0.0
    turns: float = 2.0
    width: float = 0.95
    recede: float = 0.0
    tie: float | None = None  # height where hair is bound behind the head
    segments: int = 9
    hold: float = 0.75  # how closely hair follows the head
    paint: float = 0.9  # how dark the scalp below is


STYLES = {
    "buzz": Style(cards=900, top=0.8, side=0.5, back=0.5, lift=0.8, volume=0.1, fall=0.05, width=0.7, segments=3, paint=0.75),
    "crop": Style(hold=0.5, cards=1100, top=3.4, side=1.3, back=1.4, lift=0.55, volume=0.5, fall=0.10, forward=0.45, segments=5, width=0.7, paint=0.85),
    "side part": Style(cards=1100, top=7.5, side=2.2, back=2.4, lift=0.5, volume=0.9, fall=0.14, part=2.6, segments=7, width=0.8),
    "swept back": Style(cards=1100, top=8.5, side=3.2, back=4.0, lift=0.65, volume=1.0, fall=0.08, forward=-1.0, segments=8, width=0.8),
    "fringe": Style(cards=1100, top=7.2, side=5.5, back=6.0, lift=0.3, volume=0.75, fall=0.25, forward=1.0, segments=8),
    "long straight": Style(hold=0.6, cards=1000, top=27, side=23, back=24, lift=0.22, volume=0.7, fall=0.32, part=0.4, segments=14, width=1.15),
    "long wavy": Style(hold=0.55, cards=1000, top=25, side=21, back=22, lift=0.35, volume=1.2, fall=0.28, part=1.6, curl=0.55, turns=3.2, segments=16, width=1.1),
    "bob": Style(cards=1000, top=16, side=11.5, back=11, lift=0.28, volume=0.9, fall=0.30, part=1.9, segments=11, width=1.1),
    "curly": Style(hold=0.45, cards=1000, top=7.0, side=5.5, back=6.5, lift=0.8, volume=1.6, fall=0.12, curl=0.75, turns=3.0, segments=12, width=0.75),
    "afro": Style(hold=0.0, cards=1500, top=4.2, side=3.6, back=3.8, lift=1.6, volume=2.6, fall=0.0, curl=0.7, turns=2.2, segments=9, width=0.8),
    "ponytail": Style(cards=1000, top=16, side=13, back=11, lift=0.2, volume=0.35, fall=0.0, forward=-1.0, tie=6.0, segments=10, width=1.0),
    "bun": Style(cards=1000, top=15, side=12, back=9, lift=0.2, volume=0.35, fall=0.0, forward=-1.0, tie=9.5, segments=10, width=1.0),
    "receding": Style(cards=700, top=3.0, side=1.8, back=2.0, lift=0.35, volume=0.4, fall=0.15, forward=-0.5, recede=0.9, segments=5, width=0.75, paint=0.55),
}  # fmt: skip


@dataclass
class Cards:
    """Strips to draw: vertices [V, 14] (position, normal, along, across, along 0..1, shade, number, neck weight) and triangles [F, 3]."""

    vertices: np.ndarray
    triangles: np.ndarray
    paint: float
    style: Style


def grow_hair(person: Person, mesh: HeadMesh, shape: np.ndarray) -> Cards | None:
    """The person's hair on this neutral shape, or None."""
    if person.hair == "bald":
        return None
    rng = np.random.Generator(np.random.PCG64([person.seed, 5]))
    style = STYLES[person.hair]
    style = replace(
        style, top=style.top * rng.uniform(0.85, 1.2), side=style.side * rng.uniform(0.85, 1.2), volume=style.volume * rng.uniform(0.8, 1.25),
        part=None if style.part is None else style.part * rng.choice([-1, 1]), curl=style.curl + (0.10 if rng.random() < 0.4 else 0.0),
    )  # fmt: skip
    root, normal, base = _roots(style, mesh, shape, rng)
    skin = mesh.skin_vertices
    x, y, z = np.abs(mesh.base[skin]).T[0], *mesh.base[skin].T[1:]
    ear = (x > 7.1) & (y > -3) & (y < 5) & (z > -3.2) & (z < 3)  # short hair does not go around ears
    path = _grow(style, root, normal, base, Skull(shape[skin if style.side > 7 else skin[~ear]]), rng)
    return strips(path, normal, style, rng)


def _roots(style: Style, mesh: HeadMesh, shape: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    faces = mesh.faces[mesh.material <= 1]
    weight = scalp_mask(mesh.base[faces].mean(1), style.recede, rng.uniform(-0.5, 0.7))
    a, b, c = (mesh.base[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) * (weight > 0.35) * weight
    area = area * np.where(mesh.base[faces].mean(1)[:, 2] > -1, 1.7, 0.8)  # more where a camera looks
    pick = np.sort(rng.choice(len(faces), style.cards, p=area / area.sum()))
    u = rng.dirichlet([1, 1, 1], style.cards)[..., None]
    normals = mesh.normals(shape)
    at = faces[pick]
    normal = (normals[at] * u).sum(1)
    return (shape[at] * u).sum(1), normal / np.linalg.norm(normal, axis=1, keepdims=True), (mesh.base[at] * u).sum(1)


def _grow(style: Style, root: np.ndarray, normal: np.ndarray, base: np.ndarray, skull: Skull, rng: np.random.Generator) -> np.ndarray:
    """Paths [K, S + 1, 3] of the cards' middle lines."""
    K, S = len(root), style.segments
    x, y, z = base.T
    crown = np.array([0, 13.5, -3.0])
    away = base - crown
    if style.part is not None:
        sign = np.sign(x - style.part)
        over = np.stack([sign * 1.0, np.full(K, -0.15), np.where(z > 3, -0.15, 0.1) * 1.0], 1)
        away = over * step(-8, -1, z)[:, None] * 6 + away * (0.25 + step(-1, -8, z))[:, None]
    if style.forward:
        comb = np.stack([0.15 * x, np.zeros(K), np.full(K, 9.0 * style.forward)], 1)
        away = away * (1 - abs(style.forward) * 0.7) + comb
    if style.tie is not None:
        away = np.array([0, style.tie, -10.5]) - base
    direction = away - (away * normal).sum(1, keepdims=True) * normal
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    direction = direction + style.lift * normal + rng.normal(0, 0.13, (K, 3))
    above, behind = step(5.5, 9.5, y), step(1, -3, z)
    length = style.top * above + (1 - above) * (style.side * (1 - behind) + style.back * behind)
    length = length * rng.uniform(0.78, 1.1, K)
    gap = style.volume * rng.uniform(0.08, 1.0, K) ** 0.8
    phase, turns = rng.uniform(0, 2 * np.pi, (K, 2)), style.turns * rng.uniform(0.75, 1.25, K)
    path = np.zeros((K, S + 1, 3))
    path[:, 0] = root - 0.1 * normal
    p, h = root.copy(), length / S
    for s in range(1, S + 1):
        direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
        stop = step(0, 4, np.linalg.norm(p - np.array([0, style.tie, -10.5]), axis=1))[:, None] if style.tie is not None else 1.0
        p = p + direction * h[:, None] * stop
        grown = skull.push_out(p, gap * min(1.0, 0.35 + s / 3), style.hold)
        direction = (1 - style.fall) * direction + style.fall * np.array([0, -1.0, 0]) * (1 + 0.5 * s / S)
        step_taken = grown - path[:, s - 1]
        direction = 0.5 * direction + 0.5 * step_taken / (np.linalg.norm(step_taken, axis=1, keepdims=True) + 1e-6)
        p = grown
        path[:, s] = p
    if style.curl:
        t = np.linspace(0, 1, S + 1)
        swing = style.curl * step(0.0, 0.35, t)[None] * np.sin(2 * np.pi * turns[:, None] * t + phase[:, :1])
        other = style.curl * step(0.0, 0.35, t)[None] * np.cos(2 * np.pi * turns[:, None] * t + phase[:, 1:])
        side = np.cross(normal, np.gradient(path, axis=1).mean(1))
        side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
        path = path + swing[..., None] * side[:, None] + (0.6 * other)[..., None] * normal[:, None]
    return path


def strips(path: np.ndarray, normal: np.ndarray, style: Style, rng: np.random.Generator, neck: float = 1.0) -> Cards:
    """Cards along paths, flat on the head, narrower at their ends."""
    K, S1, _ = path.shape
    along = np.gradient(path, axis=1)
    along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-6
    outward = path - Skull.CENTER
    outward /= np.linalg.norm(outward, axis=2, keepdims=True)
    t = np.linspace(0, 1, S1)
    up = outward * (0.35 + 0.65 * t)[None, :, None] + normal[:, None] * (0.65 - 0.65 * t)[None, :, None]
    side = np.cross(along, up)
    side /= np.linalg.norm(side, axis=2, keepdims=True) + 1e-6
    roll = rng.normal(0, 0.45, K)[:, None, None]
    side = side * np.cos(roll) + np.cross(along, side) * np.sin(roll)
    width = style.width * rng.uniform(0.7, 1.25, K)[:, None] * (1 - 0.35 * t)[None]
    facing = np.cross(side, along)
    facing = np.where((facing * up).sum(2, keepdims=True) < 0, -facing, facing) * 0.45 + 0.55 * up
    radius = np.linalg.norm(path - Skull.CENTER, axis=2)
    rank = np.argsort(np.argsort(radius[:, S1 // 2])) / K  # inner hair is darker
    shade = np.clip(0.42 + 0.40 * rank[:, None] + 0.45 * t[None], 0.3, 1.0)
    number = rng.uniform(0, 1, K)
    rows = []
    for edge in (0, 1):
        position = path + (edge - 0.5) * width[..., None] * side
        flat = np.stack([np.full((K, S1), float(edge)), np.broadcast_to(t, (K, S1)), shade, np.broadcast_to(number[:, None], (K, S1))], 2)
        tilt = facing + (edge - 0.5) * 0.7 * side
        rows.append(np.concatenate([position, tilt / np.linalg.norm(tilt, axis=2, keepdims=True), along, flat, np.full((K, S1, 1), neck)], 2))
    vertices = np.stack(rows, 2).reshape(K * S1 * 2, -1).astype(np.float32)
    start = (np.arange(K)[:, None] * S1 + np.arange(S1 - 1)[None]).ravel() * 2
    triangles = np.stack([start, start + 1, start + 2, start + 2, start + 1, start + 3], 1).reshape(-1, 3).astype(np.int32)
    return Cards(vertices, triangles, style.paint, style)
