"""The transformer's training set: drawn characters speaking, already as latents and sound features.

A clip is one character and one stretch of speech: the still reference picture for five frames (its two latents), then
`moving` latents of four frames each. Shards are safetensors files, so that making them can be stopped and resumed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from everface.core.config import SAMPLES_PER_FRAME
from everface.model.audio import PAST_FRAMES
from everface.model.features import LogMel
from everface.model.vae import VAE
from everface.train.engine.optimizer import autocast
from everface.train.synthetic.background import mix
from everface.train.synthetic.characters import neutral, render, sample_identity, sample_motion
from everface.train.synthetic.voices import held_out as is_held_out
from everface.train.synthetic.voices import mouth_targets, read_wav

STILL_FRAMES = 5
STILL_LATENTS = 2  # what they are encoded to
MOVING_LATENTS = 16
SHARD = 50  # clips of one file
WITH_BED, SPEECHLESS = 0.5, 0.06  # share of clips with music or noise under them, and of those in which nobody speaks


@dataclass
class Clips:
    """latents_N16Thw: float16, T = 2 still + 16 moving. features_NLCF: float16, F = 5 past + 64 video frames of sound."""

    latents_N16Thw: torch.Tensor
    features_NLCF: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents_N16Thw)


def read_speech(folder: Path, held_out: bool) -> list[torch.Tensor]:
    """All speech files of one side of the split as float32 mono 16 kHz."""
    return [read_wav(path) for path in sorted(folder.glob("*.wav")) if is_held_out(path) == held_out]


def draw_sound(speech: list[torch.Tensor], samples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A stretch of speech, or of silence: (dry_S, heard_S). The mouth follows dry_S; heard_S may have a bed under it."""
    pcm = speech[int(torch.randint(len(speech), (1,), generator=generator))]
    if len(pcm) < samples:
        pcm = torch.nn.functional.pad(pcm, (0, samples - len(pcm)))
    start = int(torch.randint(len(pcm) - samples + 1, (1,), generator=generator))
    gain = 10 ** (torch.empty(1).uniform_(-4, 4, generator=generator) / 20)  # loudness is not always the same
    quiet, bedded = torch.rand(2, generator=generator).tolist()
    bed_seed = int(torch.randint(1 << 31, (1,), generator=generator))  # so that a bed changes nothing else of the clip
    dry_S = pcm[start : start + samples] * (quiet >= SPEECHLESS)
    heard_S = mix(dry_S, torch.Generator().manual_seed(bed_seed)) if bedded < WITH_BED else dry_S
    return dry_S * gain, heard_S * gain


def make_clip(speech: list[torch.Tensor], front: LogMel, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One clip: rgb [3, 5 + 64, H, W] float32 and features [L, C, 5 + 64]. The picture is of the voice, the features of all."""
    frames = 4 * MOVING_LATENTS
    before = front.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME
    dry_S, heard_S = draw_sound(speech, before + frames * SAMPLES_PER_FRAME, generator)
    # The mouth's own filter needs a running start, so its truth is computed over the past too and cut.
    open_T, wide_T = mouth_targets(dry_S[front.lookback_samples :])
    anim = sample_motion(open_T[PAST_FRAMES:], wide_T[PAST_FRAMES:], generator)
    identity = sample_identity(1, generator)
    still = render(identity, neutral(1)).expand(STILL_FRAMES, -1, -1, -1)
    moving = [render(identity.expand(len(a), -1), a) for a in anim.split(12)]
    rgb = torch.cat([still, *moving]).permute(1, 0, 2, 3)
    return rgb, front.features(heard_S, PAST_FRAMES + frames)


def make_clips(
    folder: Path, speech_folder: Path, vae: VAE, count: int, seed: int, minutes: float, worker: int = 0, workers: int = 1
) -> None:
    """Write shards of `count` clips into `folder` while the time lasts. Resumes; clip n depends on (seed, n) only, so several
    workers may share the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    speech, front, end = read_speech(speech_folder, held_out=False), LogMel(), time.monotonic() + 60 * minutes
    for first in range(SHARD * worker, count, SHARD * workers):
        path = folder / f"{first:05d}.safetensors"
        if path.exists():
            continue
        if time.monotonic() > end:
            return
        latents, features = [], []
        for n in range(first, min(first + SHARD, count)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
            rgb_3THW, features_LCF = make_clip(speech, front, generator)
            with torch.inference_mode(), autocast("cpu"):
                latents.append(vae.encode(rgb_3THW[None])[0].half())
            features.append(features_LCF.half())
        partial = path.with_suffix(".partial")
        save_file({"latents": torch.stack(latents), "features": torch.stack(features)}, partial)
        partial.rename(path)


def read_clips(folder: Path) -> Clips:
    """All shards of a folder."""
    shards = [load_file(p) for p in sorted(folder.glob("*.safetensors"))]
    return Clips(*(torch.cat([s[k] for s in shards]) for k in ("latents", "features")))
