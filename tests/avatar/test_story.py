"""Stories: which audio each shot has, where it begins, and every error with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everface.avatar.render import RenderJob, render
from everface.avatar.story import StoryAudio, StoryShot, read_story
from everface.cli import main
from everface.core.config import StreamConfig
from everface.core.errors import BadInput
from everface.media.audio import read_audio, read_track
from everface.media.audio_stream import AudioPart
from everface.media.video import probe_video, read_frames
from everface.train.synthetic.voices import write_wav

FIRST = '{"image": "one.png", "audio": "voice.wav", "end": 0.7}'


@pytest.fixture
def folder(tmp_path: Path, face: Path, voice: Path) -> Path:
    """one.png and two.png, and voice.wav of 2.1 s and other.wav of 1 s."""
    Image.open(face).save(tmp_path / "one.png")
    Image.open(face).rotate(180).save(tmp_path / "two.png")
    (tmp_path / "voice.wav").write_bytes(voice.read_bytes())
    write_wav(tmp_path / "other.wav", 0.1 * torch.sin(torch.arange(16_000) / 9))
    return tmp_path


def story(folder: Path, *lines: str) -> list[StoryShot]:
    (folder / "s.jsonl").write_text("\n".join(lines) + "\n")
    return read_story(folder / "s.jsonl")


def parts(shots: list[StoryShot]) -> list[tuple[dict[str, object] | None, AudioPart]]:
    source, taken = StoryAudio(shots), []
    while (part := source.take(0.0)) is not None:
        taken.append((source.cut, part))
    return taken


def whole(path: Path) -> np.ndarray:
    return np.concatenate(list(read_audio(path)))


def test_a_file_that_goes_on_over_a_cut_has_no_seam(folder: Path) -> None:
    taken = parts(story(folder, FIRST, '{"image": "two.png", "end": 1.3, "transition": "dissolve"}', '{"prompt": "nearer"}'))
    assert np.array_equal(np.concatenate([part.mono_S for _, part in taken]), whole(folder / "voice.wav"))
    assert np.array_equal(np.concatenate([part.track_SC for _, part in taken]), np.concatenate(list(read_track(folder / "voice.wav"))))
    cuts, at = [], 0
    for cut, part in taken:
        cuts += [(at, cut)] if cut is not None else []
        at += len(part.mono_S)
    assert cuts == [(11_200, {"image": folder / "two.png", "transition": "dissolve"}), (20_800, {"prompt": "nearer"})]


def test_each_shot_has_its_own_span(folder: Path) -> None:
    write_wav(folder / "low.wav", torch.zeros(1))
    shots = story(folder, FIRST, '{"audio": "other.wav", "begin": 0.25, "end": 0.5}', '{"audio": "voice.wav", "begin": 2}')
    voice, other = whole(folder / "voice.wav"), whole(folder / "other.wav")
    expected = np.concatenate([voice[:11_200], other[4000:8000], voice[32_000:]])
    assert np.array_equal(np.concatenate([part.mono_S for _, part in parts(shots)]), expected)
    assert StoryAudio(shots).info().duration_s == pytest.approx(0.7 + 0.25 + 0.1)
    assert read_story(_csv(folder, "image,audio,end,begin\none.png,voice.wav,0.7,\n,other.wav,0.5,0.25\n,voice.wav,,2\n")) != shots
    assert [(s.audio, s.begin_s, s.end_s) for s in read_story(folder / "s.csv")] == [(s.audio, s.begin_s, s.end_s) for s in shots]


def _csv(folder: Path, text: str) -> Path:
    (folder / "s.csv").write_text(text)
    return folder / "s.csv"


def test_other_rates_and_channels_get_those_of_the_first_file(folder: Path) -> None:
    samples = (8000 * np.sin(np.arange(2 * 44_100) / 20)).astype("<i2")
    header = b"RIFF" + (36 + samples.nbytes).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little") + (1).to_bytes(2, "little")
    header += (2).to_bytes(2, "little") + (44_100).to_bytes(4, "little") + (176_400).to_bytes(4, "little") + b"\x04\x00\x10\x00"
    (folder / "stereo.wav").write_bytes(header + b"data" + samples.nbytes.to_bytes(4, "little") + samples.tobytes())
    taken = [part for _, part in parts(story(folder, FIRST, '{"audio": "stereo.wav"}'))]
    assert {part.track_SC.shape[1] for part in taken} == {1}
    assert [sum(len(part[i]) for part in taken) for i in (0, 1)] == [27_200, 27_200]
    taken = [part for _, part in parts(story(folder, '{"image": "one.png", "audio": "stereo.wav"}', '{"audio": "voice.wav"}'))]
    assert {part.track_SC.shape[1] for part in taken} == {2} and abs(sum(len(part.track_SC) for part in taken) - 3.1 * 44_100) <= 1


WRONG = {
    "no shots": ([""], "has no shots"),
    "no image at first": (['{"audio": "voice.wav"}'], "line 1 of .* first shot"),
    "a transition at first": (['{"image": "one.png", "audio": "voice.wav", "transition": "cut"}'], "line 1 of .* leave its transition out"),
    "behind the end": (['{"image": "one.png", "audio": "voice.wav"}', "{}"], "line 2 of .* has to its end"),
    "backward": (['{"image": "one.png", "audio": "voice.wav", "begin": 2, "end": 1}'], "line 1 of .* end behind its begin"),
    "no time": (['{"image": "one.png", "audio": "voice.wav", "begin": "soon"}'], "line 1 of .* write seconds"),
    "not finite": (['{"image": "one.png", "audio": "voice.wav", "end": NaN}'], "line 1 of .* write seconds"),
    "unknown key": (['{"image": "one.png", "audio": "voice.wav", "start": 1}'], "unknown key 'start'"),
    "no text": (['{"image": 3, "audio": "voice.wav"}'], "line 1 of .* write text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_with_its_line(case: str, folder: Path) -> None:
    lines, message = WRONG[case]
    with pytest.raises(BadInput, match=message) as caught:
        story(folder, *lines)
    assert "\n" not in str(caught.value)


def test_files_are_looked_at_before_anything_is_rendered(folder: Path, small_model: Path) -> None:
    out = folder / "film.mp4"
    for line, message in (('{"audio": "gone.wav"}', "line 2 of .*gone.wav"), ('{"image": "gone.png"}', "line 2 of .*gone.png")):
        with pytest.raises(BadInput, match=message):
            render(RenderJob.of_story(story(folder, FIRST, line), out, StreamConfig(), weights=small_model))
        assert not out.exists()
    with pytest.raises(BadInput, match=r"line 2 of .* no audio any more"):
        render(RenderJob.of_story(story(folder, FIRST, '{"begin": 60}'), out, StreamConfig(), weights=small_model))


def test_a_story_from_the_command_line(folder: Path, small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story(folder, FIRST, '{"image": "two.png", "end": 1.4}', '{"image": "one.png", "transition": "dissolve"}')
    out = folder / "film.mp4"
    command = ["render", "--story", str(folder / "s.jsonl"), "-o", str(out), "--weights", str(small_model)]
    assert main(command) == 0
    info, frames = probe_video(out), [frame.astype(int) for frame in read_frames(out)]
    assert info.frames == len(frames) == 53 and info.audio_duration_s == pytest.approx(2.1, abs=0.03)
    assert main(["render", str(folder / "one.png"), str(folder / "voice.wav"), "-o", str(folder / "plain.mp4"), *command[-2:]]) == 0
    differences = [np.abs(a - b).mean() for a, b in zip(frames, read_frames(folder / "plain.mp4"))]
    assert max(differences[:17]) < min(differences[17:35])  # 0.7 s are 17 frames and a half
    capsys.readouterr()
    for refused in ([*command, "x.png", "y.wav"], [*command, "--batch", "x.csv"]):
        assert main(refused) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("--story" in said or "--batch" in said)
