"""A render of two speakers: each voice moves its own part of the image, and both are in the video."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from tests.avatar.test_render import frames_of

from everface.avatar.sources import TwoVoices
from everface.cli import main
from everface.media.video import probe_video


def tone(path: Path, seconds: float, hz: int, rate_hz: int = 16_000) -> Path:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes((0.3 * 32767 * np.sin(2 * np.pi * hz * t)).astype("<i2").tobytes())
    return path


def test_the_shorter_voice_is_followed_by_silence(tmp_path: Path) -> None:
    """Files of other rates: parts stay in time, in the track at the higher rate."""
    source = TwoVoices(tone(tmp_path / "a.wav", 0.9, 300), tone(tmp_path / "b.wav", 1.3, 700, 24_000))
    assert (source.info().rate_hz, source.info().track_channels) == (24_000, 2) and source.info().duration_s == pytest.approx(1.3)
    parts = []
    while not source.ended:
        if (part := source.take(0.0)) is not None:
            assert part.mono_S.shape[0] == part.track_SC.shape[1] == 2
            parts.append(part)
    track_S2, voices_2S = np.concatenate([p.track_SC for p in parts]), np.concatenate([p.mono_S for p in parts], axis=1)
    for audio_2S, rate_hz in ((track_S2.T, 24_000), (voices_2S, 16_000)):
        assert abs(audio_2S.shape[1] - 1.3 * rate_hz) < 64
        for voice_S, hz, seconds in zip(audio_2S, (300, 700), (0.9, 1.3), strict=True):
            spoken, t = voice_S[: int(seconds * rate_hz)], np.arange(int(seconds * rate_hz)) / rate_hz
            assert np.abs(spoken - 0.3 * np.sin(2 * np.pi * hz * t))[200:-200].max() < 0.01
            assert not np.abs(voice_S[int(seconds * rate_hz) + 64 :]).any()


def test_render_of_two_speakers(small_model: Path, face: Path, tmp_path: Path) -> None:
    first, second = tone(tmp_path / "a.wav", 0.9, 300), tone(tmp_path / "b.wav", 1.3, 700)

    def render(second: Path, *flags: str) -> np.ndarray:
        out = tmp_path / "x.mp4"
        words = ["render", str(face), str(first), "-o", str(out), "--weights", str(small_model), "--force", "--second", str(second), *flags]
        assert main(words) == 0
        assert probe_video(out).frames == 33  # ceil(1.3 s * 25)
        return frames_of(out)

    halves = render(second)
    with av.open(str(tmp_path / "x.mp4")) as file:
        rate_hz, track_2S = file.streams.audio[0].rate, np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
    loudest = [2 * np.abs(np.fft.rfft(voice_S[rate_hz // 8 :][: rate_hz // 2])).argmax() for voice_S in track_2S]
    assert loudest == [300, 700]  # left, right
    assert np.array_equal(halves, render(second, "--speakers", "0,0,0.5,1", "0.5,0,1,1"))
    assert not np.array_equal(halves, render(second, "--speakers", "0.5,0,1,1", "0,0,0.5,1"))


REFUSALS = {
    "no such voice": (["--second", "{tmp}/none.wav"], "none.wav"),
    "no second voice": (["--speakers", "0,0,0.5,1", "0.5,0,1,1"], "--second"),
    "one box": (["--second", "{voice}", "--speakers", "0,0,0.5,1"], "expected 2 arguments"),
    "no box": (["--second", "{voice}", "--speakers", "0,0,1", "left"], "'0,0,1' is no box"),
    "outside": (["--second", "{voice}", "--speakers", "0,0,0.5,1", "0.5,0,1.5,1"], "0.5,0,1.5,1"),
    "overlap": (["--second", "{voice}", "--speakers", "0,0,0.6,1", "0.5,0,1,1"], "overlap"),
    "smaller than a token": (["--second", "{voice}", "--speakers", "0,0,0.5,1", "0.9,0,0.95,1"], "tokens"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, small_model: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, named = REFUSALS[case]
    flags = [word.format(tmp=tmp_path, voice=voice) for word in words]
    try:
        code = main(["render", str(face), str(voice), "-o", str(tmp_path / "x.mp4"), "--weights", str(small_model), *flags])
    except SystemExit as stop:  # argparse
        code = stop.code
    said = capsys.readouterr().err.strip()
    assert code == 2 and said.startswith("everface: ") and "\n" not in said and named in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"), [(["{face}", "-"], "AUDIO is -"), (["--batch", "{face}"], "one voice a line")], ids=["stdin", "batch"]
)
def test_where_a_second_voice_cannot_be(words: list[str], named: str, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = [word.format(face=face) for word in words]
    assert main(["render", *given, "-o", str(tmp_path / "x.mp4"), "--second", str(voice)]) == 2
    assert named in capsys.readouterr().err
