"""Audio that comes through a pipe: real pipes, real files, slow and broken producers."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from everface.core.errors import BadInput
from everface.media.audio import AudioInfo, read_audio
from everface.media.audio_stream import QUEUED_S, AudioStream
from everface.media.wav_stream import PCM

RATE = 22_050


def tone(seconds: float, rate_hz: int = RATE, channels: int = 1) -> np.ndarray:
    """int16 [S, C]."""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (9000 * np.sin(2 * np.pi * np.outer(t, 200 * (1 + np.arange(channels))))).astype("<i2")


def wav(samples: bytes, stated: int | None = None, tag: int = 1, bits: int = 16, channels: int = 1, rate_hz: int = RATE, more: bytes = b"") -> bytes:
    size = len(samples) if stated is None else stated
    block = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate_hz, rate_hz * block, block, bits)
    return b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + b"WAVE" + more + fmt + b"data" + struct.pack("<I", size) + samples


@contextmanager
def stream(pieces: Iterable[bytes], pcm: PCM | None = None, gap_s: float = 0.0) -> Iterator[AudioStream]:
    """What a producer writes into a pipe, piece by piece, and then closes."""
    out, into = os.pipe()

    def produce() -> None:
        try:
            for piece in pieces:
                os.write(into, piece)
                time.sleep(gap_s)
        except OSError:
            pass
        finally:
            os.close(into)

    thread = threading.Thread(target=produce)
    thread.start()
    reader = AudioStream(out, pcm)
    try:
        yield reader
    finally:
        reader.close()
        os.close(out)
        thread.join(10)
        assert not thread.is_alive()


def read_all(reader: AudioStream) -> tuple[AudioInfo, np.ndarray, np.ndarray]:
    info, tracks, monos = reader.info(), [], []
    while not reader.ended:
        if (part := reader.take(0.1)) is not None:
            tracks.append(part.track_SC)
            monos.append(part.mono_S)
    return info, np.concatenate(tracks), np.concatenate(monos)


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF, 0x7FFFF000, None])
def test_a_wav_whose_length_is_not_known(stated: int | None, tmp_path: Path) -> None:
    samples = tone(1.3)
    tail = b"LIST" + struct.pack("<I", 2000) + b"\x55" * 2000 if stated is None else b""
    with stream([wav(samples.tobytes(), stated, more=b"LIST\x03\0\0\0abc\0") + tail]) as reader:
        info, track_SC, mono_S = read_all(reader)
    assert (info.rate_hz, info.channels) == (RATE, 1)
    assert np.array_equal(np.round(track_SC[:, 0] * 32768).astype("<i2"), samples[:, 0])
    path = tmp_path / "a.wav"
    path.write_bytes(wav(samples.tobytes()))
    assert np.array_equal(np.concatenate(list(read_audio(path))), mono_S)  # as from a file, to the bit


FORMS = {
    "8 bit": (1, 8, lambda x: ((x >> 8) + 128).astype(np.uint8).tobytes(), 1e-2),
    "16 bit": (1, 16, lambda x: x.tobytes(), 0),
    "24 bit": (1, 24, lambda x: (x.astype("<i4") << 8).view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), 0),
    "32 bit": (1, 32, lambda x: (x.astype("<i4") << 16).tobytes(), 0),
    "float": (3, 32, lambda x: (x.astype("<f4") / 32768).tobytes(), 0),
    "double": (3, 64, lambda x: (x.astype("<f8") / 32768).tobytes(), 0),
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_sample(form: str, channels: int) -> None:
    tag, bits, pack, within = FORMS[form]
    samples = tone(0.5, channels=channels)
    data = wav(pack(samples), 0, tag, bits, channels)
    with stream([data[i : i + 777] for i in range(0, len(data), 777)]) as reader:
        info, track_SC, _ = read_all(reader)
    assert info.track_channels == channels and track_SC.shape == samples.shape
    assert np.abs(track_SC - samples / 32768).max() <= within


@pytest.mark.parametrize("name", ["flac", "mp3", "adts", "ogg", "webm", "mulaw", "mp4"])
def test_containers_are_decoded_as_they_come(name: str) -> None:
    codec, form = {
        "flac": ("flac", "flac"), "mp3": ("libmp3lame", "mp3"), "adts": ("aac", "adts"), "ogg": ("libopus", "ogg"), "webm": ("libopus", "webm"),
        "mulaw": ("pcm_mulaw", "wav"), "mp4": ("aac", "mp4"),
    }[name]  # fmt: skip
    rate_hz, file = 8_000 if name == "mulaw" else 48_000, io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"} if name == "mp4" else {}
    with av.open(file, "w", format=form, options=options) as container:
        out: Any = container.add_stream(codec, rate=rate_hz, layout="mono")
        resampler = av.AudioResampler(format=out.codec_context.format, layout="mono", rate=rate_hz, frame_size=960)
        frame = av.AudioFrame.from_ndarray(tone(6.0, rate_hz).T.copy(), "s16", "mono")
        frame.sample_rate = rate_hz
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(out.encode(part))
        container.mux(out.encode(None))
    data = file.getvalue()
    cut = len(data) * 2 // 3
    released = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield from (data[i : i + 1000] for i in range(0, cut, 1000))
        released.wait(60.0)
        yield data[-(-cut // 1000) * 1000 :]

    with stream(pieces()) as reader:
        assert reader.info().rate_hz == rate_hz
        seen_s, end_s = 0.0, time.monotonic() + 60
        while seen_s < 2.0 and time.monotonic() < end_s:  # while the producer waits
            part = reader.take(0.1)
            seen_s += len(part.track_SC) / rate_hz if part else 0.0
        assert seen_s >= 2.0
        released.set()
        _, track_SC, mono_S = read_all(reader)
    assert abs(seen_s + len(track_SC) / rate_hz - 6.0) < 0.15
    assert np.abs(mono_S).max() > 0.2


def test_raw_samples(tmp_path: Path) -> None:
    samples = tone(0.7, 24_000, 2)
    data = samples.tobytes() + b"\x01"  # half a sample
    with stream([data[i : i + 999] for i in range(0, len(data), 999)], PCM(24_000, 2)) as reader:
        info, track_SC, mono_S = read_all(reader)
    assert (info.rate_hz, info.channels) == (24_000, 2)
    assert np.array_equal(np.round(track_SC * 32768).astype("<i2"), samples) and abs(len(mono_S) - 0.7 * 16_000) <= 1
    for wrong in ((10, 1), (16_000, 0), (16_000, 65)):
        with pytest.raises(BadInput):
            PCM(*wrong)


def test_samples_leave_as_they_come() -> None:
    """Speech of 100 ms is there 100 ms later, not when some buffer is full."""
    data = wav(tone(3.0).tobytes(), 0)
    with stream([data[:44], *(data[i : i + 4410] for i in range(44, len(data), 4410))], gap_s=0.1) as reader:
        began_s, seen_s = time.monotonic(), 0.0
        while seen_s < 0.5:
            part = reader.take(0.1)
            seen_s += len(part.track_SC) / RATE if part else 0.0
        assert time.monotonic() - began_s < 2.8


REFUSED = {
    "nothing": (b"", "ended before any audio came"),
    "a header alone": (wav(b"", 0), "ended before any audio came"),
    "10 ms": (wav(tone(0.01).tobytes(), 0), "10 ms, less than one video frame"),
    "noise": (np.random.default_rng(0).bytes(1 << 17), "no audio that can be decoded"),
    "zeros": (bytes(1 << 17), "no audio that can be decoded"),
    "text": (b"hello there\n" * 10_000, "no audio that can be decoded"),
    "a list of files": (b"#EXTM3U\nfile:///etc/passwd\n" * 100, "no audio that can be decoded"),
    "an image": (Path(__file__).parents[2].joinpath("python/everface/default/ada.png").read_bytes(), "no audio that can be decoded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_audio_is_refused_in_a_sentence(case: str) -> None:
    data, message = REFUSED[case]
    with stream([data[i : i + 4096] for i in range(0, len(data), 4096)]) as reader, pytest.raises(BadInput, match=message) as caught:
        reader.info()
    assert "\n" not in str(caught.value) and "stdin" in str(caught.value)


def test_an_mp4_with_its_index_at_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        out: Any = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(2.0, 48_000).T.astype(np.float32) / 32768, "fltp", "mono")
        frame.sample_rate = 48_000
        container.mux(out.encode(frame))
        container.mux(out.encode(None))
    with stream([path.read_bytes()]) as reader, pytest.raises(BadInput, match="as it comes"):
        reader.info()


def test_an_endless_producer_waits_and_nothing_grows() -> None:
    piece, sent = tone(0.1).tobytes(), [0]

    def endless() -> Iterator[bytes]:
        while True:
            sent[0] += len(piece)
            yield piece

    with stream(endless(), PCM(RATE)) as reader:
        reader.info()
        time.sleep(0.5)
        before = sent[0]
        time.sleep(0.5)
        assert sent[0] == before and before / RATE / 2 < QUEUED_S + 3.5  # a pipe holds 64 KB
        for _ in range(20):
            assert reader.take(1.0) is not None
        time.sleep(0.3)
        assert sent[0] > before


def test_close_ends_a_wait_for_a_silent_producer() -> None:
    out, into = os.pipe()
    reader = AudioStream(out)
    assert reader.take(0.05) is None and not reader.ended
    began_s = time.monotonic()
    reader.close()
    assert time.monotonic() - began_s < 1.0 and not reader._thread.is_alive()
    os.close(into)
    os.close(out)
