"""Audio: every container a user may pass, exact samples where nothing is resampled, flat memory."""

import wave
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soxr
from PIL import Image
from tests.media.recordings import CODECS, LOSSLESS, encode, tone, whole

from everface.core.config import SAMPLE_RATE
from everface.media.audio import probe_audio, read_audio, read_track


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_16_khz_lossless_is_sample_exact(tmp_path: Path, suffix: str):
    x = np.random.default_rng(0).integers(-32768, 32768, 50_001)
    path = encode(tmp_path / f"a.{suffix}", (x / 32768)[None].astype(np.float32), SAMPLE_RATE)
    want = (x / 32768).astype(np.float32)
    for chunk in (1, 640, 7680, 100_000) if suffix == "wav" else (7680,):
        assert np.array_equal(whole(path, chunk), want)
    assert np.array_equal(np.concatenate(list(read_track(path, 7680)))[:, 0], want)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integer_widths_are_exact(tmp_path: Path, width: int):
    bits = 8 * width
    x = np.random.default_rng(width).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 2000, dtype=np.int64)
    raw = x + 128 if width == 1 else x
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in raw))
    assert np.array_equal(whole(tmp_path / "a.wav"), (x / 2.0 ** (bits - 1)).astype(np.float32))


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (16_000, 1)])
def test_every_container(tmp_path: Path, suffix: str, rate: int, channels: int):
    path = encode(tmp_path / f"a.{suffix}", tone(2.0, rate, channels), rate)
    info = probe_audio(path)
    assert info.channels == channels and info.rate_hz in (rate, 48_000)  # opus always decodes at 48 kHz
    assert info.duration_s is not None and abs(info.duration_s - 2.0) < 0.15
    x = whole(path, 7680)
    lag = 0 if suffix in LOSSLESS else 2048  # an encoder's priming and padding where its container cannot state them
    assert abs(len(x) - 2 * SAMPLE_RATE) <= 2 * lag
    middle = x[8000:24000]
    assert abs(np.sqrt((middle**2).mean()) - 0.5 / np.sqrt(2)) < 0.02  # lame scales by 0.95
    assert abs(np.argmax(np.abs(np.fft.rfft(middle))) - 440) <= 1
    track = np.concatenate(list(read_track(path)))
    assert track.shape[1] == channels and abs(len(track) / info.rate_hz - 2.0) < 0.15


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 96_000])
def test_resampling_is_soxr_in_time_and_length(tmp_path: Path, rate: int):
    x = np.random.default_rng(rate).normal(0, 0.1, rate * 2 + 7).astype(np.float32)
    path = encode(tmp_path / "a.wav", x[None], rate)
    x16 = (np.round(x * 32768) / 32768).astype(np.float32)
    want = soxr.resample(x16, rate, SAMPLE_RATE)
    for chunk in (640, 7680):
        got = whole(path, chunk)
        assert abs(len(got) - len(x) * SAMPLE_RATE / rate) <= 1
        assert np.abs(got - want[: len(got)]).max() < 1e-4


def test_stereo_is_averaged(tmp_path: Path):
    x_CS = np.stack([tone(1, SAMPLE_RATE)[0], np.zeros(SAMPLE_RATE, np.float32)])
    assert np.abs(whole(encode(tmp_path / "a.wav", x_CS, SAMPLE_RATE)) - x_CS.mean(0)).max() < 1e-4


def test_silence_is_fine(tmp_path: Path):
    assert np.array_equal(whole(encode(tmp_path / "a.wav", np.zeros((1, 8000), np.float32), SAMPLE_RATE)), np.zeros(8000))


def test_cover_art_is_not_a_video(tmp_path: Path):
    source = encode(tmp_path / "a.mp3", tone(1, 44_100), 44_100)
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "cover.jpg")
    data = (tmp_path / "cover.jpg").read_bytes()
    body = b"\x00image/jpeg\x00\x03\x00" + data  # ID3v2.3 APIC: latin-1, mime, front cover, no description
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\x00\x00" + body
    size = bytes((len(frame) >> s) & 0x7F for s in (21, 14, 7, 0))
    tagged = tmp_path / "tagged.mp3"
    tagged.write_bytes(b"ID3\x03\x00\x00" + size + frame + source.read_bytes())
    with av.open(str(tagged)) as container:
        assert len(container.streams.video) == 1
    assert abs(len(whole(tagged)) - SAMPLE_RATE) < 2000


def test_float_samples_beyond_full_scale_are_clipped(tmp_path: Path):
    x = whole(encode(tmp_path / "a.wav", 4 * tone(1, SAMPLE_RATE), SAMPLE_RATE, "pcm_f32le"))
    assert x.max() == 1 and x.min() == -1


def test_memory_is_flat(tmp_path: Path):
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:  # six minutes at 48 kHz stereo: 69 MB of mono float32
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(48_000)
        second = (np.random.default_rng(0).normal(0, 3000, 96_000)).astype("<i2").tobytes()
        for _ in range(360):
            file.writeframesraw(second)
    process, start, most, count = psutil.Process(), 0, 0, 0
    for i, chunk in enumerate(read_audio(tmp_path / "long.wav", 7680)):
        count += len(chunk)
        if i == 50:
            start = process.memory_info().rss
        if i % 50 == 0:
            most = max(most, process.memory_info().rss)
    assert count == 360 * SAMPLE_RATE
    assert most - start < 8 * 2**20
