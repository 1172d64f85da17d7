"""The VAE's decoder taught long streams, after `train vae`: short crops leave it a decibel worse after a second of video.

The encoder, and so every latent, stays as it is: a transformer trained on those latents stays valid. Windows of four latents are
decoded at full size, each from the state that the stream before it leaves, as the runtime decodes them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from everface.model.features import LogMel
from everface.train.clips import STILL_FRAMES, Clips, make_clip, read_clips, read_speech
from everface.train.data import read_vae
from everface.train.descent import Ema, Optimiser, autocast, read_checkpoint, write_checkpoint
from everface.train.journal import Journal
from everface.train.vae import VAEPlan, region_weight, vae_loss, vae_rate

WARM_UP = 7  # latents of the still picture before a stream begins
BEFORE = 6  # latents of a running stream that give the state in which a window starts
WINDOW = 4  # latents with gradients


@dataclass(frozen=True)
class DecoderPlan:
    """The schedule; the learning rate follows the clock."""

    minutes: float = 8.0
    lr: float = 1.5e-3
    ema: float = 0.99
    clips: int = 300
    latent_noise: float = 0.05  # of a latent's standard deviation: the transformer's latents are not perfect either
    seed: int = 1


def train_decoder(run_dir: Path, vae_run: Path, data: Path, plan: DecoderPlan, device: str = "cpu") -> Path:
    """Train, and write run_dir/vae.safetensors and vae.json. `data` is what `train data` made with that VAE and this seed. Resumes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    vae = read_vae(vae_run).to(device).train()
    for part in (vae.encoder, vae.conv1):
        part.requires_grad_(False)
    optimiser, ema = Optimiser(vae), Ema(vae, plan.ema)
    progress = read_checkpoint(run_dir, vae, ema, optimiser)
    clips = read_clips(data / "clips")
    frames = draw_frames(run_dir, data / "speech", min(plan.clips, len(clips)), plan.seed)
    weight = region_weight(frames.shape[-1])[None, None, None].to(device)
    rate = VAEPlan(warmup_steps=20, decay_from=0.2)
    began, saved = time.monotonic() - progress.seconds, time.monotonic()
    with Journal(run_dir) as journal:
        while (done := (time.monotonic() - began) / (60 * plan.minutes)) < 1:
            g = torch.Generator().manual_seed(plan.seed * 1_000_003 + progress.step)
            before, z, video = draw_window(clips, frames, g)
            z = z + plan.latent_noise * torch.randn(z.shape, generator=g)
            with autocast(device):
                with torch.no_grad():
                    stream = vae.warm_up(before.to(device))
                out = vae.decode_stream(z.to(device), stream)
            loss = vae_loss(out.float(), video.to(device), weight, lead=0)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step(plan.lr * vae_rate(done, progress.step, rate))
            ema.update(vae)
            progress.step, progress.seconds = progress.step + 1, time.monotonic() - began
            journal.add(loss=loss.item())
            if progress.step % 25 == 0:
                journal.write({"step": progress.step, "seconds": round(progress.seconds)})
            if time.monotonic() - saved > 60:
                write_checkpoint(run_dir, vae, ema, optimiser, progress)
                saved = time.monotonic()
    write_checkpoint(run_dir, vae, ema, optimiser, progress)
    path = run_dir / "vae.safetensors"
    kept = load_file(vae_run / "vae.safetensors")  # the encoder to the bit
    save_file({n: (kept[n] if n.startswith(("encoder.", "conv1.")) else t).contiguous() for n, t in ema.weights.items()}, path)
    (run_dir / "vae.json").write_text((vae_run / "vae.json").read_text())
    return path


def draw_window(clips: Clips, frames_N3THW: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(latents before [1, 16, k, h, w], window [1, 16, 4, h, w], its frames [1, 3, 16, H, W]): the beginning of a stream, after
    its warm-up on the still picture, or a place within one."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    n = pick(len(frames_N3THW))
    z_16Thw = clips.latents_N16Thw[n].float()
    if pick(3) == 0:
        start, before = 2, torch.cat([z_16Thw[:, :1], z_16Thw[:, 1:2].expand(-1, WARM_UP - 1, -1, -1)], dim=1)
    else:
        start = 2 + pick(z_16Thw.shape[1] - 2 - WINDOW + 1)
        before = z_16Thw[:, max(0, start - BEFORE) : start]
    first = STILL_FRAMES + 4 * (start - 2)
    video = frames_N3THW[n, :, first : first + 4 * WINDOW].float() / 127.5 - 1
    return before[None], z_16Thw[None, :, start : start + WINDOW], video[None]


def draw_frames(run_dir: Path, speech_dir: Path, count: int, seed: int) -> torch.Tensor:
    """The frames of the first `count` clips again, uint8 [N, 3, T, H, W], kept in the run's folder."""
    path = run_dir / f"frames_{seed}_{count}.safetensors"
    if not path.exists():
        speech, front, out = read_speech(speech_dir, held_out=False), LogMel(), []
        for n in range(count):
            rgb_3THW, _ = make_clip(speech, front, torch.Generator().manual_seed(seed * 1_000_003 + n))
            out.append(rgb_3THW.add(1).mul(127.5).round().to(torch.uint8))
        save_file({"frames": torch.stack(out)}, path)
    return load_file(path)["frames"]

