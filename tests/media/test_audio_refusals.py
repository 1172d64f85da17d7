"""Audio files that cannot be used are refused in one clear sentence."""

import os
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.media.recordings import encode, tone, whole

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput


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


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aac"])
def test_a_file_cut_short_ends_where_it_ends(tmp_path: Path, suffix: str):
    path = encode(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(0, 0.2, (1, 480_000)).astype(np.float32), 48_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert 3.5 * SAMPLE_RATE < len(whole(path)) < 6 * SAMPLE_RATE
