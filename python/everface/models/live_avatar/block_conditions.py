"""Conditions of a session's blocks, one after the other: the audio brought to the model's level, motion drawn, both encoded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from everface.models.live_avatar.audio_normalizer import AudioNormalizer
from everface.models.live_avatar.conditions import Conditioner
from everface.models.live_avatar.loudness import LoudnessFollower
from everface.models.live_avatar.motion import MotionSource
from everface.runtime.messages import Tensors
from everface.runtime.model import BlockFormat, Window


class BlockConditions:
    """One session's. Not thread-safe, but `interrupt` may be called from another thread."""

    def __init__(self, conditioner: Conditioner, format: BlockFormat, compat: str, seed: int) -> None:
        self._conditioner, self._format, self._compat = conditioner, format, compat
        self._levels = [audio_level(conditioner, compat) for _ in range(format.audio_channels)]
        people = 1 if format.user_audio else format.audio_channels
        self._motion = [MotionSource(seed, person) for person in range(people)] if conditioner.config.audio.motion else []

    def prepare(self, index: int, window: Window) -> Tensors:
        """Audio tokens of block `index`, as `Conditioner.block` gives them; of several speakers with an axis A before. Windows come in order."""
        voices = torch.atleast_2d(window.audio_S)
        voices = [level.apply(replace(window, audio_S=one_S)) if level else one_S for level, one_S in zip(self._levels, voices, strict=True)]
        if self._format.user_audio:
            return self._one(0, index, window.turn, *voices)
        if window.audio_S.dim() == 1:
            return self._one(0, index, window.turn, voices[0], None)
        total_S = torch.stack(voices).sum(0)
        each = [self._one(person, index, window.turn, one_S, total_S - one_S) for person, one_S in enumerate(voices)]  # speakers hear each other
        return {name: torch.stack([tokens[name] for tokens in each]) for name in each[0]}

    def interrupt(self, wanted: int) -> None:
        """Blocks from number `wanted` on were not shown."""
        for source in self._motion:
            source.interrupt(wanted)

    def _one(self, person: int, index: int, turn: int, voice_S: Tensor, user_S: Tensor | None) -> Tensors:
        motion_LCT = None
        if self._motion:
            begin = self._format.lookback_samples
            of_block = slice(begin, begin + self._format.samples(index))
            motion_LCT = self._motion[person].features(index, turn, voice_S[of_block], None if user_S is None else user_S[of_block])
        return self._conditioner.block(voice_S, self._compat, user_S, motion_LCT)


def audio_level(conditioner: Conditioner, compat: str) -> LoudnessFollower | AudioNormalizer | None:
    """What brings a session's audio to the level that the model knows, a new one. None for log-mel with upstream's behavior."""
    if conditioner.config.audio.kind != "logmel":
        return AudioNormalizer(conditioner.lookback_samples, conditioner.lookahead_samples)
    return None if compat == "official" else LoudnessFollower(conditioner.lookback_samples, conditioner.lookahead_samples)
