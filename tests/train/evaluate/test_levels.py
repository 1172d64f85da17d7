"""The same voice at several levels: whole runs on a small model, and a verdict that can miss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.train.miniature import syllables

from everface.core.config import Deployment
from everface.train.evaluate.levels import LEVELS_DB, at_level, evaluate_levels, summarize, table
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader


def test_a_voice_at_a_level_is_what_a_file_holds() -> None:
    pcm_S = torch.tensor([0.5, -1.0, 0.99997])
    assert torch.equal(at_level(pcm_S, 0.0) * 32768, torch.tensor([16384.0, -32768.0, 32767.0]))
    assert torch.equal(at_level(pcm_S, -20.0) * 32768, torch.tensor([1638.0, -3277.0, 3277.0]))
    assert at_level(pcm_S, 20.0).abs().max() == 1


def test_every_character_is_measured_at_every_level(small_model: Path, tmp_path: Path, untrained_reader: LipReader) -> None:
    lines: list[str] = []
    report = evaluate_levels(OfflineModel(small_model, Deployment()), untrained_reader, [syllables(1), syllables(1, 1)], tmp_path, lines.append)
    assert [level["level_db"] for level in report["levels"]] == list(LEVELS_DB) and len(lines) == 2
    assert all(len(level["characters"]) == 2 for level in report["levels"])
    assert json.loads((tmp_path / "levels.json").read_text()) == report and (tmp_path / "levels.md").read_text() == table(report)


@pytest.mark.parametrize(("amplitude", "corr", "good"), [(1.0, 0.99, True), (0.89, 0.99, False), (1.11, 0.99, False), (1.0, 0.94, False)])
def test_the_verdict(amplitude: float, corr: float, good: bool) -> None:
    fine = {"amplitude": 1.0, "correlation": 1.0}
    report = summarize({-10.0: [fine, {"amplitude": amplitude, "correlation": corr}], -20.0: [fine, fine]})
    assert report["pass"] is good and [level["pass"] for level in report["levels"]] == [good, True]
    assert ("MISS" in table(report)) is not good
