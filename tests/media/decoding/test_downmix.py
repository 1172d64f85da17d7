"""Channels mixed by their places: what a film's 5.1 or a recorder's inverted side must give the model, and what the video's track gets."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from tests.media.recordings import encode, tone, whole

from everface.core.config import SAMPLE_RATE
from everface.media.audio import probe_audio, read_audio, read_track
from everface.media.decoding.downmix import MonoMixer, mix_stereo, mono_weights, stereo_weights

HALF_POWER = 0.5**0.5


def db(x: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(x, dtype=np.float64)) + 1e-12))


@pytest.mark.parametrize("layout", ["3.0", "5.0", "5.1", "5.1(side)", "6.1", "7.1"])
def test_a_voice_in_the_center(layout: str) -> None:
    """BS.775: at -3 dB beside left and right, and the low-frequency channel is left out."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    weights = dict(zip(names, mono_weights(names), strict=True))
    assert weights["FC"] == pytest.approx(HALF_POWER) and weights["FL"] == weights["FR"] == 0.5
    assert weights.get("LFE", 0) == 0
    sides = [w for name, w in weights.items() if name in ("BL", "BR", "SL", "SR")]
    assert sides == pytest.approx([HALF_POWER / 2] * len(sides))


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "4.0", "5.0", "5.1", "6.1", "6.1(front)", "7.1", "7.1.4", "hexagonal"])
def test_every_layout_is_symmetric_and_no_voice_is_lost(layout: str) -> None:
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    w_C2 = stereo_weights(names)
    assert w_C2[:, 0].sum() == pytest.approx(w_C2[:, 1].sum())
    assert all((w_C2[c].sum() > 0) == (name != "LFE") for c, name in enumerate(names))
    assert np.abs(mix_stereo(np.ones((4, len(names)), np.float32), names)).max() <= 1 + 1e-6  # it cannot clip


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 8, 12])
def test_channels_without_names_are_all_used(channels: int) -> None:
    assert (mono_weights(["NONE"] * channels) > 0).all()


def test_a_film_with_the_voice_in_its_center(tmp_path: Path) -> None:
    """The average of six channels was 15.6 dB below the voice."""
    x_CS = np.zeros((6, 2 * SAMPLE_RATE), np.float32)
    x_CS[2] = tone(2, SAMPLE_RATE)[0]
    path = encode(tmp_path / "a.wav", x_CS, SAMPLE_RATE)
    assert db(whole(path)) == pytest.approx(db(x_CS[2]) - 3.0, abs=0.1)
    track_SC = np.concatenate(list(read_track(path)))
    assert probe_audio(path).track_channels == 2 and track_SC.shape == (2 * SAMPLE_RATE, 2)
    assert np.array_equal(track_SC[:, 0], track_SC[:, 1]) and db(track_SC[:, 0]) > db(x_CS[2]) - 11


