"""Reads the trained VAE of a run or of a model folder."""

from __future__ import annotations

import json
from pathlib import Path

from everface.core.config import ModelConfig, VAEConfig
from everface.core.errors import BadInput
from everface.networks.video.vae import VAE
from everface.weights.files import open_file
from everface.weights.load import load_into

ENCODER = ("encoder.", "conv1.")  # names of the weights that make latents begin so


def read_vae_config(folder: Path) -> VAEConfig:
    """From vae.json of a finished VAE run, or config.json of a model folder such as the bundled one."""
    try:
        if not (folder / "vae.json").exists() and (folder / "config.json").exists():
            return ModelConfig.from_dict(json.loads((folder / "config.json").read_text())).vae
        return VAEConfig.from_dict(json.loads((folder / "vae.json").read_text()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no finished VAE run ({error}): make one with `everface train vae`") from None


def read_vae(folder: Path) -> VAE:
    """The VAE with its measured latent mean and std."""
    vae = VAE(read_vae_config(folder)).eval()
    load_into(vae, open_file(folder / "vae.safetensors"))
    return vae
