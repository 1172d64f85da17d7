"""Frames of more channels than libav's frames have places for: their own type, one plane a channel."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from everface.media.audio import read_audio
from everface.media.audio_stream import AudioStream

RATE, SECONDS = 48_000, 0.4  # of the tones
LEVELS = """
import sys
import av
import numpy as np
from everface.media.decoding.samples import samples_of
with av.open(sys.argv[1]) as container:
    track_SC = np.concatenate([samples_of(frame) for frame in container.decode(audio=0)])
print(*np.abs(track_SC[4800:14400]).max(0))
"""


@pytest.fixture(params=[7, 8, 9, 16])
def many(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, int]:
    """Opus, whose decoder makes planes: channel n is a tone of (n + 1) / 100."""
    path, count = tmp_path / "many.ogg", request.param
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout=f"{count} channels", options={"mapping_family": "255", "b": "512000"})
        t_S = np.arange(round(SECONDS * RATE)) / RATE
        x_SC = (np.sin(2 * np.pi * 300 * t_S)[:, None] * (1 + np.arange(count)) / 100).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(x_SC.reshape(1, -1), "flt", f"{count} channels")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path, count


def test_every_channel_is_read(many: tuple[Path, int]) -> None:
    path, count = many  # in a process of its own, since the fault that it looks for ends one
    printed = subprocess.run([sys.executable, "-c", LEVELS, str(path)], check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    assert [float(level) for level in printed.split()] == pytest.approx((1 + np.arange(count)) / 100, rel=0.1)


def test_a_pipe_sounds_as_the_file(many: tuple[Path, int]) -> None:
    path, count = many
    with open(path, "rb") as file:
        reader = AudioStream(file.fileno())
        info, monos = reader.info(), list[np.ndarray]()
        while not reader.ended:
            if (part := reader.take(0.1)) is not None:
                monos.append(part.mono_S)
        reader.close()
    mono_S, whole_S = np.concatenate(monos), np.concatenate(list(read_audio(path)))
    assert info.channels == count and abs(whole_S).max() > 0.03 and np.allclose(mono_S[: len(whole_S)], whole_S, atol=1e-4)
