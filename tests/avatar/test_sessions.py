"""Several viewers of one avatar, and one that changes its picture."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from everface import Avatar, Deployment, Session, StreamConfig
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput, Unavailable
from everface.media.audio import read_audio
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.transformer.dit import DiT
from everface.runtime.events import Recovering


def play(session: Session, audio_S: torch.Tensor) -> torch.Tensor:
    for part_S in audio_S.split(4000):
        while not session.push_audio(part_S):
            session.wait(1.0)
    session.end_segment()
    return torch.cat([block.frames_THW3 for block in session.frames()])


def speech(seconds: float) -> torch.Tensor:
    return torch.as_tensor(next(read_audio(AUDIO, int(seconds * SAMPLE_RATE)))).contiguous()


@pytest.mark.parametrize("placement", ["inline", "2"])
def test_viewers_see_what_they_would_see_alone(small_model: Path, face: Path, placement: str) -> None:
    streams = [StreamConfig(seed=1), StreamConfig(seed=2)]
    audios = [speech(4.0), speech(5.5).flip(0).contiguous()]
    with Avatar(small_model, deployment=Deployment(placement, threads=1, sessions=2)) as avatar:
        alone = []
        for stream, audio_S in zip(streams, audios):
            with avatar.open(face, stream) as session:
                alone.append(play(session, audio_S))
        together: dict[int, torch.Tensor] = {}

        def view(number: int, session: Session) -> None:
            together[number] = play(session, audios[number])

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


def test_two_avatars_of_the_same_weights_share_nothing(small_model: Path, face: Path) -> None:
    """Their sessions have the same numbers."""
    audio_S = speech(3.0)
    with Avatar(small_model, deployment=Deployment(threads=1)) as one, Avatar(small_model, deployment=Deployment(threads=1)) as two:
        with one.open(face, StreamConfig(seed=1)) as session:
            alone = play(session, audio_S)
        with one.open(face, StreamConfig(seed=1)) as session:
            session.push_audio(audio_S[:16_000])
            with two.open(face, StreamConfig(seed=2)) as first, two.open(face, StreamConfig(seed=3)) as second:
                for other in (first, second):
                    play(other, speech(1.0))
                session.push_audio(audio_S[16_000:])
                session.end_segment()
                assert torch.equal(torch.cat([block.frames_THW3 for block in session.frames()]), alone)


def test_memory_that_is_short_costs_the_next_sessions_nothing(small_model: Path, face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, audio_S, failing = StreamConfig(seed=1), speech(1.5), set[str]()

    def short_once(name: str) -> None:
        original = getattr(DiT, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if name in failing:
                failing.remove(name)
                raise torch.OutOfMemoryError("no memory is left")
            return original(*arguments, **named)

        monkeypatch.setattr(DiT, name, call)

    for name in ("write_sink", "step"):
        short_once(name)
    with Avatar(small_model, deployment=Deployment(threads=1)) as avatar:
        with avatar.open(face, stream) as session:
            truth = play(session, audio_S)
        failing.add("write_sink")
        with pytest.raises(Unavailable, match="does not fit"):
            avatar.open(face, stream)
        with avatar.open(face, stream) as session:
            failing.add("step")
            assert play(session, audio_S).shape == truth.shape
            [reason] = [event.reason for event in session.events() if isinstance(event, Recovering)]
            assert "OutOfMemoryError: no memory is left" in reason
        for _ in range(4):
            with avatar.open(face, stream) as session:
                assert torch.equal(play(session, audio_S), truth)


def test_another_image_in_the_middle() -> None:
    stream, other = StreamConfig(seed=3), DEFAULT_WEIGHTS / "ben.png"
    with Avatar() as avatar:
        images = [(avatar.fit(path, stream).permute(1, 2, 0) + 1) * 127.5 for path in (IMAGE, other)]
        with avatar.open(IMAGE, stream) as session:
            audio_S = speech(3.0)
            session.push_audio(audio_S[:26_000])  # three blocks, and what weights may hear ahead
            before = [block.frames_THW3 for block in _wait(session, 3)]
            session.change(image=other)
            session.push_audio(audio_S[26_000:])
            session.end_segment()
            after = [block.frames_THW3 for block in session.frames()]
    first, last = before[-1][-1].float(), after[-1][-1].float()

    def far(frame: torch.Tensor, number: int) -> float:
        return float((frame - images[number]).abs().mean())

    assert far(first, 0) < 0.5 * far(first, 1)
    assert far(last, 1) < 0.5 * far(last, 0)


def _wait(session: Session, blocks: int) -> list:
    done: list = []
    while len(done) < blocks:
        assert session.wait(60.0)
        done += session.poll()
    return done


def test_an_image_of_another_size_is_refused_and_the_session_goes_on(face: Path, small_model: Path) -> None:
    with Avatar(small_model) as avatar, avatar.open(face) as session:
        with pytest.raises(BadInput, match="64x64"):
            session.change(image=torch.zeros(3, 128, 64))
        with pytest.raises(BadInput, match="pass an image, a prompt or a sampler"):
            session.change()
        assert len(play(session, speech(1.0))) == 25


@pytest.mark.parametrize("placement", ["inline", "2"])
def test_an_avatar_closed_by_another_thread_ends_its_sessions_with_an_error(small_model: Path, face: Path, placement: str) -> None:
    """Not as if the video were complete."""
    avatar = Avatar(small_model, deployment=Deployment(placement, threads=1))
    session = avatar.open(face)
    session.push_audio(speech(9.0))
    threading.Timer(0.2, avatar.close).start()
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        list(session.frames())
    avatar.close()
    with pytest.raises(Unavailable, match="the pipeline is closed"):
        session.push_audio(speech(0.5))
