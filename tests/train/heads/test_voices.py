"""Voices recorded from people report their phonemes; features are varied as throats, rooms and microphones do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from everface.core.config import SAMPLE_RATE
from everface.networks.audio.features import LogMel
from everface.train.heads.articulation import RECORDED, read_recordings
from everface.train.heads.motion import recorded
from everface.train.heads.motion.acoustics import UNCHANGED_SHARE, vary
from everface.train.heads.motion.recorded import VOICES, Voice, as_ipa, make_recorded_speech
from everface.train.heads.motion.visemes import TARGETS, targets

KAL, SLT = (next(voice for voice in VOICES if voice.name == name) for name in ("kal_diphone", "slt"))
FESTIVAL = Path("/usr/share/festival/voices/english/kal_diphone")


def test_every_letter_has_a_mouth() -> None:
    for voice in VOICES:
        assert all(letter in TARGETS for name in voice.phonemes.values() for letter in name.replace("ː", "")), voice
    assert as_ipa(KAL, "pau") == as_ipa(KAL, "#") == "_" and as_ipa(KAL, "ch") == "tʃ" and as_ipa(KAL, "b") == "b"
    italian, russian, czech = (next(voice for voice in VOICES if voice.language == language) for language in ("it", "ru", "cs"))
    assert as_ipa(italian, "E1") == "ɛ" and as_ipa(italian, "dZ") == "dʒ" and as_ipa(italian, "ax") == "ə" and as_ipa(czech, "a:") == "aː" and as_ipa(czech, "ch") == "x"
    assert as_ipa(russian, "dd") == "d" and as_ipa(russian, "oo") == "o" and as_ipa(russian, "sch") == "ɕ"


@pytest.mark.parametrize("voice", [KAL, SLT], ids=["festival", "flite"])
def test_recorded_voices_name_their_phonemes(voice: Voice) -> None:
    if shutil.which(voice.program) is None or (voice is KAL and not FESTIVAL.exists()):
        pytest.skip(f"needs {voice.program}")
    (pcm_S, phonemes), (slow_S, _) = recorded.speak(["Bob bought a big box."], voice, 1.0) + recorded.speak(["Bob bought a big box."], voice, 1.25)
    times, names = zip(*phonemes, strict=True)
    assert times[0] == 0 and list(times) == sorted(times) and times[-1] < len(pcm_S) / SAMPLE_RATE + 0.1
    assert names[0] == "_" and names.count("b") == 5 and all(targets(name) for name in names)
    assert 1.1 < len(slow_S) / len(pcm_S) < 1.4
    vowel = next(t for t, name in phonemes if name in ("ɑ", "ɔ"))
    before, within = (pcm_S[int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)].std() for a, b in ((0, 0.05), (vowel, vowel + 0.05)))
    assert within > 10 * before


def test_what_cannot_be_spoken_is_left_out_and_a_voice_that_is_missing_is_said(tmp_path: Path) -> None:
    if not FESTIVAL.exists():
        pytest.skip("needs festival")
    said = recorded.speak(["One word.", "", "Another word."], KAL, 1.0)
    assert len(said) >= 2 and all(len(pcm_S) > SAMPLE_RATE / 4 for pcm_S, _ in (said[0], said[-1]))
    with pytest.raises(recorded.Unavailable, match="festival has no voice nobody_diphone"):
        make_recorded_speech(tmp_path, 1, 1, (Voice("nobody_diphone", "en", {}),))
    assert not list(tmp_path.iterdir())


def test_recorded_speech_is_read_beside_the_other(tmp_path: Path) -> None:
    if shutil.which("flite") is None:
        pytest.skip("needs flite")
    paths = make_recorded_speech(tmp_path / RECORDED, 1, 1, (SLT,))
    again = make_recorded_speech(tmp_path / "again", 1, 1, (KAL, SLT) if FESTIVAL.exists() else (SLT,))
    assert paths[0].read_bytes() == again[-1].read_bytes()  # a voice does not depend on the others
    (clip,) = read_recordings(tmp_path, False, LogMel())
    assert clip.recorded and clip.features_CT.shape[1] == clip.target_AT.shape[1] == len(clip.gain_T)
    assert clip.target_AT[0].max() > 0.4 and (clip.target_AT[3] > 0.9).any()


def test_features_vary_as_voices_do() -> None:
    front_end, generator = LogMel(), torch.Generator().manual_seed(3)
    tone_S = 0.1 * torch.sin(torch.arange(640 * 40 + front_end.lookback_samples) * (2 * torch.pi * 1000 / SAMPLE_RATE))
    tone_S[: len(tone_S) // 2] = 0
    features_NCT = front_end.features(tone_S, 40)[0].repeat(400, 1, 1)
    varied_NCT = vary(features_NCT, front_end, generator)
    assert varied_NCT.shape == features_NCT.shape and torch.isfinite(varied_NCT).all()
    same_N = (varied_NCT == features_NCT).flatten(1).all(1)
    assert 0.6 * UNCHANGED_SHARE < same_N.float().mean() < 1.4 * UNCHANGED_SHARE
    peak_N = varied_NCT.view(400, 4, 40, 40)[:, -1, :, -1].argmax(1)
    own = int(features_NCT[0].view(4, 40, 40)[-1, :, -1].argmax())
    assert len(peak_N[~same_N].unique()) >= 3 and (peak_N - own).abs().max() <= 5  # other throats
    silence_N = varied_NCT[~same_N][:, :, 2].mean(1)
    assert 0.4 < (silence_N > features_NCT[0, :, 2].mean() + 0.01).float().mean() < 0.8  # other rooms
    assert torch.equal(vary(features_NCT, front_end, torch.Generator().manual_seed(3)), varied_NCT)


def test_an_echo_ends() -> None:
    front_end = LogMel()
    features_NCT = front_end.features(torch.zeros(640 * 40 + front_end.lookback_samples), 40)[0].repeat(300, 1, 1)
    features_NCT[..., 10] += 1.5  # 23 dB over silence
    varied_NCT = vary(features_NCT, front_end, torch.Generator().manual_seed(1))
    after_NT = varied_NCT.view(300, 4, 40, 40)[:, -1].mean(1)
    assert (after_NT[:, 11] > after_NT[:, 9] + 0.05).float().mean() > 0.1  # heard in the next frame
    assert (after_NT[:, :9] - after_NT[:, 25:34]).mean().abs() < 0.01  # and gone half a second later
