"""Miniature models, plans and training data that several tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from everface.core.config import SAMPLE_RATE, DiTConfig, VAEConfig
from everface.networks.transformer.dit import DiT
from everface.train.distill.plans import Stage2Plan
from everface.train.distill.reward import loudness
from everface.train.synthetic.voices import write_wav

SMALL_VAE = VAEConfig(dim=8, dim_mult=(1, 1, 1, 1), encoder_blocks=(1, 0, 0, 0), decoder_blocks=(1, 0, 0, 0))
SMALL_DIT = DiTConfig(
    dim=48, ffn_dim=64, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=1, audio_dim=12, audio_inject_layers=(0, 2),
    wav2vec_layers=1,
)  # fmt: skip
STAGE2 = Stage2Plan(
    iterations=4, ratio=2, micro_batches=2, blocks=3, steps=2, lr=1e-3, fake_lr=1e-3, warmup_steps=1, held_out=2, reward=0.1, truth_start=0.5
)  # fmt: skip


def small_dit(seed: int = 0, patch_size: tuple[int, int, int] = SMALL_DIT.patch_size, cond_dim: int = SMALL_DIT.cond_dim) -> DiT:
    torch.manual_seed(seed)
    dit = DiT(replace(SMALL_DIT, patch_size=patch_size, cond_dim=cond_dim))
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return dit.eval()


def write_clips(folder: Path, count: int = 24) -> Path:
    """Latents that follow their audio at the mouth, so that a probe can find it."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(count, 1, 12, 5 + 64, generator=g).cumsum(-1) * 0.3
    latents = torch.randn(count, 16, 18, 8, 8, generator=g)
    loud = torch.stack([loudness(f) for f in features])
    latents[:, :4, 2:, 4:, 2:6] += 2 * loud[:, None, :, None, None]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents.half(), "features": features.half()}, folder / "00000.safetensors")
    return folder


def write_hum(folder: Path) -> None:
    """A folder of speech without espeak-ng: five seconds of one tone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_wav(folder / "en-hum.wav", 0.1 * torch.sin(torch.arange(80_000) / 20))


def syllables(seconds: float, seed: int = 0, rate: int = 5, power: int = 2) -> torch.Tensor:
    """Noise whose level changes at the pace of syllables: the mouth opens and shuts to it as to speech."""
    g = torch.Generator().manual_seed(seed)
    envelope = torch.rand(int(seconds * rate) + 2, generator=g)
    pcm_S = torch.randn(int(seconds * SAMPLE_RATE), generator=g)
    return 0.3 * pcm_S * torch.nn.functional.interpolate(envelope[None, None], len(pcm_S), mode="linear")[0, 0] ** power
