"""The head's geometry: what the npz holds, made ready for drawing; a person's shape, and its vertices and normals in each frame."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from everface.core.errors import BadInput

DRAWN = ("M_Face", "M_BackHead", "M_GumsTongue", "M_Teeth", "M_ScleraLeft", "M_ScleraRight", "M_EyeLashes")
SKIN, BACK, GUMS, TEETH, EYE, LASHES = 0, 1, 2, 3, 4, 6  # material numbers of the shader
EYE_CENTERS = ((3.09, 3.614, 8.05), (-3.09, 3.614, 8.05))


class HeadMesh:
    """Corners are vertices split where their UVs differ: `corner` [C] names the vertex of each, `static` [C, 6] is uv, neck weight,
    material and two values by material (scalp and lips; eye coordinates), `triangles` [F, 3] index corners."""

    def __init__(self, path: Path) -> None:
        if not Path(path).exists():
            raise BadInput(f"{path} does not exist: make it with `python -m everface.train.heads.assets CHECKOUT {path}`")
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
        materials = list(data["materials"])
        number = np.array([DRAWN.index(m) if m in DRAWN else -1 for m in materials])[data["material"]]
        number[number == 5] = EYE
        keep = number >= 0
        faces, uv_faces, number = data["faces"][keep], data["uv_faces"][keep], number[keep]
        used, index = np.unique(faces, return_inverse=True)
        self.base = data["base"][used]
        self.identities = data["identities"][:, used].astype(np.float32).reshape(len(data["identities"]), -1)
        self.actions = data["actions"][:, used].astype(np.float32).reshape(len(data["names"]), -1)
        self.names = [str(n) for n in data["names"]]
        self.faces = index.reshape(-1, 3).astype(np.int32)
        self.material = number
        order = self.faces.ravel().argsort(kind="stable")  # for normals: the faces of each vertex side by side, and where each begins
        self.faces_of = (order // 3).astype(np.int32)
        self.first_of = np.searchsorted(self.faces.ravel()[order], np.arange(len(used)))
        self.albedo, self.surface = data["albedo"], data["surface"].astype(np.float32)
        pairs = np.stack([self.faces.ravel(), uv_faces.ravel(), np.repeat(number, 3)], 1)
        corners, inverse = np.unique(pairs, axis=0, return_inverse=True)
        self.corner = corners[:, 0]
        self.triangles = inverse.reshape(-1, 3).astype(np.int32)
        self.static = self._static(data["uv"][corners[:, 1]], corners[:, 2])
        self.skin_vertices = np.unique(self.faces[self.material <= BACK])
        self._find_lips()

    def _static(self, uv: np.ndarray, number: np.ndarray) -> np.ndarray:
        p = self.base[self.corner]
        a, b = np.zeros(len(p), np.float32), np.zeros(len(p), np.float32)
        for sign, center in zip((1, -1), EYE_CENTERS):
            eye = (number == EYE) & (np.sign(p[:, 0]) == sign)
            a[(number == LASHES) & (p[:, 1] > 3.3)] = 1.0
            a[eye], b[eye] = ((p[eye] - np.array(center))[:, :2] / 1.55).T
        return np.concatenate([uv, neck_weight(p)[:, None], number[:, None], a[:, None], b[:, None]], 1).astype(np.float32)

    def _find_lips(self) -> None:
        """Vertices that measure a mouth: middle of the inner upper and lower lip, and both corners."""
        p, jaw = self.base, self.actions[self.names.index("jawOpen")].reshape(-1, 3)[:, 1]
        skin = self.skin_vertices
        middle = skin[(np.abs(p[skin, 0]) < 0.05) & (p[skin, 1] > -5) & (p[skin, 1] < -2) & (p[skin, 2] > 11.1)]
        upper, lower = middle[jaw[middle] > -1], middle[jaw[middle] < -2]
        lips = skin[(p[skin, 1] > -4) & (p[skin, 1] < -3) & (p[skin, 2] > 9.5) & (np.abs(p[skin, 0]) < 2.4)]
        self.lips = np.array([upper[p[upper, 1].argmin()], lower[p[lower, 1].argmax()], lips[p[lips, 0].argmin()], lips[p[lips, 0].argmax()]])

    def shape(self, components: np.ndarray) -> np.ndarray:
        """Neutral vertices [N, 3] of a person with these identity components."""
        known = min(len(components), len(self.identities))
        return self.base + (components[:known].astype(np.float32) @ self.identities[:known]).reshape(-1, 3)

    def pose(self, shape: np.ndarray, weights: dict[str, float]) -> np.ndarray:
        """Vertices [N, 3] with actions applied."""
        rows = [self.names.index(n) for n, w in weights.items() if w]
        values = np.array([w for w in weights.values() if w], np.float32)
        return shape + (values @ self.actions[rows]).reshape(-1, 3) if rows else shape

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """Area-weighted normals [N, 3]."""
        vertices_3N = np.ascontiguousarray(vertices.T, np.float32)
        first, second, third = (np.take(vertices_3N, corner, axis=1) for corner in self.faces.T)
        (ax, ay, az), (bx, by, bz) = second - first, third - first
        cross_3F = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
        total_3N = np.add.reduceat(np.take(cross_3F, self.faces_of, axis=1), self.first_of, axis=1)
        return np.ascontiguousarray((total_3N / (np.sqrt(np.square(total_3N).sum(0)) + 1e-9)).T)


def neck_weight(p: np.ndarray) -> np.ndarray:
    """How far a point follows the head's rotation: 1 from the chin up, 0 at the shoulders."""
    t = np.clip((p[..., 1] + 0.7 * np.maximum(p[..., 2] - 4, 0) + 15.5) / 9, 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=2)
def read_mesh(path: Path) -> HeadMesh:
    return HeadMesh(path)
