"""A quiet voice moves the bundled model's lips as a loud one does: from a file and pushed live. The track that is played stays as it was."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from everface.avatar.avatar import Avatar
from everface.avatar.render import RenderJob, render
from everface.core.config import SAMPLE_RATE
from everface.media.audio import read_audio
from everface.media.video import read_frames
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.train.engine.statistics import correlation
from everface.train.evaluate.metrics import as_rgb, crop
from everface.train.synthetic.characters import mouth_box
from everface.train.synthetic.voices import read_wav, write_wav

IMAGE = DEFAULT_WEIGHTS / "mia.png"


def mouth(frames_THW3: torch.Tensor) -> torch.Tensor:
    """How far the mouth is from the first frame's, which is shut."""
    lips_T3HW = crop(as_rgb(frames_THW3), mouth_box(frames_THW3.shape[1]))
    return (lips_T3HW - lips_T3HW[:1]).abs().mean((1, 2, 3))


def rendered(folder: Path, pcm_S: torch.Tensor) -> Path:
    write_wav(folder / "voice.wav", pcm_S)
    render(RenderJob(IMAGE, folder / "voice.wav", folder / "talk.mp4", overwrite=True))
    return folder / "talk.mp4"


@pytest.fixture(scope="module")
def voice_S() -> torch.Tensor:
    return read_wav(DEFAULT_WEIGHTS / "speech.wav")[: int(2.6 * SAMPLE_RATE)]


def test_twenty_db_quieter(tmp_path: Path, voice_S: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    own_T = mouth(torch.from_numpy(np.stack(list(read_frames(rendered(tmp_path, voice_S))))))
    with caplog.at_level(logging.INFO, "everface"):
        film = rendered(tmp_path, 0.1 * voice_S)
    quiet_T = mouth(torch.from_numpy(np.stack(list(read_frames(film)))))
    assert "too quiet" in caplog.text
    assert correlation(quiet_T, own_T) >= 0.95 and float(quiet_T.std() / own_T.std()) == pytest.approx(1, abs=0.1)

    heard_S = np.concatenate(list(read_audio(extracted(film))))[: len(voice_S)]
    assert 20 * np.log10(heard_S.std() / float(voice_S.std())) == pytest.approx(-20, abs=0.3)

    with Avatar() as avatar, avatar.open(IMAGE) as session:
        for part_S in (0.1 * voice_S).split(1111):
            while not session.push_audio(part_S):
                session.wait(1.0)
        session.end_segment()
        pushed_T = mouth(torch.cat([block.frames_THW3 for block in session.frames()]))
    assert correlation(pushed_T, own_T) >= 0.95 and float(pushed_T.std() / own_T.std()) == pytest.approx(1, abs=0.1)


def extracted(film: Path) -> Path:
    """The film's track alone, as its own file."""
    import av

    out = film.with_suffix(".m4a")
    with av.open(str(film)) as source, av.open(str(out), "w") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    return out
