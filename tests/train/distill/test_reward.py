"""The reward prefers lips that follow the audio, and motion."""

from __future__ import annotations

from pathlib import Path

from tests.train.miniature import write_clips

from everface.train.data.clips import read_clips
from everface.train.distill.reward import Reward


def test_the_reward_prefers_lips_that_follow_and_motion(tmp_path: Path) -> None:
    clips = read_clips(write_clips(tmp_path))
    reward = Reward(clips, motion=0.5)
    z, audio = clips.latents_N16Thw[3, :, 2:].float(), clips.features_NLCF[3].float()
    other = clips.features_NLCF[4].float()
    assert reward(z, audio) > 1.2 > reward(z, other) + 0.2
    assert reward(z[:, :1].expand_as(z), audio) < 0.05
    assert reward(z * 0.5, audio) < reward(z, audio) - 0.2
