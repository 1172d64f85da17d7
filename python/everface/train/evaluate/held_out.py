"""Held-out characters and speech: nothing that any training drew or used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput
from everface.train.data.clips import IMAGE_SIZE
from everface.train.evaluate import metrics
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.readers.pose_fit import fit_psnr
from everface.train.synthetic import voices
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, neutral, sample_motion

HELD_OUT_SEED = 4_000_000_000  # characters from generator seeds above this are never trained on (seeds have 32 bits)


class HeldOut(Protocol):
    """One person and its speech, with known truth."""

    @property
    def image_3HW(self) -> Tensor: ...  # in -1..1: the reference
    @property
    def pcm_S(self) -> Tensor: ...  # 16 kHz
    @property
    def open_T(self) -> Tensor: ...  # true motion of the mouth at 25 frames per second
    @property
    def wide_T(self) -> Tensor: ...
    @property
    def truth_T3HW(self) -> Tensor: ...  # in -1..1

    def reader(self, known: LipReader) -> LipReader:
        """What reads this person's lips: the one that is known, or one of its own."""
        ...

    def fit(self, rgb_N3HW: Tensor, read_N3: Tensor) -> tuple[float, float]:
        """PSNR in dB of frames against the same person in the pose that fits each best, of the whole frame and of the worse eye. read_N3: opening,
        width and blink, to begin with."""
        ...


@dataclass(frozen=True)
class HeldOutClip:
    """One character and its speech."""

    id_P: Tensor
    image_3HW: Tensor  # in -1..1, in the neutral pose: the reference
    pcm_S: Tensor  # 16 kHz
    open_T: Tensor  # true motion of the mouth at 25 frames per second
    wide_T: Tensor
    anim_TA: Tensor  # a whole motion with that mouth

    @property
    def truth_T3HW(self) -> Tensor:
        """That motion rendered, rounded as a video is. Twenty seconds have 98 MB."""
        return self._truth_T3HW

    @cached_property
    def _truth_T3HW(self) -> Tensor:
        with torch.no_grad():
            return metrics.as_rgb(metrics.as_frames(render(self.id_P[None], self.anim_TA, self.image_3HW.shape[-1])))

    def reader(self, known: LipReader) -> LipReader:
        return known

    def fit(self, rgb_N3HW: Tensor, read_N3: Tensor) -> tuple[float, float]:
        start_NA = neutral(len(rgb_N3HW))
        start_NA[:, :3] = read_N3.clamp(0, 1)
        return fit_psnr(self.id_P, rgb_N3HW, start_NA)

    def part(self, first: int, frames: int) -> HeldOutClip:
        """So many frames from `first` on."""
        rows, samples = slice(first, first + frames), slice(first * SAMPLES_PER_FRAME, (first + frames) * SAMPLES_PER_FRAME)
        return replace(self, pcm_S=self.pcm_S[samples], open_T=self.open_T[rows], wide_T=self.wide_T[rows], anim_TA=self.anim_TA[rows])


def draw_held_out(audio_S: Sequence[Tensor], seed: int = 0, size: int = IMAGE_SIZE) -> list[HeldOutClip]:
    """A character for each audio."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + seed)
    drawn = []
    for id_P, pcm_S in zip(sample_identity(len(audio_S), generator), audio_S, strict=True):
        open_T, wide_T = mouth_targets(pcm_S)
        with torch.no_grad():
            image_3HW = render(id_P[None], neutral(1), size)[0]
        drawn.append(HeldOutClip(id_P, image_3HW, pcm_S, open_T, wide_T, sample_motion(open_T, wide_T, generator)))
    return drawn


def held_out_audio(folder: Path, count: int, seconds: float, seed: int = 0) -> list[Tensor]:
    """`count` stretches of held-out voices from a folder of make_speech, each from another file while files last. A file shorter than
    `seconds` is followed by the next. Raises BadInput for a folder without held-out speech."""
    paths = sorted(path for path in Path(folder).glob("*.wav") if voices.is_held_out(path))
    if not paths:
        raise BadInput(f"{folder} holds no held-out speech ({', '.join(voices.HELD_OUT)}); make it with make_speech.")
    generator, length, drawn = torch.Generator().manual_seed(seed), int(seconds * SAMPLE_RATE), []
    order = torch.randperm(len(paths), generator=generator).tolist()
    for i in range(count):
        pcm_S, following = voices.read_wav(paths[order[i % len(paths)]]), i
        while len(pcm_S) < length:
            following += 1
            pcm_S = torch.cat([pcm_S, voices.read_wav(paths[order[following % len(paths)]])])
        at = int(torch.randint(len(pcm_S) - length + 1, (1,), generator=generator))
        drawn.append(pcm_S[at : at + length])
    return drawn
