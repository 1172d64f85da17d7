"""`everface bench audio` on a tiny wav2vec2 in the released layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.weights.official import write_official

from everface.avatar.bench_audio import bench_audio
from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS


def test_a_table_of_windows(tmp_path: Path) -> None:
    write_official(tmp_path / "model", seed=1)
    report = bench_audio(tmp_path / "model", 4.0)
    rows = {(w.back_s, w.ahead_s, w.normalizer): w for w in report.windows}
    assert rows[4.0, 1.0, "running"].later < rows[2.0, 0.0, "running"].later < 1
    assert rows[4.0, 1.0, "running"].jump_db < 1 < rows[4.0, 1.0, "window"].jump_db
    assert report.table().count("\n| ") == len(rows) + 2


def test_a_front_end_without_a_window_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing to measure"):
        bench_audio(DEFAULT_WEIGHTS)
