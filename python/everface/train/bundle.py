"""`everface train bundle`: finished runs become a model folder that `everface render --weights` takes; ours is `default/`.

Weights are stored as float16: half the size, and of numbers this small it keeps more digits than bfloat16.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from everface.core.config import AudioConfig, ModelConfig, TextConfig
from everface.core.errors import BadInput
from everface.train.characters import neutral, render, sample_identity
from everface.train.clips import STILL_FRAMES
from everface.train.data import read_vae_config
from everface.train.plans import TINY
from everface.weights.store import write_safetensors, write_text

NAME = "everface tiny: drawn characters, 128x128"
UNTRAINED_CORRELATION = 0.98  # of the noise, for runs that did not train with one: seams fall from 2.9 to 2.0 (docs/training)
CHARACTERS = {"ada": 2_000_000_059, "ben": 2_000_000_051, "mia": 2_000_000_030}  # generator seeds, far from those of training


def bundle(vae_run: Path, dit_run: Path, out: Path) -> Path:
    """Write config.json, vae.safetensors, dit.safetensors, the transformer's plan.json and three portraits into `out`."""
    try:
        vae = read_vae_config(vae_run)
        parts = {"vae": load_file(vae_run / "vae.safetensors"), "dit": load_file(dit_run / "dit.safetensors")}
        plan = json.loads((dit_run / "plan.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{vae_run} and {dit_run} are not both finished runs ({error}): finish them first") from None
    config = ModelConfig(
        dit=replace(TINY, block_frames=plan.get("block_frames", TINY.block_frames)), vae=vae, audio=AudioConfig("logmel"), text=TextConfig("none"), name=NAME, size=(128, 128), still_frames=STILL_FRAMES,
        noise_correlation=plan.get("noise_correlation", UNTRAINED_CORRELATION),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    write_text(out / "plan.json", json.dumps(plan, indent=2) + "\n")
    for part, tensors in parts.items():
        shapes = {n: (torch.float16, tuple(t.shape)) for n, t in tensors.items()}
        write_safetensors(out / f"{part}.safetensors", shapes, lambda n, held=tensors: held[n].half(), {"model": NAME})
    for name, seed in CHARACTERS.items():
        draw_portrait(seed).save(out / f"{name}.png")
    return out


def draw_portrait(seed: int, size: int = 512) -> Image.Image:
    """One character, mouth shut, as a picture to render from."""
    rgb_3HW = render(sample_identity(1, torch.Generator().manual_seed(seed)), neutral(1), size)[0]
    return Image.fromarray(((rgb_3HW + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())
