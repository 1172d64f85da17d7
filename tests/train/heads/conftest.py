"""A small stand-in for the head model, so that these tests need no download: a sphere-like face with the materials and actions it must have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everface.train.heads.assets import import_heads

ACTIONS = (
    "jawOpen", "mouthFunnel", "mouthPucker", "mouthClose", "mouthRollLower", "mouthRollUpper", "mouthShrugLower",
    *(f"{name}_{side}" for side in "LR" for name in (
        "mouthStretch", "mouthSmile", "mouthUpperUp", "mouthLowerDown", "mouthPress", "eyeBlink", "eyeWide", "eyeSquint", "eyeLookOut", "eyeLookIn",
        "eyeLookUp", "eyeLookDown", "browOuterUp", "browInnerUp", "browDown", "cheekSquint", "mouthFrown", "noseSneer",
    )),
)  # fmt: skip
MATERIALS = ("M_Face", "M_BackHead", "M_GumsTongue", "M_Teeth", "M_ScleraLeft", "M_ScleraRight", "M_EyeLashes")


def grid(center: tuple[float, float, float], radius: tuple[float, float, float], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and quadrangles of an ellipsoid."""
    a, b = np.meshgrid(np.linspace(0.03, np.pi - 0.03, rows), np.linspace(-np.pi, np.pi, columns), indexing="ij")
    points = np.stack([np.sin(a) * np.sin(b), np.cos(a), np.sin(a) * np.cos(b)], -1).reshape(-1, 3) * radius + center
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    k = (i * columns + j).ravel()
    return points, np.stack([k, k + 1, k + columns + 1, k + columns], 1)


def write_checkout(folder: Path) -> None:
    """The public layout: FaceXModel/*.obj."""
    folder.mkdir(parents=True)
    parts = {
        "M_Face": grid((0, 0, 2), (8, 14, 9.6), 61, 33), "M_BackHead": grid((0, -14, 0), (11, 6, 6), 9, 17), "M_GumsTongue": grid((0, -4, 7), (2, 1, 2), 5, 9),
        "M_Teeth": grid((0, -3, 8), (2, 0.7, 2), 5, 9), "M_ScleraLeft": grid((3.09, 3.614, 10.0), (1.55, 1.55, 1.55), 9, 17),
        "M_ScleraRight": grid((-3.09, 3.614, 10.0), (1.55, 1.55, 1.55), 9, 17), "M_EyeLashes": grid((3.1, 4.4, 11), (1, 0.2, 0.3), 5, 9),
    }  # fmt: skip
    rows, faces, start = [], [], 1
    for name in MATERIALS:
        points, quads = parts[name]
        rows.append(points)
        faces.append(f"usemtl {name}")
        faces += [f"f {' '.join(f'{k + start}/{k + start}' for k in quad)}" for quad in quads]
        start += len(points)
    base = np.concatenate(rows)
    span = base.max(0) - base.min(0)
    uv = ((base - base.min(0)) / span)[:, :2]
    text = [*(f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in base), *(f"vt {u:.5f} {v:.5f}" for u, v in uv)]
    (folder / "generic_neutral_mesh.obj").write_text("\n".join([*text, *faces]))

    def write(name: str, offset: np.ndarray) -> None:
        (folder / f"{name}.obj").write_text("\n".join(f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in base + offset))

    jaw = np.zeros_like(base)
    jaw[:, 1] = -3.5 * ((base[:, 1] < -3.4) & (base[:, 1] > -9) & (base[:, 2] > 5))
    for name in ACTIONS:
        write(name, jaw if name == "jawOpen" else 0.02 * np.sin(base + len(name)))
    for n in range(3):
        write(f"identity{n:03d}", 0.2 * np.cos(base * 0.2 + n))


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_checkout(folder / "checkout" / "FaceXModel")
    import_heads(folder / "checkout", folder / "heads.npz")
    return folder / "heads.npz"
