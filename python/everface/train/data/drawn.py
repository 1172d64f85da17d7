"""Clips of drawn characters: speech or silence, background audio, frames and features."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from everface.core.config import LATENT_FRAMES, SAMPLES_PER_FRAME
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.audio.features import LogMel
from everface.networks.video.vae import VAE
from everface.train.data.clips import IMAGE_SIZE, MOVING_LATENTS, SHARD_CLIPS, STILL_FRAMES, encode_clip, write_shard
from everface.train.synthetic.background import add_background
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, neutral, sample_motion
from everface.train.synthetic.parameters import ANIMATION, HEAD
from everface.train.synthetic.voices import is_held_out, read_wav

BACKGROUND_SHARE, SILENT_SHARE = 0.5, 0.06  # of the clips: with background audio; without speech


def read_speech(folder: Path, held_out: bool) -> list[torch.Tensor]:
    """All speech files of one side of the split, as mono float32 at 16 kHz."""
    return [read_wav(path) for path in sorted(folder.glob("*.wav")) if is_held_out(path) == held_out]


def draw_audio(speech: list[torch.Tensor], samples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A stretch of speech, or of silence: (voice_S, mixed_S). The mouth follows voice_S; mixed_S may have background audio."""
    pcm = speech[int(torch.randint(len(speech), (1,), generator=generator))]
    if len(pcm) < samples:
        pcm = torch.nn.functional.pad(pcm, (0, samples - len(pcm)))
    start = int(torch.randint(len(pcm) - samples + 1, (1,), generator=generator))
    gain = 10 ** (torch.empty(1).uniform_(-4, 4, generator=generator) / 20)
    silent, background = torch.rand(2, generator=generator).tolist()
    background_seed = int(torch.randint(1 << 31, (1,), generator=generator))  # so that it changes nothing else of the clip
    voice_S = pcm[start : start + samples] * (silent >= SILENT_SHARE)
    if background < BACKGROUND_SHARE:
        return voice_S * gain, add_background(voice_S, torch.Generator().manual_seed(background_seed)) * gain
    return voice_S * gain, voice_S * gain


def make_clip(
    speech: list[torch.Tensor], front_end: LogMel, generator: torch.Generator, size: int = IMAGE_SIZE, *, still_head: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One clip: rgb [3, 5 + 64, H, W] float32, features [L, C, 5 + 64], and the animation of the 64 moving frames, [64, A]. The frames follow the
    voice, the features the mixed audio. still_head: mouth, eyes and brows move, the head does not."""
    frames = LATENT_FRAMES * MOVING_LATENTS
    before = front_end.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME
    voice_S, mixed_S = draw_audio(speech, before + frames * SAMPLES_PER_FRAME, generator)
    # The rule of the mouth is a low-pass filter: it starts on the past, which is cut off again.
    open_T, wide_T = mouth_targets(voice_S[front_end.lookback_samples :])
    anim = sample_motion(open_T[PAST_FRAMES:], wide_T[PAST_FRAMES:], generator)
    if still_head:
        anim[:, [ANIMATION.index(name) for name in HEAD]] = 0
    identity = sample_identity(1, generator)
    still = render(identity, neutral(1), size).expand(STILL_FRAMES, -1, -1, -1)
    rgb = torch.cat([still, render(identity, anim, size)]).permute(1, 0, 2, 3)
    return rgb, front_end.features(mixed_S, PAST_FRAMES + frames), anim


def make_clips(
    folder: Path, speech_folder: Path, vae: VAE, count: int, seed: int, minutes: float, worker: int = 0, workers: int = 1
) -> None:
    """Write shards of `count` clips into `folder` until the time is up. Resumes; clip n depends on (seed, n) only, so several workers
    may divide the shards among themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    speech, front_end, end = read_speech(speech_folder, held_out=False), LogMel(), time.monotonic() + 60 * minutes
    for first in range(SHARD_CLIPS * worker, count, SHARD_CLIPS * workers):
        path = folder / f"{first:05d}.safetensors"
        if path.exists():
            continue
        if time.monotonic() > end:
            return
        latents, features = [], []
        for n in range(first, min(first + SHARD_CLIPS, count)):
            rgb_3THW, features_LCF, _ = make_clip(speech, front_end, clip_generator(seed, n))
            latents.append(encode_clip(vae, rgb_3THW))
            features.append(features_LCF)
        write_shard(path, latents, features)


def clip_generator(seed: int, n: int) -> torch.Generator:
    """The source of everything random in clip n."""
    return torch.Generator().manual_seed(seed * 1_000_003 + n)
