"""Importer: from a checkout of ICT-FaceKit (or a folder that holds its arrays already) to one file, `heads.npz`.

    python -m everface.train.heads.assets CHECKOUT heads.npz --skin albedo.png

A checkout has `FaceXModel/*.obj`: a neutral mesh, 100 identities and 57 actions over the same vertices. `--skin` is a photographed skin in
the mesh's UVs; without it skin is noise only. Arrays: `base` [N, 3], `identities` [100, N, 3] and `actions` [57, N, 3] as float16 offsets,
`names` of the actions, `faces` and `uv_faces` [F, 3], `uv`, `material` of each face, `materials`, `albedo` [S, S, 3] uint8 (S = 0 without),
`surface` [512, 512, 3] float16: the neutral position of each texel of the face.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from everface.core.errors import BadInput

SURFACE = 512  # side of the map from UV to position
OLD_NAMES = {"base": "base", "I": "identities", "E": "actions", "En": "names", "f": "faces", "ft": "uv_faces", "vt": "uv", "mat": "material", "mats": "materials"}


def import_heads(source: Path, out: Path, skin: Path | None = None) -> dict[str, np.ndarray]:
    """Read `source`, write `out` and return its arrays. Raises BadInput."""
    packed = source / "ict.npz"
    arrays = _read_packed(packed) if packed.exists() else _read_checkout(source)
    skin = skin or (source / "albedo_ict.png" if (source / "albedo_ict.png").exists() else None)
    arrays["albedo"] = _read_skin(skin) if skin else np.zeros((0, 0, 3), np.uint8)
    arrays["surface"] = rasterize_surface(arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type] numpy types the keywords as its own options
    return arrays


def _read_packed(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[short] for short, name in OLD_NAMES.items()}


def _read_checkout(source: Path) -> dict[str, np.ndarray]:
    folder = source / "FaceXModel" if (source / "FaceXModel").is_dir() else source
    neutral = folder / "generic_neutral_mesh.obj"
    if not neutral.exists():
        raise BadInput(f"{source} has no FaceXModel/generic_neutral_mesh.obj: name a checkout of the repository ICT-FaceKit")
    mesh = _read_obj(neutral)
    identities = sorted(folder.glob("identity[0-9]*.obj"))
    actions = sorted(p for p in folder.glob("*.obj") if p not in identities and p != neutral)
    if not identities or not actions:
        raise BadInput(f"{folder} has a neutral mesh but no identities or actions beside it: the checkout is incomplete")
    offsets = [np.stack([_read_vertices(p, mesh["base"]) for p in paths]) for paths in (identities, actions)]
    return mesh | {"identities": offsets[0], "actions": offsets[1], "names": np.array([p.stem for p in actions])}


def _read_vertices(path: Path, base: np.ndarray) -> np.ndarray:
    rows = [line.split()[1:4] for line in path.read_text().splitlines() if line.startswith("v ")]
    vertices = np.array(rows, np.float32)
    if vertices.shape != base.shape:
        raise BadInput(f"{path} has {len(vertices)} vertices, the neutral mesh has {len(base)}: the files are of different versions")
    return (vertices - base).astype(np.float16)


def _read_obj(path: Path) -> dict[str, np.ndarray]:
    vertices, uv, faces, uv_faces, material, materials, current = [], [], [], [], [], list[str](), 0
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif kind == "vt":
            uv.append([float(x) for x in rest.split()[:2]])
        elif kind == "usemtl":
            name = rest.strip()
            if name not in materials:
                materials.append(name)
            current = materials.index(name)
        elif kind == "f":
            corners = [[int(i) - 1 for i in corner.split("/")[:2]] for corner in rest.split()]
            for k in range(1, len(corners) - 1):  # a fan: the mesh has quadrangles
                triangle = corners[0], corners[k], corners[k + 1]
                faces.append([c[0] for c in triangle])
                uv_faces.append([c[1] for c in triangle])
                material.append(current)
    return {
        "base": np.array(vertices, np.float32), "uv": np.array(uv, np.float32), "faces": np.array(faces, np.int32),
        "uv_faces": np.array(uv_faces, np.int32), "material": np.array(material, np.int8), "materials": np.array(materials),
    }  # fmt: skip


def _read_skin(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def rasterize_surface(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Neutral position [512, 512, 3] float16 of each texel of the face, row 0 at v = 1; NaN outside."""
    face = arrays["material"] == list(arrays["materials"]).index("M_Face")
    out = np.full((SURFACE, SURFACE, 3), np.nan, np.float32)
    uv, position = arrays["uv"][arrays["uv_faces"][face]], arrays["base"][arrays["faces"][face]]
    xy = np.stack([uv[..., 0], 1 - uv[..., 1]], -1) * SURFACE - 0.5
    for corner, value in zip(xy, position):
        (x0, y0), (x1, y1) = np.floor(corner.min(0)).astype(int), np.ceil(corner.max(0)).astype(int)
        ys, xs = np.mgrid[max(y0, 0) : min(y1, SURFACE - 1) + 1, max(x0, 0) : min(x1, SURFACE - 1) + 1]
        a, b, c = corner
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if area == 0:
            continue
        v = ((xs - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (ys - a[1])) / area
        w = ((b[0] - a[0]) * (ys - a[1]) - (xs - a[0]) * (b[1] - a[1])) / area
        inside = (v >= -1e-6) & (w >= -1e-6) & (v + w <= 1 + 1e-6)
        v, w = v[inside, None], w[inside, None]
        out[ys[inside], xs[inside]] = value[0] * (1 - v - w) + value[1] * v + value[2] * w
    return out.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.heads.assets", description="Import ICT-FaceKit to one npz.")
    parser.add_argument("source", type=Path, help="a checkout of ICT-FaceKit")
    parser.add_argument("out", type=Path, help="the npz to write")
    parser.add_argument("--skin", type=Path, help="a photographed skin in the mesh's UVs (noise only)")
    args = parser.parse_args()
    arrays = import_heads(args.source, args.out, args.skin)
    print(f"{args.out}: {len(arrays['base'])} vertices, {len(arrays['identities'])} identities, {len(arrays['names'])} actions")


if __name__ == "__main__":
    main()
