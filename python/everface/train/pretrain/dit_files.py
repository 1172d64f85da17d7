"""Transformer weights at the beginning and the end of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from everface.core.config import LATENT_FRAMES, DiTConfig
from everface.core.errors import BadInput
from everface.networks.transformer.dit import DiT
from everface.train.engine.checkpoint import Progress
from everface.train.engine.ema import Ema
from everface.train.engine.ranks import Ranks
from everface.train.engine.sharding import gather_full
from everface.weights.store import write_safetensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


AUDIO_INPUTS, POSE_INPUT = ("casual_audio_encoder.encoder.conv1_",), "cond_encoder.weight"


def new_dit(config: DiTConfig, seed: int, init: Path | None = None) -> DiT:
    """The transformer of the file `init`, or a freshly initialized one, with residual branches, modulation and head at or near zero.

    Raises BadInput where the file does not hold weights of this size.
    """
    torch.manual_seed(seed)
    dit = DiT(config)
    if init is not None:
        try:
            dit.load_state_dict(load_file(init), strict=True)
        except (OSError, RuntimeError) as error:
            raise BadInput(f"{init} does not hold weights of this size ({str(error).splitlines()[0]}): finish its run first") from None
        return dit
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


def adapt_dit(held: Mapping[str, torch.Tensor], config: DiTConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a transformer of this size that begins with what another has learned, of the same width, for other latents or audio.

    Tensors of the same shape are taken; the audio encoder's first convolutions take what they know of the model's own voice, and nothing of what
    it hears; what reads the pose takes what it knows of its first channels, and nothing of the others; others, which read and write latents, are fresh. Raises BadInput where fewer than half of the tensors have the same shape.
    """
    out, taken = new_dit(config, seed).state_dict(), 0
    for name, fresh in out.items():
        other = held.get(name)
        if other is not None and other.shape == fresh.shape:
            out[name], taken = other.to(fresh), taken + 1
        elif other is not None and name.startswith(AUDIO_INPUTS) and other.shape[0] == fresh.shape[0] and other.shape[1] < fresh.shape[1]:
            out[name] = torch.zeros_like(fresh)
            out[name][:, : other.shape[1]] = other
        elif other is not None and name == POSE_INPUT and other.shape[0] == fresh.shape[0] and other.shape[1] < fresh.shape[1]:
            per_frame_N4C = torch.zeros_like(fresh).unflatten(1, (LATENT_FRAMES, -1))  # as networks.motion.pose_of
            known_N4C = other.unflatten(1, (LATENT_FRAMES, -1))
            per_frame_N4C[:, :, : known_N4C.shape[2]] = known_N4C
            out[name] = per_frame_N4C.flatten(1, 2)
    if 2 * taken < len(out):
        raise BadInput(f"only {taken} of {len(out)} tensors of these weights have the size of those to train: begin from weights of the same width")
    return out


def write_dit(
    run_dir: Path, dit: DiT, ema: Ema, plan: DataclassInstance, progress: Progress, ranks: Ranks, name: str = "dit.safetensors"
) -> Path:
    """Write the averaged weights, gathered one at a time, and the plan. Returns the path of the weights. All ranks must call."""
    path = run_dir / name
    named = dict(dit.named_parameters())
    if ranks.rank == 0:
        shapes = {n: (torch.float32, tuple(named[n].shape)) for n in ema.weights}
        write_safetensors(path, shapes, lambda n: gather_full(ema.weights[n], named[n]).cpu().contiguous(), {})
        held = asdict(plan) | {"steps_done": progress.step, "block_frames": dit.cfg.block_frames}
        (run_dir / "plan.json").write_text(json.dumps(held, indent=2) + "\n")
    else:
        for n in sorted(ema.weights):
            gather_full(ema.weights[n], named[n])
    ranks.barrier()
    return path
