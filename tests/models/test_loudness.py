"""The model's copy of the audio: a voice of any level becomes the same, and what is no voice stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.models.live_avatar.loudness import WANTED_DB, LoudnessFollower, frame_levels
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.model import BlockFormat
from everface.train.engine.statistics import correlation
from everface.train.synthetic.motion import mouth_targets
from everface.train.synthetic.voices import read_wav

FORMAT = BlockFormat(frames=12, lookback_samples=3552)


def follow(audio_S: torch.Tensor, piece: int = 8000, turns: Sequence[int] = ()) -> torch.Tensor:
    """Leveled audio of a session that gets the audio in such pieces; a new turn begins before each piece of `turns`."""
    buffer, follower = AudioBuffer(FORMAT), LoudnessFollower(FORMAT.lookback_samples, FORMAT.lookahead_samples)
    leveled, index, turn = [], 0, 0
    for number, part_S in enumerate([*audio_S.split(piece), None]):
        if part_S is None:
            buffer.ended = True
        else:
            if number in turns:
                buffer.restart()
                turn += 1
            buffer.add(part_S)
        while (window := buffer.take_window(index, turn)) is not None:
            block_S = follower.apply(window)[FORMAT.lookback_samples :]
            leveled.append(block_S[: window.frames * SAMPLES_PER_FRAME])
            index += 1
    return torch.cat(leveled)[: len(audio_S)]


@pytest.fixture(scope="module")
def voice_S() -> torch.Tensor:
    """Fifteen seconds at the level of training."""
    pcm_S = read_wav(DEFAULT_WEIGHTS / "speech.wav")
    return pcm_S * gain(WANTED_DB - float(np.quantile(voiced(pcm_S), 0.9)))


def gain(db: float) -> float:
    return float(10 ** (db / 20))


def voiced(pcm_S: torch.Tensor) -> np.ndarray:
    level_F = frame_levels(pcm_S)
    return level_F[level_F > level_F.max() - 40]


def noise(seconds: float, db: float) -> torch.Tensor:
    return torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0)) * gain(db)


def gain_db(leveled_S: torch.Tensor, audio_S: torch.Tensor, begin_s: float, end_s: float) -> torch.Tensor:
    """The gain of every 100 ms."""
    part = slice(int(begin_s * SAMPLE_RATE), int(end_s * SAMPLE_RATE))
    size = SAMPLE_RATE // 10
    return 20 * torch.log10(leveled_S[part].view(-1, size).std(1) / audio_S[part].view(-1, size).std(1))


@pytest.mark.parametrize("level_db", [-30, -20, -16, -10, -6, -3, -2, -1, 3, 6])
def test_the_mouth_moves_alike_at_every_level(voice_S: torch.Tensor, level_db: float) -> None:
    """By the rule that the training's mouths follow, to the absolute level: within 10 %. The voice is 16-bit audio."""
    own_T, _ = mouth_targets(follow(voice_S))
    quiet_S = (voice_S * gain(level_db) * 32768).round().clamp(-32768, 32767) / 32768
    open_T, _ = mouth_targets(follow(quiet_S))
    assert float(open_T.std() / own_T.std()) == pytest.approx(1, abs=0.1) and correlation(open_T, own_T) > 0.95
    if level_db <= -10:  # left as it is, it would not
        assert mouth_targets(quiet_S)[0].std() < 0.75 * own_T.std()


def test_a_voice_at_the_trained_level_is_left_alone_to_the_bit(voice_S: torch.Tensor) -> None:
    loud_S, level_F = voice_S[: 3 * SAMPLE_RATE], voiced(voice_S[: 3 * SAMPLE_RATE])
    loud_S = loud_S * gain(WANTED_DB - float(np.quantile(level_F, 0.9)))
    assert torch.equal(follow(loud_S), loud_S)


@pytest.mark.parametrize("level_db", [-96, -70, -60, -50, -30])
def test_noise_is_left_alone_to_the_bit(level_db: float) -> None:
    dither_S = noise(12, level_db)
    assert torch.equal(follow(dither_S), dither_S)


