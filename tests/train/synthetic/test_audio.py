"""Voices and beds: the mouth follows the voice alone, silence shuts it, seeds repeat, held-out voices stay out of training."""

import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from everface.model.features import LogMel
from everface.train.data import clips
from everface.train.synthetic import background as beds
from everface.train.synthetic import voices
from everface.train.synthetic.characters import NEUTRAL_WIDE
from everface.train.synthetic.sentences import TEXTS

spoken = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def hum(seconds: float = 6) -> torch.Tensor:
    time_s = torch.arange(int(seconds * voices.RATE)) / voices.RATE
    return 0.12 * torch.sin(2 * torch.pi * 220 * time_s) * (torch.sin(2 * torch.pi * 2 * time_s) > 0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", get_args(beds.Kind))
def test_beds_repeat_lie_under_speech_and_never_stop(kind: beds.Kind):
    for seed in range(4):
        bed_S = beds.make_bed(50_000, seeded(seed), kind)
        assert torch.equal(bed_S, beds.make_bed(50_000, seeded(seed), kind)) and bed_S.isfinite().all()
        level_db = 10 * torch.log10(bed_S.square().mean()).item()
        assert voices.SPEECH_DB + beds.QUIETEST_DB - 0.1 < level_db < voices.SPEECH_DB + beds.LOUDEST_DB + 0.1
        frames_db = 10 * torch.log10(bed_S[:48_000].view(10, -1).square().mean(1) + 1e-12)
        assert frames_db.min() > level_db - 15, "a bed lies beneath the whole stretch"
    assert not torch.equal(beds.make_bed(50_000, seeded(0), kind), beds.make_bed(50_000, seeded(1), kind))


def test_white_is_brighter_than_pink():
    def bright(kind: beds.Kind) -> float:
        power_F = torch.fft.rfft(beds.make_bed(64_000, seeded(), kind)).abs().square()
        return (power_F[len(power_F) // 2 :].sum() / power_F.sum()).item()

    assert bright("white") == pytest.approx(0.5, abs=0.05) and bright("pink") < 0.2 and bright("music") < 1e-3


def test_a_bed_is_heard_and_does_not_move_the_face(monkeypatch):
    front = LogMel()
    monkeypatch.setattr(clips, "SPEECHLESS", 0.0)
    made = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(clips, "WITH_BED", share)
        made.append(clips.make_clip([hum()], front, seeded(3)))
    (rgb, alone), (rgb_bed, bedded) = made
    assert torch.equal(rgb, rgb_bed)
    assert (alone - bedded).abs().mean() > 0.1


def test_music_or_noise_alone_leaves_the_mouth_shut(monkeypatch):
    monkeypatch.setattr(clips, "SPEECHLESS", 1.0)
    monkeypatch.setattr(clips, "WITH_BED", 1.0)
    for seed in range(6):
        dry_S, heard_S = clips.draw_sound([hum()], 44_000, seeded(seed))
        open_T, wide_T = voices.mouth_targets(dry_S)
        assert open_T.max() == 0 and (wide_T - NEUTRAL_WIDE).abs().max() < 1e-6
        assert heard_S.square().mean() > 1e-6


def test_clips_have_all_kinds_of_sound_and_come_back_from_the_seed():
    drawn = [clips.draw_sound([hum(2), hum(6)], 44_000, seeded(n)) for n in range(300)]
    bedded = sum(not torch.equal(dry, heard) for dry, heard in drawn) / 300
    silent = sum(not dry.any() for dry, _ in drawn) / 300
    assert abs(bedded - clips.WITH_BED) < 0.1 and 0.02 < silent < 0.12
    again = clips.draw_sound([hum(2), hum(6)], 44_000, seeded(17))
    assert all(torch.equal(a, b) for a, b in zip(drawn[17], again))


def test_held_out_voices_never_reach_training(tmp_path: Path):
    for i, voice in enumerate(voices.VOICES):
        voices.write_wav(tmp_path / f"{voice.replace('+', '_')}_00.wav", torch.full((10,), (i + 1) / 100))
    train, judge = (clips.read_speech(tmp_path, held_out=side) for side in (False, True))
    kept = [v for v in voices.VOICES if not v.startswith(("es", "it"))]
    expected = sorted((voices.VOICES.index(v) + 1) / 100 for v in kept)
    assert sorted(round(pcm[0].item(), 2) for pcm in train) == expected and len(judge) == 4
    assert {v[:2] for v in kept}.isdisjoint(voices.HELD_OUT) and {v[:2] for v in voices.VOICES} == set(TEXTS)
    assert all(len(set(text.splitlines())) >= 8 for text in TEXTS.values())


@spoken
def test_speech_repeats_pauses_and_opens_the_mouth(tmp_path: Path):
    a, b = (voices.make_speech(tmp_path / name, 4, 2, ("pl+f1", "es")) for name in "ab")
    assert [p.name for p in a] == ["pl_f1_00.wav", "pl_f1_01.wav", "es_00.wav", "es_01.wav"]
    for one, two in zip(a, b):
        assert one.read_bytes() == two.read_bytes()
        open_T, _ = voices.mouth_targets(voices.read_wav(one))
        assert 12 < len(open_T) / 25 < 60 and open_T.max() > 0.7 and open_T.min() < 0.01
        shut = (open_T < 0.05).float().mean()
        assert 0.03 < shut < 0.6


@spoken
@pytest.mark.parametrize("voice", voices.VOICES)
def test_espeak_knows_every_voice(voice: str):
    pcm = voices._say("Oma", voice, 170, 50)
    assert 0.2 < len(pcm) / voices.RATE < 4 and abs(pcm).max() > 0.02
