"""A model that listens: what is heard is a condition of its own, left out it is silence, and weights that cannot listen say so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from everface import Avatar, StreamConfig
from everface.avatar.render import RenderJob, render
from everface.core.errors import BadInput
from everface.live.events import VideoFrame
from everface.live.user_audio import KEPT_S, UserAudio

BLOCK, STREAM = 7680, StreamConfig(seed=3)


@pytest.fixture
def avatar(small_listener: Path) -> Iterator[Avatar]:
    with Avatar(small_listener) as avatar:
        yield avatar


def noise(samples: int, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def frames(avatar: Avatar, face: Path, audio: np.ndarray, stream: StreamConfig = STREAM) -> torch.Tensor:
    with avatar.open(face, stream) as session:
        session.push_audio(audio)
        session.end_segment()
        return torch.cat([block.frames_THW3 for block in session.frames()])


def test_what_is_heard_is_seen_and_silence_is_what_is_left_out(avatar: Avatar, face: Path) -> None:
    own, heard = noise(2 * BLOCK, 0), noise(2 * BLOCK, 1)
    heard[:BLOCK] = 0
    alone = frames(avatar, face, own)
    assert torch.equal(alone, frames(avatar, face, np.stack([own, np.zeros_like(own)])))
    listening = frames(avatar, face, np.stack([own, heard]))
    assert torch.equal(alone[:12], listening[:12]) and not torch.equal(alone[12:], listening[12:])
    swapped = frames(avatar, face, np.stack([heard, own]))
    assert not torch.equal(swapped[12:], listening[12:])


def test_two_speakers_hear_each_other(avatar: Avatar, face: Path) -> None:
    halves = StreamConfig(seed=3, speakers=((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)))
    one, two, none = noise(BLOCK, 0), noise(BLOCK, 1), np.zeros(BLOCK, np.float32)
    both = frames(avatar, face, np.stack([one, two]), halves)
    assert not torch.equal(both, frames(avatar, face, np.stack([one, none]), halves)) and both.shape[0] == 12


def test_a_file_of_what_is_heard(small_listener: Path, face: Path, voice: Path, tmp_path: Path, small_model: Path) -> None:
    report = render(RenderJob(face, voice, tmp_path / "talk.mp4", small_listener, user_audio=voice))
    assert report.frames == 53
    with pytest.raises(BadInput, match="were not trained to listen: render without"):
        render(RenderJob(face, voice, tmp_path / "no.mp4", small_model, user_audio=voice))
    with pytest.raises(BadInput, match="two speakers hear each other"):
        stream = StreamConfig(speakers=((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)))
        render(RenderJob(face, voice, tmp_path / "no.mp4", small_listener, stream=stream, second=voice, user_audio=voice))
    assert not (tmp_path / "no.mp4").exists()


def test_a_live_session_hears_while_nobody_speaks(avatar: Avatar, face: Path) -> None:
    def watch(hear: bool, speak: bool) -> list[np.ndarray]:
        with avatar.open_live(face, StreamConfig(seed=3), paced=False) as session:
            out, end_s = list[np.ndarray](), time.monotonic() + 60
            if speak:
                session.push_audio(noise(3 * BLOCK, 0))
            while len(out) < 36 and time.monotonic() < end_s:
                if hear:
                    session.push_user_audio((32768 * noise(1600, 2)).astype(np.int16), 16_000)
                event = session.read(0.1)
                out += [event.image_HW3] if isinstance(event, VideoFrame) else []
            return out

    assert not all(np.array_equal(a, b) for a, b in zip(watch(True, False), watch(False, False), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(watch(True, True), watch(False, True), strict=True))  # it speaks: nothing is heard


def test_a_model_that_cannot_listen_says_so(small_model: Path, face: Path) -> None:
    with Avatar(small_model) as avatar, avatar.open_live(face) as session, pytest.raises(BadInput, match="were not trained to listen"):
        session.push_user_audio(np.zeros(160, np.int16), 16_000)


def test_old_audio_is_not_kept() -> None:
    heard = UserAudio(16_000)
    for part in range(20):
        heard.push(np.full((1600, 1), part / 20, np.float32), 16_000)
    kept = heard.take(16_000)
    assert kept[int(KEPT_S * 16_000) :].abs().max() == 0 and kept[: int(KEPT_S * 16_000) - 100].min() > 0.6
    heard.push(np.ones((4800, 2), np.float32), 48_000)
    assert heard.take(1000)[200:].sub(1).abs().max() < 0.05


def test_a_stream_is_what_is_pushed_and_read_by_hand(avatar: Avatar, face: Path) -> None:
    own = noise(3 * BLOCK, 0)
    asked = list[int]()

    def parts() -> Iterator[np.ndarray]:
        for at in range(0, len(own), 5000):
            asked.append(session.accepted)
            yield own[at : at + 5000]

    with avatar.open(face, STREAM) as session:
        streamed = torch.cat([block.frames_THW3 for block in session.stream(parts())])
    assert torch.equal(streamed, frames(avatar, face, own)) and asked == list(range(0, len(own), 5000))
