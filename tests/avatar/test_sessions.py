"""Several viewers of one avatar, and one that changes its picture."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from everface import Avatar, Deployment, Session, StreamConfig
from everface.avatar.demo import PICTURE, SOUND
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.core.config import SAMPLE_RATE
from everface.core.errors import Unavailable
from everface.media.audio import read_audio


def play(session: Session, pcm_S: torch.Tensor) -> torch.Tensor:
    for part_S in pcm_S.split(4000):
        while not session.push(part_S):
            session.wait(1.0)
    session.end()
    return torch.cat([block.frames_THW3 for block in session.frames()])


def speech(seconds: float) -> torch.Tensor:
    return torch.as_tensor(next(read_audio(SOUND, int(seconds * SAMPLE_RATE)))).contiguous()


@pytest.mark.parametrize("placement", ["inline", "2"])
def test_viewers_see_what_they_would_see_alone(small_model: Path, face: Path, placement: str) -> None:
    streams = [StreamConfig(seed=1), StreamConfig(seed=2)]
    sounds = [speech(4.0), speech(5.5).flip(0).contiguous()]
    with Avatar(small_model, deployment=Deployment(placement, threads=1, sessions=2)) as avatar:
        alone = []
        for stream, pcm_S in zip(streams, sounds):
            with avatar.open(face, stream) as session:
                alone.append(play(session, pcm_S))
        together: dict[int, torch.Tensor] = {}

        def view(number: int, session: Session) -> None:
            together[number] = play(session, sounds[number])

        sessions = [avatar.open(face, stream) for stream in streams]
        with pytest.raises(Unavailable, match="serves 2 sessions already"):
            avatar.open(face, streams[0])
        viewers = [threading.Thread(target=view, args=pair) for pair in enumerate(sessions)]
        for viewer in viewers:
            viewer.start()
        for viewer in viewers:
            viewer.join()
        for number, frames in enumerate(alone):
            assert torch.equal(together[number], frames)
    assert not torch.equal(alone[0][:90], alone[1][:90])


def test_another_picture_in_the_middle() -> None:
    stream, other = StreamConfig(seed=3), DEFAULT_WEIGHTS / "ben.png"
    with Avatar() as avatar:
        pictures = [(avatar.fit(path, stream).permute(1, 2, 0) + 1) * 127.5 for path in (PICTURE, other)]
        with avatar.open(PICTURE, stream) as session:
            pcm_S = speech(3.0)
            session.push(pcm_S[:24_000])
            before = [block.frames_THW3 for block in _wait(session, 3)]
            avatar.change(session, other, stream)
            session.push(pcm_S[24_000:])
            session.end()
            after = [block.frames_THW3 for block in session.frames()]
    first, last = before[-1][-1].float(), after[-1][-1].float()

    def far(frame: torch.Tensor, number: int) -> float:
        return float((frame - pictures[number]).abs().mean())

    assert far(first, 0) < 0.5 * far(first, 1)
    assert far(last, 1) < 0.5 * far(last, 0)


def _wait(session: Session, blocks: int) -> list:
    done: list = []
    while len(done) < blocks:
        assert session.wait(60.0)
        done += session.poll()
    return done
