"""The true video passes; a frozen face and a face for other audio miss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.train.evaluate.conftest import SIZE
from tests.train.miniature import syllables

from everface.core.config import SAMPLES_PER_FRAME
from everface.train.evaluate import bars, measure, metrics, quality
from everface.train.evaluate.held_out import HELD_OUT_SEED, draw_held_out
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, neutral, sample_motion


class Truth:
    """A perfect model: it renders the character it is shown, with other motion but the mouth that the rule demands."""

    def __init__(self, count: int, seed: int) -> None:
        self.id_NP = sample_identity(count, torch.Generator().manual_seed(HELD_OUT_SEED + seed))
        self.calls = 0

    def __call__(self, image_3HW: torch.Tensor, pcm_S: torch.Tensor) -> torch.Tensor:
        id_NP = self.id_NP[self.calls : self.calls + 1]
        self.calls += 1
        assert torch.equal(render(id_NP, neutral(1), SIZE)[0], image_3HW), (
            "the reference is the neutral pose"
        )
        anim_TA = sample_motion(*mouth_targets(pcm_S), torch.Generator().manual_seed(self.calls))
        return metrics.as_frames(render(id_NP, anim_TA, SIZE))


def frozen(image_3HW: torch.Tensor, pcm_S: torch.Tensor) -> torch.Tensor:
    return metrics.as_frames(image_3HW[None]).expand(len(pcm_S) // SAMPLES_PER_FRAME, -1, -1, -1)


def misses(report: dict) -> set[str]:
    return {bar["name"] for bar in report["bars"] if not bar["pass"]}


def grainy(rgb):
    """A codec of 40 dB."""
    return rgb + 0.02 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.slow
def test_truth_passes_and_a_frozen_face_fails(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "FIT_FRAMES", 2)
    audio_S = [syllables(5, 40 + i, rate=4, power=3) for i in range(2)]
    # A lip reader trained for fifteen seconds may be too poor; ten seconds hold too few blinks, and two characters too little other audio.
    unreliable = {"lip reader on truth", "other audio, abs mean correlation", "blinks relative to truth"}
    unreliable |= {"opening correlation, mean", "width correlation"}
    report = quality.evaluate_quality(Truth(2, seed=2), grainy, reader, draw_held_out(audio_S, 2, SIZE), tmp_path / "truth")
    assert misses(report) <= unreliable and report["bars"][1]["value"] > 0.9, quality.table(report)
    report = quality.evaluate_quality(frozen, lambda rgb: 0.5 * rgb, reader, draw_held_out(audio_S, 2, SIZE), tmp_path / "frozen")
    wanted = {"opening correlation, mean", "opening correlation, min", "opening amplitude", "blinks relative to truth"}
    assert not report["pass"] and wanted | {"motion energy relative to truth", "VAE PSNR, dB"} <= misses(report)
    written = json.loads((tmp_path / "frozen" / "report.json").read_text())
    assert written["pass"] is False and "MISS" in (tmp_path / "frozen" / "report.md").read_text()
    assert (tmp_path / "truth" / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("how", ["mean", "min", "worst", "abs mean", "pooled"])
def test_a_nan_never_passes(how):
    rows = [{"x": 0.0, "truth_x": 1.0}, {"x": math.nan, "truth_x": 1.0}, {"x": 0.0, "truth_x": 1.0}]
    assert math.isnan(bars.STATISTICS[how](rows, "x"))


def test_a_bar_has_two_sides():
    bar = bars.Bar("motion", "mean", "motion", 0.8, 1.2, "")
    assert str(bar) == "0.8 .. 1.2" and str(bar._replace(most=math.inf)) == ">= 0.8" and str(bar._replace(least=-math.inf)) == "<= 1.2"
    rows = [{"blinks": 3.0, "truth_blinks": 2.0}, {"blinks": 0.0, "truth_blinks": 4.0}]
    assert bars.STATISTICS["pooled"](rows, "blinks") == 0.5 and bars.STATISTICS["mean"](rows, "blinks") == 1.5
    assert math.isnan(bars.STATISTICS["pooled"]([{"blinks": 1.0, "truth_blinks": 0.0}], "blinks"))


@pytest.mark.slow
def test_a_face_for_other_audio_misses(reader, tmp_path, monkeypatch):
    """A model that follows other audio than it was given."""
    monkeypatch.setattr(measure, "FIT_FRAMES", 2)
    audio_S = [syllables(6, 20 + i, rate=4, power=3) for i in range(2)]
    other = {id(a): b for a, b in zip(audio_S, reversed(audio_S))}
    truth = Truth(2, seed=2)
    report = quality.evaluate_quality(lambda p, s: truth(p, other[id(s)]), lambda rgb: rgb, reader, draw_held_out(audio_S, 2, SIZE), tmp_path)
    assert {"opening correlation, mean", "other audio, abs mean correlation"} <= misses(report)
