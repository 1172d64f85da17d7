"""Damaged audio is decoded on, in time: what is lost is silent, and one line says so. What is mostly damaged is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tests.media.decoding.damage import bursts, overwrite, shift_ms
from tests.media.recordings import encode, whole

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.audio import probe_audio, read_audio, read_track

FORMATS = {"mp3": 44_100, "aac": 44_100, "m4a": 44_100, "ogg": 48_000, "webm": 48_000, "flac": 44_100}
SECONDS = 12
CLEAN: dict[str, bytes] = {}


def clean(folder: Path, suffix: str) -> Path:
    if suffix not in CLEAN:
        path = encode(folder / f"clean.{suffix}", bursts(SECONDS, FORMATS[suffix]), FORMATS[suffix])
        CLEAN[suffix] = path.read_bytes()
    path = folder / f"a.{suffix}"
    path.write_bytes(CLEAN[suffix])
    return path


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(1).bytes(count)


@pytest.mark.parametrize("damage", [bytes(4000), random_bytes(4000), random_bytes(300)], ids=["zeros", "noise", "few"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_it_goes_on_in_time(tmp_path: Path, suffix: str, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = clean(tmp_path, suffix)
    true_S, true_track = whole(path), np.concatenate(list(read_track(path)))
    overwrite(path, damage)
    with caplog.at_level(logging.INFO, "everface"):
        got_S, track = whole(path), np.concatenate(list(read_track(path)))
    assert abs(len(got_S) - len(true_S)) < 0.02 * SAMPLE_RATE
    rate = probe_audio(path).rate_hz
    assert abs(len(track) / rate - len(got_S) / SAMPLE_RATE) < 0.002 and abs(len(track) - len(true_track)) < 0.02 * rate
    for at_s in (1.0, SECONDS - 2.0):
        shift, alike = shift_ms(got_S, true_S, at_s)
        assert abs(shift) < 5 and alike > 0.9
    silent_s = float((np.abs(got_S) < 1e-6).mean()) * len(got_S) / SAMPLE_RATE
    assert silent_s < (5.2 if suffix == "webm" else 2.1)  # ogg loses whole pages, matroska whole clusters, of up to 5 s
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == (1 if silent_s > 0.01 else len(warnings)) and len(warnings) <= 1
    for record in warnings:
        assert "is damaged, first at" in record.getMessage() and "became silence" in record.getMessage()


def test_one_bad_packet_costs_one_packet(tmp_path: Path) -> None:
    """The header of one mp3 frame: the example that ended a render."""
    path = clean(tmp_path, "mp3")
    true_S = whole(path)
    data = path.read_bytes()
    at = data.find(data[(first := data.find(b"\xff\xfb")) : first + 2], len(data) // 2)
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    got_S = whole(path)
    assert 0 <= len(got_S) - len(true_S) < 0.02 * SAMPLE_RATE  # the encoder's padding at the end may stay
    assert shift_ms(got_S, true_S, 10.0)[0] == 0
    assert (np.abs(got_S[: len(true_S)] - true_S) > 0.05).sum() < 0.5 * SAMPLE_RATE  # the next packets need its bits


def test_damage_in_several_places_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clean(tmp_path, "mp3")
    true_S = whole(path)
    for at in (0.2, 0.4, 0.6, 0.8):
        overwrite(path, random_bytes(1500), at)
    got_S = whole(path)
    assert abs(len(got_S) - len(true_S)) < 0.06 * SAMPLE_RATE and abs(shift_ms(got_S, true_S, 10.2)[0]) < 20
    (record,) = caplog.records
    assert "first at 2." in record.getMessage() and str(path) in record.getMessage()


def test_damage_at_the_very_end_and_start(tmp_path: Path) -> None:
    for suffix in ("mp3", "m4a", "aac"):
        true_S = whole(clean(tmp_path, suffix))
        assert abs(len(whole(overwrite(clean(tmp_path, suffix), bytes(700), 0.95))) - len(true_S)) < 0.1 * SAMPLE_RATE
    path = clean(tmp_path, "mp3")
    path.write_bytes(random_bytes(5000) + path.read_bytes())  # junk before the first packet is no audio
    assert abs(len(whole(path)) - SECONDS * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("suffix", ["mp3", "aac", "m4a", "ogg", "webm", "flac"])
def test_mostly_garbage_is_refused(tmp_path: Path, suffix: str) -> None:
    path = clean(tmp_path, suffix)
    size = path.stat().st_size
    begin = 0.25 if suffix != "m4a" else 0.15
    overwrite(path, random_bytes(int(0.7 * size)), begin)
    if suffix == "m4a":  # its index is at the end: keep it
        path.write_bytes(path.read_bytes()[: -(tail := 4000)] + CLEAN["m4a"][-tail:])
    with pytest.raises(BadInput, match="most of it is lost|contains no audio|not a readable") as caught:
        whole(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_silent(tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture) -> None:
    x_CS = bursts(2, SAMPLE_RATE)
    x_CS[0, 24_000] = bad
    got_S = whole(encode(tmp_path / "a.wav", x_CS, SAMPLE_RATE, "pcm_f32le"))
    want_S = np.clip(x_CS[0], -1, 1)
    want_S[24_000] = 0
    assert np.array_equal(got_S, want_S)
    (record,) = caplog.records
    assert "first at 1.50 s" in record.getMessage() and "1 samples" in record.getMessage()


def test_a_file_without_a_finite_sample_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", np.full((1, 2 * SAMPLE_RATE), np.nan, np.float32), SAMPLE_RATE, "pcm_f32le")
    with pytest.raises(BadInput, match="most of it is lost"):
        whole(path)


def test_a_rate_that_changes_in_the_middle(tmp_path: Path) -> None:
    """As in two recordings put one behind the other."""
    both = tmp_path / "both.aac"
    both.write_bytes(b"".join(encode(tmp_path / f"{rate}.aac", bursts(3, rate), rate).read_bytes() for rate in (44_100, 48_000)))
    got_S, track_SC = np.concatenate(list(read_audio(both))), np.concatenate(list(read_track(both)))
    assert abs(len(got_S) / SAMPLE_RATE - 6.1) < 0.1 and abs(len(track_SC) / 44_100 - len(got_S) / SAMPLE_RATE) < 0.01
