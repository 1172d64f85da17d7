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
from torch import Tensor

from everface.core.config import AudioConfig, ModelConfig, TextConfig, VAEConfig
from everface.core.errors import BadInput
from everface.train.data.clips import STILL_FRAMES
from everface.train.data.generate import ENCODER, read_vae_config
from everface.train.pretrain.plans import TINY
from everface.train.synthetic.characters import neutral, render, sample_identity
from everface.weights.store import write_safetensors, write_text

NAME = "everface tiny: drawn characters, 128x128"
UNTRAINED_CORRELATION = 0.98  # of the noise, for runs that did not train with one: seams fall from 2.9 to 2.0 (docs/training)
CHARACTERS = {"ada": 2_000_000_059, "ben": 2_000_000_051, "mia": 2_000_000_030}  # generator seeds, far from those of training


def bundle(vae_runs: list[Path], dit_run: Path, out: Path) -> Path:
    """Write config.json, vae.safetensors, dit.safetensors, the transformer's plan.json and three portraits into `out`.

    Of several codecs, whose encoders must be the same to the bit, the mean is taken: what runs of `train decoder` over one codec disagree
    in is mostly noise of their last steps.
    """
    try:
        vae, codec = mean_codec(vae_runs)
        parts = {"vae": codec, "dit": load_file(dit_run / "dit.safetensors")}
        plan = json.loads((dit_run / "plan.json").read_text())
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        runs = ", ".join(str(run) for run in [*vae_runs, dit_run])
        raise BadInput(f"{runs} are not all finished runs ({error}): finish them first") from None
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


def mean_codec(runs: list[Path]) -> tuple[VAEConfig, dict[str, Tensor]]:
    """Raises BadInput where two do not make the same latents, so that their mean would be no codec."""
    config, first = read_vae_config(runs[0]), load_file(runs[0] / "vae.safetensors")
    encoder = [n for n in first if n.startswith(ENCODER)]
    total = {n: t.float() for n, t in first.items()}
    for run in runs[1:]:
        held = load_file(run / "vae.safetensors")
        if read_vae_config(run) != config or not all(torch.equal(first[n], held[n]) for n in encoder):
            raise BadInput(f"{runs[0]} and {run} are different codecs: take the mean only of `train decoder` runs over the same one")
        total = {n: t + held[n] for n, t in total.items()}
    return config, {n: t / len(runs) if n not in encoder else first[n] for n, t in total.items()}


def draw_portrait(seed: int, size: int = 512) -> Image.Image:
    """One character, mouth shut, as a picture to render from."""
    rgb_3HW = render(sample_identity(1, torch.Generator().manual_seed(seed)), neutral(1), size)[0]
    return Image.fromarray(((rgb_3HW + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())