def test_six_channels_of_an_old_wav(tmp_path: Path) -> None:
    """Without a channel mask, as Python's own wave module writes it."""
    x_SC = np.zeros((SAMPLE_RATE, 6), "<i2")
    x_SC[:, 2] = 16384 * tone(1, SAMPLE_RATE)[0]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((6, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(x_SC.tobytes())
    assert db(whole(tmp_path / "a.wav")) == pytest.approx(db(x_SC[:, 2] / 32768) - 3.0, abs=0.1)


def test_stereo_is_averaged_to_the_bit() -> None:
    x_SC = np.random.default_rng(0).normal(0, 0.2, (48_000, 2)).astype(np.float32)
    assert np.array_equal(MonoMixer(("FL", "FR"), 48_000).mix(x_SC), x_SC.mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize("inverted", [-1.0, -0.9])
def test_a_side_that_is_inverted_does_not_cancel_the_voice(tmp_path: Path, inverted: float) -> None:
    x_S = np.random.default_rng(0).normal(0, 0.1, 3 * 48_000).astype(np.float32)
    path = encode(tmp_path / "a.wav", np.stack([x_S, inverted * x_S]), 48_000)
    mono_S = whole(path)
    assert db(mono_S[SAMPLE_RATE:]) == pytest.approx(db(mono_of(x_S)), abs=0.5)
    track_SC = np.concatenate(list(read_track(path)))
    assert np.abs(track_SC - np.stack([x_S, inverted * x_S], 1)).max() < 1e-4  # what is played stays as it was


def mono_of(x_S: np.ndarray) -> np.ndarray:
    import soxr

    return soxr.resample(x_S, 48_000, SAMPLE_RATE)


def test_the_choice_fades_and_does_not_depend_on_the_pieces() -> None:
    t_S = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    x_S = (0.3 * np.sin(2 * np.pi * 200 * t_S)).astype(np.float32)
    side_S = np.where((t_S > 1) & (t_S < 3), -x_S, x_S)  # inverted for two seconds
    x_SC = np.stack([x_S, side_S], 1)
    mixer = MonoMixer(("FL", "FR"), SAMPLE_RATE)
    mono_S = mixer.mix(x_SC)
    pieces = MonoMixer(("FL", "FR"), SAMPLE_RATE)
    cut = [pieces.mix(part) for part in np.split(x_SC, [1, 700, 701, 9000, 30_000, 63_999])]
    assert np.allclose(np.concatenate(cut), mono_S, atol=1e-6)
    assert np.abs(mono_S[int(1.6 * SAMPLE_RATE) : int(2.9 * SAMPLE_RATE)] - x_S[int(1.6 * SAMPLE_RATE) : int(2.9 * SAMPLE_RATE)]).max() < 1e-6
    assert np.array_equal(mono_S[-SAMPLE_RATE // 4 :], x_S[-SAMPLE_RATE // 4 :])
    steps = np.abs(np.diff(mono_S))
    assert steps[np.abs(t_S[1:] - 1) > 0.001].max() < 2 * np.abs(np.diff(x_S)).max()  # no click but the recording's own


def test_different_voices_left_and_right_are_both_kept() -> None:
    rng = np.random.default_rng(0)
    x_SC = rng.normal(0, 0.1, (2 * SAMPLE_RATE, 2)).astype(np.float32)
    x_SC[:, 1] *= 0.3
    assert np.array_equal(MonoMixer(("FL", "FR"), SAMPLE_RATE).mix(x_SC), x_SC.mean(axis=1, dtype=np.float32))


def test_silence_and_no_audio_at_all() -> None:
    mixer = MonoMixer(("FL", "FR"), SAMPLE_RATE)
    assert not mixer.mix(np.zeros((SAMPLE_RATE, 2), np.float32)).any() and len(mixer.mix(np.zeros((0, 2), np.float32))) == 0


def test_read_audio_of_inverted_stereo_that_is_pushed_live() -> None:
    from everface.live.audio_input import StreamResampler

    x_S = np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE)
    stream = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)
    parts = [stream.push((32767 * part).astype(np.int16)).numpy() for part in np.split(np.stack([x_S, -x_S], 1), 10)]
    assert db(np.concatenate(parts)[SAMPLE_RATE:]) == pytest.approx(-20, abs=0.5)


def test_channels_that_change_in_the_middle(tmp_path: Path) -> None:
    """As a broadcast does: the model's mono goes on, and so does the track, in the channels that it began with."""
    for name, channels in (("a", 1), ("b", 2)):
        encode(tmp_path / f"{name}.aac", tone(2.0, 48_000, channels), 48_000)
    both = tmp_path / "both.aac"
    both.write_bytes((tmp_path / "a.aac").read_bytes() + (tmp_path / "b.aac").read_bytes())
    mono_S = np.concatenate(list(read_audio(both)))
    assert abs(len(mono_S) / SAMPLE_RATE - 4.05) < 0.1
    assert db(mono_S[int(0.5 * SAMPLE_RATE) : SAMPLE_RATE]) == pytest.approx(db(mono_S[int(3 * SAMPLE_RATE) : int(3.5 * SAMPLE_RATE)]), abs=0.3)
    assert np.concatenate(list(read_track(both))).shape[1] == 1
