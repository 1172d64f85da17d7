"""Background audio: repeatable, below speech, never silent."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from everface.train.synthetic import background, voices


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", get_args(background.Kind))
def test_background_repeats_and_is_below_speech_all_the_time(kind: background.Kind):
    for seed in range(4):
        noise_S = background.make_background(50_000, seeded(seed), kind)
        assert torch.equal(noise_S, background.make_background(50_000, seeded(seed), kind)) and noise_S.isfinite().all()
        level_db = 10 * torch.log10(noise_S.square().mean()).item()
        assert voices.SPEECH_DB + background.QUIETEST_DB - 0.1 < level_db < voices.SPEECH_DB + background.LOUDEST_DB + 0.1
        frames_db = 10 * torch.log10(noise_S[:48_000].view(10, -1).square().mean(1) + 1e-12)
        assert frames_db.min() > level_db - 15, "background lasts for the whole stretch"
    assert not torch.equal(background.make_background(50_000, seeded(0), kind), background.make_background(50_000, seeded(1), kind))


def test_white_is_brighter_than_pink():
    def bright(kind: background.Kind) -> float:
        power_F = torch.fft.rfft(background.make_background(64_000, seeded(), kind)).abs().square()
        return (power_F[len(power_F) // 2 :].sum() / power_F.sum()).item()

    assert bright("white") == pytest.approx(0.5, abs=0.05) and bright("pink") < 0.2 and bright("music") < 1e-3
