"""Held-out speech."""

from __future__ import annotations

import pytest
import torch

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.train.evaluate.held_out import held_out_audio
from everface.train.synthetic import voices


def test_held_out_audio_is_held_out(tmp_path):
    for name in ("es_00", "it_f3_01", "en-us_00", "de_02"):
        voices.write_wav(tmp_path / f"{name}.wav", torch.full((SAMPLE_RATE,), 0.5 if name[:2] in voices.HELD_OUT else -0.5))
    audio_S = held_out_audio(tmp_path, 5, 0.5)
    assert len(audio_S) == 5 and all(len(s) == SAMPLE_RATE // 2 and s.min() > 0 for s in audio_S)
    long_S = held_out_audio(tmp_path, 1, 2.5)[0]  # one clip after the other
    assert len(long_S) == 2.5 * SAMPLE_RATE and long_S.min() > 0
    with pytest.raises(BadInput, match="make_speech"):
        held_out_audio(tmp_path / "none", 1, 1.0)
