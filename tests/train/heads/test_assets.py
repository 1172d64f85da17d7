"""The importer reads the public layout, and says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train.heads.conftest import ACTIONS, write_checkout

from everface.core.errors import BadInput
from everface.train.heads.assets import import_heads
from everface.train.heads.mesh import HeadMesh


def test_a_checkout_becomes_one_file(assets: Path) -> None:
    with np.load(assets) as file:
        assert sorted(file["names"]) == sorted(ACTIONS)
        assert file["identities"].shape[0] == 3 and file["identities"].dtype == np.float16
        assert file["faces"].shape == file["uv_faces"].shape and len(file["faces"]) == len(file["material"])
        assert np.isfinite(file["surface"]).all(-1).mean() > 0.4


def test_the_mesh_opens_its_mouth(assets: Path) -> None:
    mesh = HeadMesh(assets)
    shape = mesh.shape(np.zeros(3))
    gaps = [np.linalg.norm(np.subtract(*mesh.pose(shape, {"jawOpen": w})[mesh.lips[:2]])) for w in (0.0, 0.5, 1.0)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert np.allclose(np.linalg.norm(mesh.normals(shape)[mesh.faces[0]], axis=1), 1, atol=1e-3)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="generic_neutral_mesh"):
        import_heads(tmp_path, tmp_path / "out.npz")
    write_checkout(tmp_path / "FaceXModel")
    (tmp_path / "FaceXModel" / "jawOpen.obj").write_text("v 0 0 0")
    with pytest.raises(BadInput, match="different versions"):
        import_heads(tmp_path, tmp_path / "out.npz")
    with pytest.raises(BadInput, match="does not exist"):
        HeadMesh(tmp_path / "out.npz")
