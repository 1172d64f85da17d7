"""`everface train decoder`: trains the VAE's decoder on long streams. After short crops alone it is a decibel worse from the second second on.

The encoder is frozen, and so are all latents: a transformer trained on them stays valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from everface.networks.audio.features import LogMel
from everface.networks.video.vae import VAE
from everface.train.codec.decode_stream import DecodeStream, interleave_streams
from everface.train.codec.loss import codec_loss, pixel_weight, reconstruction_quality
from everface.train.codec.training import train_codec, write_vae
from everface.train.data.clips import STILL_FRAMES, Clips, read_clips
from everface.train.data.drawn import clip_generator, make_clip, read_speech
from everface.train.data.vae_files import ENCODER, read_vae, read_vae_config
from everface.train.engine.plan import RunPlan
from everface.train.engine.precision import autocast
from everface.train.synthetic.characters import from_uint8, to_uint8

HELD_OUT_CLIPS = 8


@dataclass(frozen=True)
class DecoderPlan(RunPlan):
    minutes: float = 8.0
    lr: float = 5e-4  # three times as much cost a decibel at first
    warmup_steps: int = 20
    decay_from: float = 0.2
    ema: float = 0.99
    clips: int = 600
    edge_weight: float = 6.0  # on the loss of changes between one latent's frames and the next's
    latent_noise: float = 0.05  # of a latent's standard deviation: the transformer's latents are not exact either


def train_decoder(run_dir: Path, vae_run: Path, data: Path, plan: DecoderPlan, device: str = "cpu") -> Path:
    """Train, and write run_dir/vae.safetensors and vae.json. `data`: what `train data` made with that VAE and this seed. Resumes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    vae = read_vae(vae_run).to(device).train()
    for part in (vae.encoder, vae.conv1):
        part.requires_grad_(False)
    clips = read_clips(data / "clips")
    frames = draw_frames(run_dir, data / "speech", min(plan.clips, len(clips)), plan.seed)
    weight = pixel_weight(frames.shape[-1])[None, None, None].to(device)
    held_out = min(HELD_OUT_CLIPS, len(frames) // 2)
    streams: Iterator[DecodeStream] | None = None

    def loss_of(step: int, done: float) -> torch.Tensor:
        nonlocal streams
        if streams is None:  # a resumed run draws other clips than it began with
            streams = interleave_streams(vae, clips, frames[held_out:], held_out, plan.seed + step, device)
        with autocast(device):
            out, video = next(streams).step(vae, plan.latent_noise, clip_generator(plan.seed, step))
        return codec_loss(out.float(), video, weight, edge_weight=plan.edge_weight)

    ema = train_codec(run_dir, vae, plan, loss_of, lambda: measure(vae, clips, frames[:held_out], device), device)
    kept = load_file(vae_run / "vae.safetensors")  # the encoder, to the bit
    weights = {n: kept[n] if n.startswith(ENCODER) else t.cpu() for n, t in ema.weights.items()}
    return write_vae(run_dir, weights, read_vae_config(vae_run))


@torch.inference_mode()
def measure(vae: VAE, clips: Clips, frames_N3THW: torch.Tensor, device: str) -> dict[str, float]:
    """Quality over whole held-out clips."""
    out, truth = [], []
    for n, video in enumerate(frames_N3THW):
        out.append(vae.decode(clips.latents_N16Thw[n, None].to(device).float())[0, :, STILL_FRAMES:].cpu())
        truth.append(from_uint8(video[:, STILL_FRAMES:]))
    return reconstruction_quality(torch.stack(out), torch.stack(truth)) if out else {}


def draw_frames(run_dir: Path, speech_dir: Path, count: int, seed: int) -> torch.Tensor:
    """The frames of the first `count` clips again, uint8 [N, 3, T, H, W], kept in the run's folder."""
    path = run_dir / f"frames_{seed}_{count}.safetensors"
    if not path.exists():
        speech, front_end, out = read_speech(speech_dir, held_out=False), LogMel(), []
        for n in range(count):
            rgb_3THW, *_ = make_clip(speech, front_end, clip_generator(seed, n))
            out.append(to_uint8(rgb_3THW))
        save_file({"frames": torch.stack(out)}, path)
    return load_file(path)["frames"]
