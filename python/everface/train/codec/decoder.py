"""The VAE's decoder taught long streams, after `train vae`: short crops leave it a decibel worse after a second of video.

The encoder, and so every latent, stays as it is: a transformer trained on those latents stays valid. Streams run as the runtime decodes
them, two latents at a time from the state that the ones before left; a few take turns, so that no step sees the people of the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from everface.model.features import LogMel
from everface.model.vae import VAE, VAEStream
from everface.train.codec.vae import VAEPlan, region_weight, vae_loss, vae_rate, worth
from everface.train.data.clips import STILL_FRAMES, STILL_LATENTS, Clips, make_clip, read_clips, read_speech
from everface.train.data.generate import ENCODER, read_vae, read_vae_config
from everface.train.engine.optimizer import Ema, Optimiser, autocast, read_checkpoint, write_checkpoint
from everface.train.engine.run_log import Journal

WARM_UP = 7  # latents of the still picture before a stream begins
WINDOW = 2  # latents of a step
ABREAST = 2  # streams of a step
TURNS = 6  # so many pairs take turns
HELD_OUT = 8  # clips to measure on


@dataclass(frozen=True)
class DecoderPlan:
    """The schedule; the learning rate follows the clock."""

    minutes: float = 8.0
    lr: float = 5e-4  # three times as much cost a decibel at first
    ema: float = 0.99
    clips: int = 600
    seams: float = 6.0  # times the loss of a change where one latent's frames follow another's
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
    held_out = min(HELD_OUT, len(frames) // 2)
    streams = turns(vae, clips, frames[held_out:], held_out, plan.seed + progress.step, device)
    began, saved = time.monotonic() - progress.seconds, time.monotonic()
    with Journal(run_dir) as journal:
        while (done := (time.monotonic() - began) / (60 * plan.minutes)) < 1:
            running, g = next(streams), torch.Generator().manual_seed(plan.seed * 1_000_003 + progress.step)
            with autocast(device):
                out, video = running.step(vae, plan.latent_noise, g)
            loss = vae_loss(out.float(), video, weight, seams=plan.seams)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step(plan.lr * vae_rate(done, progress.step, rate))
            ema.update(vae)
            progress.step, progress.seconds = progress.step + 1, time.monotonic() - began
            journal.add(loss=loss.item())
            if progress.step % 25 == 0:
                row: dict[str, float] = {"step": progress.step, "seconds": round(progress.seconds)}
                if progress.step % 200 == 0:
                    with ema.swapped(vae):
                        row |= measure(vae, clips, frames[:held_out], device)
                journal.write(row)
            if time.monotonic() - saved > 60:
                write_checkpoint(run_dir, vae, ema, optimiser, progress)
                saved = time.monotonic()
        with ema.swapped(vae):
            row = {"step": progress.step, "seconds": round(progress.seconds)}
            journal.end(row | measure(vae, clips, frames[:held_out], device))
    write_checkpoint(run_dir, vae, ema, optimiser, progress)
    path = run_dir / "vae.safetensors"
    kept = load_file(vae_run / "vae.safetensors")  # the encoder to the bit
    save_file({n: (kept[n] if n.startswith(ENCODER) else t).contiguous() for n, t in ema.weights.items()}, path)
    (run_dir / "vae.json").write_text(json.dumps(asdict(read_vae_config(vae_run)), indent=2) + "\n")
    return path


class Running:
    """Clips decoded abreast, from their still picture to their end."""

    def __init__(self, vae: VAE, z_B16Thw: torch.Tensor, frames_B3THW: torch.Tensor) -> None:
        self.z_B16Thw, self.frames_B3THW, self.at = z_B16Thw, frames_B3THW, STILL_LATENTS
        self.state: VAEStream = vae.stream(len(z_B16Thw))
        still = torch.cat([z_B16Thw[:, :, :1], z_B16Thw[:, :, 1:2].expand(-1, -1, WARM_UP - 1, -1, -1)], dim=2)
        with torch.no_grad():
            self.last_B31HW = vae.decode_stream(still, self.state)[:, :, -1:]

    def over(self) -> bool:
        return self.at + WINDOW > self.z_B16Thw.shape[2]

    def step(self, vae: VAE, noise: float, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(frames as decoded, as they are), [B, 3, 1 + 4 WINDOW, H, W]: the last frame of the step before, without gradients, then
        those of the next latents, which are `noise` off."""
        z = self.z_B16Thw[:, :, self.at : self.at + WINDOW]
        out = vae.decode_stream(z + noise * torch.randn(z.shape, generator=g).to(z), self.state)
        first = STILL_FRAMES + 4 * (self.at - STILL_LATENTS)
        video = self.frames_B3THW[:, :, first - 1 : first + 4 * WINDOW].to(out.device).float() / 127.5 - 1
        out, self.last_B31HW = torch.cat([self.last_B31HW.to(out), out], dim=2), out[:, :, -1:].detach()
        self.state.caches = [c if c is None else c.detach() for c in self.state.caches]
        self.at += WINDOW
        return out, video


def turns(vae: VAE, clips: Clips, frames_N3THW: torch.Tensor, offset: int, seed: int, device: str) -> Iterator[Running]:
    """The streams of each step, without end. Frames n are of clip n + offset."""
    g = torch.Generator().manual_seed(seed)
    under_way: list[Running | None] = [None] * TURNS
    while True:
        for n, running in enumerate(under_way):
            if running is None or running.over():
                rows = torch.randint(len(frames_N3THW), (ABREAST,), generator=g)
                z = clips.latents_N16Thw[rows + offset].to(device).float()
                running = under_way[n] = Running(vae, z, frames_N3THW[rows])
            yield running


@torch.inference_mode()
def measure(vae: VAE, clips: Clips, frames_N3THW: torch.Tensor, device: str) -> dict[str, float]:
    """What `worth` says of whole streams of clips that are not trained on."""
    out, truth = [], []
    for n, video in enumerate(frames_N3THW):
        out.append(vae.decode(clips.latents_N16Thw[n, None].to(device).float())[0, :, STILL_FRAMES:].cpu())
        truth.append(video[:, STILL_FRAMES:].float() / 127.5 - 1)
    return worth(torch.stack(out), torch.stack(truth)) if out else {}


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

