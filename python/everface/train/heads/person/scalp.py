"""Where hair grows, and the space that it must stay out of."""

from __future__ import annotations

import numpy as np


def step(lo: float, hi: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def scalp_mask(p: np.ndarray, recede: float = 0.0, line: float = 0.0) -> np.ndarray:
    """0..1 at neutral positions [..., 3]: forehead line, temples, in front of and behind the ears, nape.

    recede: 0..1 takes hair from temples and crown; line moves the forehead's line up, in mesh units.
    """
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    top = step(-0.5, 0.6, y - (9.9 + line + 0.10 * np.clip(x - 2.0, 0, 3) ** 2 * (1 + recede) + 2.2 * recede * step(1.0, 3.5, x) * step(8, 4, x)))
    side = step(0.5, -0.4, z - (3.2 + 0.22 * (y - 5) - 1.2 * recede)) * step(0.9, 2.2, y) * step(4.5, 5.5, x)
    back = step(-0.8, -2.0, z + 0.12 * (y - 2)) * step(-5.6, -4.0, y)
    mask = np.maximum(np.maximum(top, side), back)
    mask = mask * (1 - step(7.0, 7.4, x) * step(4.6, 4.0, y) * step(-3.0, -2.0, z))
    if recede > 0.5:  # a bald top
        mask = mask * (1 - step(7.5, 10.0, y + 0.35 * np.maximum(z, -6.0)))
    return mask


class Skull:
    """How far the head reaches in each direction, as two radius maps: around its middle, and around the upright axis for neck and shoulders."""

    CENTER = np.array([0.0, 4.5, 0.8])
    BINS = (24, 48)

    def __init__(self, vertices: np.ndarray) -> None:
        head = vertices[vertices[:, 1] > -4]
        self.ball = self._map(*self._spherical(head), self.BINS)
        self.post = self._map(*self._cylindrical(vertices), self.BINS)

    def _spherical(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q = p - self.CENTER
        r = np.linalg.norm(q, axis=-1) + 1e-6
        return np.arccos(np.clip(q[..., 1] / r, -1, 1)) / np.pi, np.arctan2(q[..., 0], q[..., 2]) / (2 * np.pi) + 0.5, r

    def _cylindrical(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q = p - self.CENTER
        return np.clip((p[..., 1] + 20) / 30, 0, 1), np.arctan2(q[..., 0], q[..., 2]) / (2 * np.pi) + 0.5, np.hypot(q[..., 0], q[..., 2])

    @staticmethod
    def _map(a: np.ndarray, b: np.ndarray, r: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
        out = np.zeros(bins)
        np.maximum.at(out, (np.minimum((a * bins[0]).astype(int), bins[0] - 1), np.minimum((b * bins[1]).astype(int), bins[1] - 1)), r)
        for _ in range(6):  # fill what no vertex fell into
            near = np.maximum.reduce([np.roll(out, 1, 1), np.roll(out, -1, 1), np.vstack([out[:1], out[:-1]]), np.vstack([out[1:], out[-1:]])])
            out = np.where(out == 0, near, out)
        return out

    @staticmethod
    def _read(table: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        i, j = a * table.shape[0] - 0.5, b * table.shape[1] - 0.5
        i0, j0 = np.floor(i).astype(int), np.floor(j).astype(int)
        u, v = i - i0, j - j0
        rows = [np.clip(i0 + k, 0, table.shape[0] - 1) for k in (0, 1)]
        columns = [(j0 + k) % table.shape[1] for k in (0, 1)]
        top = table[rows[0], columns[0]] * (1 - v) + table[rows[0], columns[1]] * v
        return top * (1 - u) + (table[rows[1], columns[0]] * (1 - v) + table[rows[1], columns[1]] * v) * u

    def push_out(self, p: np.ndarray, gap: np.ndarray | float, hold: float = 0.0) -> np.ndarray:
        """Points [..., 3] moved outwards to `gap` from the head; those beyond it are drawn back by the share `hold`."""
        a, b, r = self._spherical(p)
        grow = (self._read(self.ball, a, b) + gap) / r
        grow = np.maximum(grow, 1 + hold * (grow - 1))
        above = step(-2.0, 1.5, p[..., 1])[..., None]
        ball = self.CENTER + (p - self.CENTER) * grow[..., None]
        a, b, r = self._cylindrical(p)
        grow = (np.minimum(self._read(self.post, a, b), 11.0) + gap) / (r + 1e-6)
        grow = np.maximum(grow, 1 + 0.5 * hold * (grow - 1))[..., None]
        post = np.concatenate([self.CENTER[:1] + (p - self.CENTER)[..., :1] * grow, p[..., 1:2], self.CENTER[2:] + (p - self.CENTER)[..., 2:] * grow], -1)
        return above * ball + (1 - above) * post
