"""The stage-1 run: a curriculum of windows over drawn clips, resumable, logged as JSON lines.

    everface train stage1 RUN --clips DIR --minutes 60
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.model.dit import DiT
from everface.train.clips import Clips, read_clips
from everface.train.descent import Ema, Optimiser, autocast, read_checkpoint, write_checkpoint
from everface.train.forcing import Window, WindowModel, draw_window, region_weight, window_loss

# The default model's transformer: small enough for two CPU cores in real time, official classes and key names.
TINY = DiTConfig(
    dim=192, ffn_dim=768, freq_dim=128, num_heads=4, num_layers=6, text_dim=16, text_len=1, audio_dim=160, wav2vec_layers=1,
    audio_inject_layers=(0, 1, 2, 3, 4, 5),
)  # fmt: skip


@dataclass(frozen=True)
class Stage1:
    """The schedule. `minutes` is of training on this machine; the curriculum and the learning rate follow the clock."""

    minutes: float = 60.0
    lr: float = 2e-3
    warmup_steps: int = 60
    decay_from: float = 0.6  # of the time; linear to 2 % afterwards
    ema: float = 0.998
    seed: int = 1
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 2, 10), (0.2, 3, 7), (0.45, 5, 4))  # (from, blocks, clips a batch)
    held_out: int = 48  # clips kept for the validation loss


def train_stage1(run_dir: Path, clips_dir: Path, plan: Stage1, config: DiTConfig = TINY, device: str = "cpu") -> Path:
    """Train and return the path of the EMA weights, `run_dir/dit.safetensors`. Resumes from run_dir when it holds a checkpoint."""
    run_dir.mkdir(parents=True, exist_ok=True)
    clips = read_clips(clips_dir)
    if len(clips) <= plan.held_out + 16:
        raise BadInput(f"{clips_dir} holds {len(clips)} clips, too few to train on: make more with `everface train data`")
    valid = Clips(clips.latents_N16Thw[: plan.held_out], clips.features_NLCF[: plan.held_out])
    train = Clips(clips.latents_N16Thw[plan.held_out :], clips.features_NLCF[plan.held_out :])

    torch.manual_seed(plan.seed)
    dit = new_dit(config).to(device)
    model, optimiser = WindowModel(dit), Optimiser(dit)
    ema = Ema(dit, plan.ema)
    progress = read_checkpoint(run_dir, dit, ema, optimiser)
    weight = region_weight(*clips.latents_N16Thw.shape[-2:]).to(device)
    generator = torch.Generator()
    log.info("stage 1: %d clips, %.2f M parameters", len(train), sum(p.numel() for p in dit.parameters()) / 1e6)

    began, saved, losses = time.monotonic() - progress.seconds, time.monotonic(), []
    with open(run_dir / "log.jsonl", "a", buffering=1) as journal:
        while (done := (time.monotonic() - began) / (60 * plan.minutes)) < 1:
            _, blocks, batch = next(c for c in reversed(plan.curriculum) if done >= c[0])
            rng = random.Random(plan.seed * 7_919_003 + progress.step)
            window = draw_window(train, batch, blocks, config.block_frames, rng, device)
            with autocast(device):
                loss = window_loss(model, window, weight, generator.manual_seed(plan.seed * 1_000_003 + progress.step))
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
            optimiser.step(plan.lr * learning_rate(done, progress.step, plan))
            ema.update(dit)
            progress.step, progress.seconds = progress.step + 1, time.monotonic() - began
            losses.append(loss.item())
            if progress.step % 25 == 0:
                row = {"step": progress.step, "seconds": round(progress.seconds), "blocks": blocks, "loss": mean(losses)}
                row["norm"] = round(norm.item(), 3)
                losses.clear()
                if progress.step % 250 == 0:
                    row["valid"] = validate(ema, dit, valid, weight, config)
                journal.write(json.dumps(row) + "\n")
            if time.monotonic() - saved > 90:
                write_checkpoint(run_dir, dit, ema, optimiser, progress)
                saved = time.monotonic()
    write_checkpoint(run_dir, dit, ema, optimiser, progress)
    (run_dir / "plan.json").write_text(json.dumps(asdict(plan) | {"steps": progress.step}, indent=2) + "\n")
    path = run_dir / "dit.safetensors"
    save_file({n: t.contiguous() for n, t in ema.weights.items()}, path)
    return path


def new_dit(config: DiTConfig) -> DiT:
    """A freshly initialised transformer: residual branches, modulation and the head start at or near zero."""
    dit = DiT(config)
    for name, p in dit.named_parameters():
        if name.endswith(("modulation", "trainable_cond_mask.weight", "padding_tokens")):
            torch.nn.init.normal_(p, std=0.02)
        elif p.dim() > 1:
            torch.nn.init.normal_(p, std=1 / math.sqrt(p[0].numel()))
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        if name.endswith((".o.weight", "ffn.2.weight", "head.head.weight", "adain_layers.weight")):
            torch.nn.init.normal_(p, std=0.1 / math.sqrt(p[0].numel()))
    return dit


def learning_rate(done: float, step: int, plan: Stage1) -> float:
    """Factor of the learning rate: warm-up by steps, then constant, then linear to 2 % by the clock."""
    fall = max(0.02, 1 - max(0.0, done - plan.decay_from) / (1 - plan.decay_from))
    return min(1.0, (step + 1) / plan.warmup_steps) * fall


def validate(ema: Ema, dit: DiT, valid: Clips, weight: torch.Tensor, config: DiTConfig) -> float:
    """Loss of the averaged weights on unseen characters, on the same noise every time."""
    with ema.swapped(dit), torch.no_grad(), autocast(weight.device.type):
        total = []
        for k in range(6):
            window: Window = draw_window(valid, 6, 4, config.block_frames, random.Random(k), weight.device.type)
            total.append(window_loss(WindowModel(dit), window, weight, torch.Generator().manual_seed(k)).item())
    return mean(total)


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 5)
