"""What --help and README promise about images and audio: every format is read, and both name the same ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from everface.cli import main
from everface.media.audio import read_audio
from everface.media.image import NAMES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
# format name in --help -> (container, codec, sample rate)
AUDIO = {
    "wav": ("wav", "pcm_s16le", 44_100),
    "w64": ("w64", "pcm_s16le", 44_100),
    "aiff": ("aiff", "pcm_s16be", 44_100),
    "caf": ("caf", "pcm_s16be", 44_100),
    "au": ("au", "pcm_s16be", 44_100),
    "flac": ("flac", "flac", 44_100),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "aac": ("adts", "aac", 44_100),
    "m4a": ("ipod", "aac", 44_100),
    "ogg": ("ogg", "libopus", 48_000),
    "opus": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "libopus", 48_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
}


def test_help_and_readme_name_the_formats_that_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "--help"])
    found = re.search(r"IMAGE a portrait: (.*) AUDIO speech: (.*) options:", " ".join(capsys.readouterr().out.split()))
    assert found
    images, audio = found.groups()
    assert images == NAMES.replace("AVIF or HEIC", "AVIF, or HEIC with everface[heic]")
    assert set(re.split(r", | or ", audio)) == set(AUDIO)
    readme = " ".join(README.split())
    assert NAMES.replace(" or ", " and ") in readme and audio.replace(" or ", " and ") in readme


@pytest.mark.parametrize("name", AUDIO)
def test_audio_of_every_promised_format_is_read(name: str, tmp_path: Path) -> None:
    form, codec, rate_hz = AUDIO[name]
    path, tone = tmp_path / f"a.{name}", (0.3 * np.sin(2 * np.pi * 200 * np.arange(rate_hz) / rate_hz) * 32767).astype(np.int16)
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate_hz)
        stream.layout = "mono"
        stream.bit_rate = 12_200 if name == "amr" else 64_000
        context = stream.codec_context
        context.open()
        resampler = av.AudioResampler(format=context.format, layout="mono", rate=rate_hz, frame_size=context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.sample_rate = rate_hz
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    audio_S = np.concatenate(list(read_audio(path)))
    assert 0.95 * 16_000 <= len(audio_S) <= 1.1 * 16_000
    middle = audio_S[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * 2 - 200) <= 2 and 0.2 < np.abs(middle).max() < 0.4
