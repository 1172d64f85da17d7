"""Audio: every container a user may pass, exact samples where nothing is resampled, flat memory, clear errors."""

import os
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soxr
from PIL import Image

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.audio import probe_audio, read_audio, read_track

CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "m4a": "aac",
    "ogg": "libopus",
    "aac": "aac",
    "webm": "libopus",
}
LOSSLESS = ("wav", "flac")


def encode(path: Path, pcm_CS: np.ndarray, rate: int, codec: str | None = None) -> Path:
    """Write float32 [C, S] with PyAV in the container that the name asks for."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(pcm_CS)]
    with av.open(str(path), "w", format={"m4a": "ipod", "aac": "adts"}.get(path.suffix[1:])) as container:
        stream = container.add_stream(codec or CODECS[path.suffix[1:]], rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        formats = {f.name for f in stream.codec_context.codec.audio_formats or []}
        for i in range(0, pcm_CS.shape[1], 4096):
            piece_CS = pcm_CS[:, i : i + 4096]
            if "fltp" in formats or "flt" in formats:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece_CS, np.float32), "fltp", layout)
            else:
                s16 = np.round(piece_CS * 32768).clip(-32768, 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(s16.T).reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, rate: int, channels: int = 1, hz: float = 440.0) -> np.ndarray:
    t_S = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hz * t_S)[None], channels, 0).astype(np.float32)


def whole(path: Path, chunk: int = SAMPLE_RATE) -> np.ndarray:
    chunks = list(read_audio(path, chunk))
    assert all(c.dtype == np.float32 and c.ndim == 1 for c in chunks)
    assert all(len(c) == chunk for c in chunks[:-1]) and 0 < len(chunks[-1]) <= chunk
    return np.concatenate(chunks)


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


def test_channels_are_averaged(tmp_path: Path):
    x_CS = np.stack([tone(1, SAMPLE_RATE)[0], np.zeros(SAMPLE_RATE, np.float32)])
    assert np.abs(whole(encode(tmp_path / "a.wav", x_CS, SAMPLE_RATE)) - x_CS.mean(0)).max() < 1e-4
    surround = encode(tmp_path / "s.wav", tone(0.5, SAMPLE_RATE, 6), SAMPLE_RATE)
    assert np.abs(whole(surround) - tone(0.5, SAMPLE_RATE)[0]).max() < 1e-4


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


def refused(path: Path, message: str) -> str:
    with pytest.raises(BadInput, match=message) as caught:
        whole(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_audio(tmp_path: Path):
    refused(tmp_path / "missing.wav", "there is no audio file")
    refused(tmp_path, "is a folder")
    refused(Path("http://127.0.0.1:9/a.wav"), "there is no audio file")
    os.mkfifo(tmp_path / "fifo.wav")
    refused(tmp_path / "fifo.wav", "not a regular file")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "empty")
    for name in ("text.txt", "text.wav"):
        (tmp_path / name).write_text("just words\n" * 100)
        refused(tmp_path / name, "not a readable audio file")
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(300))
    refused(tmp_path / "noise.mp3", "audio")
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    refused(tmp_path / "image.png", "not a readable audio file")


def test_a_playlist_opens_nothing_else(tmp_path: Path):
    encode(tmp_path / "a.aac", tone(1, 16_000), 16_000)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.aac\n#EXT-X-ENDLIST\n")
    refused(tmp_path / "list.m3u8", "not a readable audio file")
    (tmp_path / "list.wav").write_text("ffconcat version 1.0\nfile a.aac\n")
    refused(tmp_path / "list.wav", "not a readable audio file")


def test_a_video_is_not_audio(tmp_path: Path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    refused(tmp_path / "a.mp4", "is a video: pass an audio file")


@pytest.mark.parametrize(("samples", "fits"), [(160, False), (639, False), (640, True)])
def test_shorter_than_a_frame(tmp_path: Path, samples: int, fits: bool):
    path = encode(tmp_path / "a.wav", np.zeros((1, samples), np.float32), SAMPLE_RATE)
    if fits:
        assert len(whole(path)) == samples
    else:
        refused(path, f"lasts {samples / 16:.0f} ms")


def test_a_header_without_samples(tmp_path: Path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
    refused(tmp_path / "a.wav", "no audio")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(tmp_path: Path, bad: float):
    x_CS = tone(2, SAMPLE_RATE)
    x_CS[0, 24_000] = bad
    refused(encode(tmp_path / "a.wav", x_CS, SAMPLE_RATE, "pcm_f32le"), "not finite at 1.500 s")


def test_float_samples_beyond_full_scale_are_clipped(tmp_path: Path):
    x = whole(encode(tmp_path / "a.wav", 4 * tone(1, SAMPLE_RATE), SAMPLE_RATE, "pcm_f32le"))
    assert x.max() == 1 and x.min() == -1


@pytest.mark.parametrize("suffix", ["flac", "mp3", "m4a", "ogg", "aac", "webm"])
def test_damage_in_the_middle_is_named(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).normal(0, 0.2, (1, 20 * 44_100 if suffix != "ogg" else 20 * 48_000)).astype(np.float32)
    path = encode(tmp_path / f"a.{suffix}", noise, 48_000 if suffix in ("ogg", "webm") else 44_100)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = bytes(8000)
    path.write_bytes(data)
    message = refused(path, r"damaged at \d+\.\d\d s")
    at_s = float(message.split("damaged at ")[1].split(" s")[0])
    assert 6 < at_s < 13


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aac"])
def test_a_file_cut_short_ends_where_it_ends(tmp_path: Path, suffix: str):
    path = encode(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(0, 0.2, (1, 480_000)).astype(np.float32), 48_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert 3.5 * SAMPLE_RATE < len(whole(path)) < 6 * SAMPLE_RATE


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