def test_silence_hum_and_an_offset_are_left_alone() -> None:
    time_S = torch.arange(6 * SAMPLE_RATE) / SAMPLE_RATE
    for audio_S in (torch.zeros(6 * SAMPLE_RATE), torch.full((6 * SAMPLE_RATE,), 0.3), 0.02 * torch.sin(2 * np.pi * 50 * time_S)):
        assert torch.equal(follow(audio_S), audio_S)


def test_the_gain_holds_still_in_a_pause(voice_S: torch.Tensor) -> None:
    """Six seconds, long enough to forget the voice: no pumping, and the noise in it stays too faint for the mouth."""
    half, pause_S = 8 * SAMPLE_RATE, torch.zeros(6 * SAMPLE_RATE)
    audio_S = 0.1 * torch.cat([voice_S[:half], pause_S, voice_S[half:]])
    audio_S += noise(len(audio_S) / SAMPLE_RATE, -70)[: len(audio_S)]
    leveled_S = follow(audio_S)
    within_db = gain_db(leveled_S, audio_S, 8.5, 13.9)
    assert within_db.min() > 15 and within_db.max() - within_db.min() < 0.5
    assert not mouth_targets(leveled_S)[0][int(25 * 9) : int(25 * 13.9)].gt(0.05).any()


def test_a_noise_floor_is_never_lifted_into_a_voice(voice_S: torch.Tensor) -> None:
    audio_S = torch.cat([0.05 * voice_S, torch.zeros(20 * SAMPLE_RATE)])
    audio_S += noise(len(audio_S) / SAMPLE_RATE, -60)[: len(audio_S)]
    rest_S = follow(audio_S)[len(voice_S) + 2 * SAMPLE_RATE :]
    assert not mouth_targets(rest_S)[0].gt(0.05).any()


def test_nothing_clips_when_a_quiet_speaker_is_followed_by_a_loud_one(voice_S: torch.Tensor) -> None:
    audio_S = torch.cat([0.03 * voice_S, 2 * voice_S]).clamp(-1, 1)
    leveled_S = follow(audio_S)
    assert frame_levels(leveled_S).max() < frame_levels(audio_S).max() + 0.1
    assert gain_db(leveled_S, audio_S, 0.5 + len(voice_S) / SAMPLE_RATE, 1 + len(voice_S) / SAMPLE_RATE).max() < 9


@pytest.mark.parametrize("piece", [160, 641, 7680, 100_000])
def test_the_pieces_do_not_matter(voice_S: torch.Tensor, piece: int) -> None:
    quiet_S = 0.1 * voice_S[: 5 * SAMPLE_RATE + 77]
    assert torch.equal(follow(quiet_S, piece), follow(quiet_S))


def test_windows_continue_each_other(voice_S: torch.Tensor) -> None:
    """What a window has before its block is what the window before it had there."""
    buffer, follower = AudioBuffer(FORMAT), LoudnessFollower(FORMAT.lookback_samples, 0)
    buffer.add(0.1 * voice_S[: 4 * SAMPLE_RATE])
    before_S = torch.zeros(FORMAT.lookback_samples)
    for index in range(8):
        window = buffer.take_window(index, 0)
        assert window is not None
        leveled_S = follower.apply(window)
        assert torch.equal(leveled_S[: FORMAT.lookback_samples], before_S)
        before_S = leveled_S[-FORMAT.lookback_samples :]


def test_a_new_turn_keeps_the_gain(voice_S: torch.Tensor) -> None:
    quiet_S, piece = 0.1 * voice_S, 10 * 7680  # whole blocks: nothing waits when the turn begins
    at_once_db = gain_db(follow(quiet_S, piece, turns=(2,)), quiet_S, 2 * piece / SAMPLE_RATE, 2 * piece / SAMPLE_RATE + 1)
    assert at_once_db.min() > 15


def test_it_says_once_that_it_helps(voice_S: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "everface"):
        follow(voice_S)
        assert not caplog.records
        follow(0.1 * voice_S)
    (record,) = caplog.records
    assert "too quiet" in record.getMessage() and "what is played stays as it is" in record.getMessage()
