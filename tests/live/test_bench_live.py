"""`everface bench live` on a tiny model: its figures are there and make sense."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from everface.avatar.bench_live import bench_live
from everface.avatar.live_report import figure
from everface.core.config import Deployment, StreamConfig


@pytest.mark.slow
def test_a_short_run(small_model: Path) -> None:
    report = bench_live(small_model, None, StreamConfig(), Deployment(threads=1), segments=2)
    print(report.table())
    assert report.turns == 2 and report.frames > 100
    for name in ("speech to its first frame", "interruption to first new frame", "first frame, cold", "first frame, warm"):
        assert 0 < (report.figure(name).p50 or 0) < 20_000, name
    assert report.figure("interruption to last stale frame").passed and report.figure("audio behind video").passed
    seams = [report.figure(f"seam, {name}").count for name in ("idle to speech", "speech to idle", "interruption")]
    assert report.figure("  of it steps and decoding").count
    assert all(seams) and report.figure("seams").most == sum(seams) and not report.figure("seams").passed
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["turns"] == 2
    assert "speech to its first frame, ms" in report.table()


def test_a_figure_holds_its_bar_or_not() -> None:
    values = [float(n) for n in range(101)]
    met, missed, unknown = (figure("x", "ms", v, ("p95", bar)) for v, bar in ((values, 95), (values, 94), ([], 1)))
    assert (met.p50, met.p95, met.p99, met.most, met.count) == (50, 95, 99, 100, 101)
    assert (met.passed, missed.passed, unknown.passed, figure("x", "ms", values).passed) == (True, False, None, None)
