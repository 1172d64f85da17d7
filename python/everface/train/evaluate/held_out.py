"""Who stands before the judge: characters that no training drew, saying what voices say that no training heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from everface.core.errors import BadInput
from everface.train.evaluate import metrics
from everface.train.synthetic import characters, voices

HELD_OUT_SEED = 4_000_000_000  # people from generator seeds above this are never trained on (seeds are 32 bits wide)


@dataclass(frozen=True)
class Unseen:
    """One character and what it says: picture_3HW in -1..1 in the neutral pose, pcm_S at 16 kHz, how its mouth should move at 25 frames
    per second, and a whole motion anim_TA that would do."""

    id_P: Tensor
    picture_3HW: Tensor
    pcm_S: Tensor
    open_T: Tensor
    wide_T: Tensor
    anim_TA: Tensor

    @cached_property
    def truth_T3HW(self) -> Tensor:
        """That motion drawn, rounded as a video is. Twenty seconds are 98 MB."""
        with torch.no_grad():
            return metrics.as_rgb(metrics.as_frames(characters.render(self.id_P[None], self.anim_TA, self.picture_3HW.shape[-1])))

    def part(self, first: int, frames: int) -> Unseen:
        """So many frames from `first` on."""
        seen, heard = slice(first, first + frames), slice(first * voices.HOP, (first + frames) * voices.HOP)
        return replace(self, pcm_S=self.pcm_S[heard], open_T=self.open_T[seen], wide_T=self.wide_T[seen], anim_TA=self.anim_TA[seen])


def draw_unseen(sounds_S: Sequence[Tensor], seed: int = 0, size: int = 128) -> list[Unseen]:
    """A character for each sound."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + seed)
    drawn = []
    for id_P, pcm_S in zip(characters.sample_identity(len(sounds_S), generator), sounds_S, strict=True):
        open_T, wide_T = voices.mouth_targets(pcm_S)
        with torch.no_grad():
            picture_3HW = characters.render(id_P[None], characters.neutral(1), size)[0]
        drawn.append(Unseen(id_P, picture_3HW, pcm_S, open_T, wide_T, characters.sample_motion(open_T, wide_T, generator)))
    return drawn


def held_out_sounds(folder: Path, count: int, seconds: float, seed: int = 0) -> list[Tensor]:
    """`count` stretches of held-out voices from a folder of make_speech, each from another clip while clips last. A clip that is
    shorter than `seconds` is followed by the next."""
    paths = sorted(path for path in Path(folder).glob("*.wav") if voices.held_out(path))
    if not paths:
        raise BadInput(f"{folder} holds no held-out speech ({', '.join(voices.HELD_OUT)}); make it with make_speech.")
    generator, length, sounds = torch.Generator().manual_seed(seed), int(seconds * voices.RATE), []
    order = torch.randperm(len(paths), generator=generator).tolist()
    for i in range(count):
        pcm_S, following = voices.read_wav(paths[order[i % len(paths)]]), i
        while len(pcm_S) < length:
            following += 1
            pcm_S = torch.cat([pcm_S, voices.read_wav(paths[order[following % len(paths)]])])
        at = int(torch.randint(len(pcm_S) - length + 1, (1,), generator=generator))
        sounds.append(pcm_S[at : at + length])
    return sounds
