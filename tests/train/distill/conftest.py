"""The beginning of a stage 2 at miniature size."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.train.miniature import small_dit, write_clips


@pytest.fixture
def start(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(clips, weights of a student, weights of a teacher)."""
    for seed, name in ((0, "student"), (1, "teacher")):
        save_file({n: t.contiguous() for n, t in small_dit(seed).state_dict().items()}, tmp_path / f"{name}.safetensors")
    return write_clips(tmp_path / "clips"), tmp_path / "student.safetensors", tmp_path / "teacher.safetensors"
