"""Voices: files come back, held-out voices stay out of training, espeak-ng speaks as asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.train.miniature import syllables

from everface.core.config import SAMPLE_RATE
from everface.core.errors import Unavailable
from everface.train.data.drawn import read_speech
from everface.train.synthetic import voices
from everface.train.synthetic.motion import mouth_targets
from everface.train.synthetic.sentences import TEXTS

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def test_wav_round_trip_and_missing_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm_S = syllables(0.5).clamp(-1, 1)
    voices.write_wav(tmp_path / "es_00.wav", pcm_S)
    torch.testing.assert_close(voices.read_wav(tmp_path / "es_00.wav"), pcm_S, rtol=0, atol=1e-4)
    assert voices.is_held_out(tmp_path / "es_00.wav") and not voices.is_held_out(tmp_path / "en-us_00.wav")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="install the package espeak-ng"):
        voices.make_speech(tmp_path, clips_per_voice=1)


def test_held_out_voices_never_reach_training(tmp_path: Path):
    for i, voice in enumerate(voices.VOICES):
        voices.write_wav(tmp_path / f"{voice.replace('+', '_')}_00.wav", torch.full((10,), (i + 1) / 100))
    train, held_out = (read_speech(tmp_path, held_out=side) for side in (False, True))
    kept = [v for v in voices.VOICES if not v.startswith(("es", "it"))]
    expected = sorted((voices.VOICES.index(v) + 1) / 100 for v in kept)
    assert sorted(round(pcm[0].item(), 2) for pcm in train) == expected and len(held_out) == 4
    assert {v[:2] for v in kept}.isdisjoint(voices.HELD_OUT) and {v[:2] for v in voices.VOICES} == set(TEXTS)
    assert all(len(set(text.splitlines())) >= 8 for text in TEXTS.values())


@needs_espeak
def test_speech_repeats_pauses_and_opens_the_mouth(tmp_path: Path):
    a, b = (voices.make_speech(tmp_path / name, 4, 2, ("pl+f1", "es")) for name in "ab")
    assert [p.name for p in a] == ["pl_f1_00.wav", "pl_f1_01.wav", "es_00.wav", "es_01.wav"]
    for one, two in zip(a, b):
        assert one.read_bytes() == two.read_bytes()
        open_T, _ = mouth_targets(voices.read_wav(one))
        assert 12 < len(open_T) / 25 < 60 and open_T.max() > 0.7 and open_T.min() < 0.01
        shut = (open_T < 0.05).float().mean()
        assert 0.03 < shut < 0.6


@needs_espeak
@pytest.mark.parametrize("voice", voices.VOICES)
def test_espeak_knows_every_voice(voice: str):
    pcm = voices.synthesize("Oma", voice, 170, 50)
    assert 0.2 < len(pcm) / SAMPLE_RATE < 4 and abs(pcm).max() > 0.02
