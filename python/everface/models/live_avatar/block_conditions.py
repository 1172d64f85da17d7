"""Conditions of a session's blocks, one after the other: the audio brought to the model's level and encoded, and the pose of each frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from everface.models.live_avatar.audio_normalizer import AudioNormalizer
from everface.models.live_avatar.conditions import Conditioner
from everface.models.live_avatar.loudness import LoudnessFollower
from everface.models.live_avatar.motion import MotionSource
from everface.models.live_avatar.names import HEAD, POSE
from everface.networks.motion import compensated, face_features, pose_of, with_mouth
from everface.runtime.messages import Tensors
from everface.runtime.model import BlockFormat, Window


class BlockConditions:
    """One session's. Not thread-safe, but `interrupt` may be called from another thread.

    regions_Ahw: of several speakers, 1 where each is seen and 0 elsewhere, cell by cell of a latent frame.
    """

    def __init__(self, conditioner: Conditioner, format: BlockFormat, compat: str, seed: int, regions_Ahw: Tensor | None = None) -> None:
        self._conditioner, self._format, self._compat, self._regions_Ahw = conditioner, format, compat, regions_Ahw
        self._levels = [audio_level(conditioner, compat) for _ in range(format.audio_channels)]
        people = 1 if format.user_audio else format.audio_channels
        self._motion = [MotionSource(seed, person) for person in range(people)] if conditioner.config.motion else []

    def prepare(self, index: int, window: Window) -> Tensors:
        """Audio tokens of block `index`, as `Conditioner.block` gives them, of several speakers with an axis A before; and of a
        model with motion POSE and HEAD (`names`). Windows come in order."""
        voices = torch.atleast_2d(window.audio_S)
        voices = [level.apply(replace(window, audio_S=one_S)) if level else one_S for level, one_S in zip(self._levels, voices, strict=True)]
        if window.audio_S.dim() == 1 or self._format.user_audio:
            users = [voices[1] if self._format.user_audio else None]
            tokens = self._conditioner.block(voices[0], self._compat, users[0])
        else:
            total_S = torch.stack(voices).sum(0)
            users = [total_S - one_S for one_S in voices]  # speakers hear each other
            each = [self._conditioner.block(one_S, self._compat, user_S) for one_S, user_S in zip(voices, users, strict=True)]
            tokens = {name: torch.stack([of_one[name] for of_one in each]) for name in each[0]}
        if not self._motion:
            return tokens
        lips, begin, heads, poses = self._conditioner.config.lips, self._format.lookback_samples, list[Tensor](), list[Tensor]()
        of_block = slice(begin, begin + self._format.samples(index))
        for source, one_S, user_S in zip(self._motion, voices, users, strict=False):
            head_CT, expression_CT = source.block(index, window.turn, one_S[of_block], None if user_S is None else user_S[of_block])
            mouth_CT = self._conditioner.mouth(one_S)
            heads.append(with_mouth(head_CT, mouth_CT, lips))
            poses.append(pose_of(compensated(face_features(torch.cat([expression_CT, mouth_CT]).T), lips)))
        if self._regions_Ahw is None:
            return tokens | {POSE: poses[0], HEAD: heads[0]}
        return tokens | {POSE: sum_of(poses, self._regions_Ahw)}

    def interrupt(self, wanted: int) -> None:
        """Blocks from number `wanted` on were not shown."""
        for source in self._motion:
            source.interrupt(wanted)


def sum_of(poses: list[Tensor], regions_Ahw: Tensor) -> Tensor:
    """[C, F, h, w] of poses [C, F, 1, 1]: each person's in its region, the mean where regions overlap."""
    return torch.stack([pose * region_hw for pose, region_hw in zip(poses, regions_Ahw / regions_Ahw.sum(0).clamp(min=1), strict=True)]).sum(0)


def audio_level(conditioner: Conditioner, compat: str) -> LoudnessFollower | AudioNormalizer | None:
    """What brings a session's audio to the level that the model knows, a new one. None for log-mel with upstream's behavior."""
    if conditioner.config.audio.kind != "logmel":
        return AudioNormalizer(conditioner.lookback_samples, conditioner.lookahead_samples)
    return None if compat == "official" else LoudnessFollower(conditioner.lookback_samples, conditioner.lookahead_samples)
