"""The stand-in for the head model, and clips of it without OpenGL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train.heads.conftest import assets as assets

from everface.networks.motion import FACE
from everface.train.chain.frames import HELD_OUT


def write_frames(folder: Path, count: int, size: int = 64) -> None:
    """Clips as the rendering processes write them: a gradient that moves, and truth that goes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        opening = rng.random(64).astype(np.float32)
        images = rng.integers(0, 255, (69, size, size, 3), np.uint8)
        np.savez(
            folder / f"{n:05d}.npz", features=rng.random((1, 320 + len(FACE), 69)).astype(np.float16), audio=rng.normal(0, 0.1, 64 * 640).astype(np.float32),
            opening=opening, width=opening[::-1].copy(), blink=0 * opening, turn=np.stack([opening, -opening, 0 * opening], 1),
        )  # fmt: skip
        np.save(folder / f"{n:05d}.npy", images)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    write_frames(tmp_path / "frames", 6)
    write_frames(tmp_path / "frames" / HELD_OUT, 2)
    return tmp_path / "frames"
