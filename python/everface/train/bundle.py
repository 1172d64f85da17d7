"""`everface train bundle`: makes a model folder from finished runs, for `everface render --weights`. The default model is one of these.

Weights are stored as float16: half the size, and for numbers this small more digits than bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from everface.core.config import ModelConfig, VAEConfig
from everface.core.errors import BadInput
from everface.networks.audio.articulators import FILE as ARTICULATORS
from everface.networks.familiarity import FILE as FAMILIARITY
from everface.networks.familiarity import Familiarity
from everface.networks.video.mouth_finder import FILE as MOUTH_FINDER
from everface.train.data.familiarity import write_familiarity
from everface.train.data.vae_files import ENCODER, read_vae_config
from everface.train.distill.presets import PRESETS
from everface.train.synthetic.characters import render, to_uint8
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral
from everface.weights.files import open_file
from everface.weights.store import write_model, write_text

TINY = PRESETS["tiny"].model
UNTRAINED_CORRELATION = 0.98  # of the noise, for runs trained without one: flicker at seams falls from 2.9 to 2.0 (docs/training)
CHARACTERS = {"ada": 2_000_000_059, "ben": 2_000_000_051, "mia": 2_000_000_030}  # generator seeds that no training uses


def bundle(vae_runs: list[Path], dit_run: Path, out: Path, model: ModelConfig = TINY, portraits: Mapping[str, Image.Image] | None = None) -> Path:
    """Write config.json, vae.safetensors, dit.safetensors, the transformer's plan.json, what tells images unlike its clips', portraits, and of a model
    with motion what reads the mouth from audio and what finds it in the image (`train.heads.articulation` and `mouth_finder`), which are beside the transformer.

    Several codecs, whose encoders must be the same to the bit, are averaged: `train decoder` runs over one codec differ mostly in the noise
    of their last steps. portraits: images by name, instead of three drawn characters. Raises BadInput for runs that are not finished and for different codecs.
    """
    try:
        vae, codec = average_codecs(vae_runs)
        parts = {"vae": codec, "dit": load_file(dit_run / "dit.safetensors")}
        plan = json.loads((dit_run / "plan.json").read_text())
        if model.motion:
            parts["articulators"] = load_file(dit_run / ARTICULATORS)
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        runs = ", ".join(str(run) for run in [*vae_runs, dit_run])
        raise BadInput(f"{runs} are not all finished runs ({error}): finish them first") from None
    config = replace(
        model, dit=replace(model.dit, block_frames=plan.get("block_frames", model.dit.block_frames)), vae=vae,
        region=plan.get("region") and tuple(plan["region"]), noise_correlation=plan.get("noise_correlation", UNTRAINED_CORRELATION), smaller=model.smaller if plan.get("smaller_share") else (),
    )  # fmt: skip
    write_model(out, config, parts)
    if (dit_run / FAMILIARITY).exists():
        write_familiarity(out, Familiarity(open_file(dit_run / FAMILIARITY)))
    if model.motion and (dit_run / MOUTH_FINDER).exists():
        (out / MOUTH_FINDER).write_bytes((dit_run / MOUTH_FINDER).read_bytes())
    write_text(out / "plan.json", json.dumps(plan, indent=2) + "\n")
    if portraits is None:
        portraits = {name: draw_portrait(seed) for name, seed in CHARACTERS.items()}
    for name, image in portraits.items():
        image.save(out / f"{name}.png")
    return out


def read_portraits(folder: Path) -> dict[str, Image.Image]:
    """The PNG files of a folder by their names. Raises BadInput where there is none, or one that is no image."""
    try:
        images = {path.stem: Image.open(path, formats=["PNG"]).convert("RGB") for path in sorted(folder.glob("*.png"))}
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{folder} has a file that is no PNG image ({error}): give a folder of portraits") from None
    if not images:
        raise BadInput(f"{folder} has no PNG file: give a folder of portraits")
    return images


def average_codecs(runs: list[Path]) -> tuple[VAEConfig, dict[str, Tensor]]:
    """Configuration and mean weights. Raises BadInput where two runs do not make the same latents: their mean would be no codec."""
    config, first = read_vae_config(runs[0]), load_file(runs[0] / "vae.safetensors")
    encoder = [n for n in first if n.startswith(ENCODER)]
    total = {n: t.float() for n, t in first.items()}
    for run in runs[1:]:
        held = load_file(run / "vae.safetensors")
        if read_vae_config(run) != config or not all(torch.equal(first[n], held[n]) for n in encoder):
            raise BadInput(f"{runs[0]} and {run} are different codecs: average only `train decoder` runs over the same one")
        total = {n: t + held[n] for n, t in total.items()}
    return config, {n: t / len(runs) if n not in encoder else first[n] for n, t in total.items()}


def draw_portrait(seed: int, size: int = 512) -> Image.Image:
    """One character, mouth shut, as a reference image."""
    rgb_3HW = render(sample_identity(1, torch.Generator().manual_seed(seed)), neutral(1), size)[0]
    return Image.fromarray(to_uint8(rgb_3HW).permute(1, 2, 0).numpy())
