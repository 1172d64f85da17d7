"""`everface bench live` on a tiny model: its figures are there and make sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from everface.avatar.bench_live import bench_live
from everface.core.config import Deployment, StreamConfig


@pytest.mark.slow
def test_a_short_run(small_model: Path) -> None:
    report = bench_live(small_model, None, StreamConfig(), Deployment(threads=1), segments=2)
    assert report.segments == 2 and report.frames > 150 and report.stale_frames == 0
    assert 0 < report.onset_ms[0] < 3000 and 0 < report.interrupt_ms[0] < 3000
    assert 0 < report.first_frame_ms < 5000 and report.seam_ratio > 0
