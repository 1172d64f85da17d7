"""`everface train data`: speech, and from it and a trained VAE the clips that stage 1 learns from."""

from __future__ import annotations

import json
from pathlib import Path

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.model.vae import VAE
from everface.train.clips import make_clips
from everface.train.voices import make_speech
from everface.weights.files import open_file
from everface.weights.load import load_into


def make_data(folder: Path, vae_run: Path, count: int, seed: int, minutes: float) -> Path:
    """Fill folder/speech (espeak-ng, once) and folder/clips, `count` of them or as many as the time allows; resumable.

    `vae_run` is what train_vae left: vae.safetensors and vae.json. Returns folder/clips.
    """
    vae = read_vae(vae_run)
    speech, clips = folder / "speech", folder / "clips"
    if not (speech / "complete").exists():
        make_speech(speech, seed)
        (speech / "complete").touch()
    make_clips(clips, speech, vae, count, seed, minutes)
    return clips


def read_vae(run_dir: Path) -> VAE:
    """The VAE of a finished run, with its measured latent mean and std."""
    try:
        config = VAEConfig.from_dict(json.loads((run_dir / "vae.json").read_text()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{run_dir} is no finished VAE run ({error}): make one with `everface train vae`") from None
    vae = VAE(config).eval()
    load_into(vae, open_file(run_dir / "vae.safetensors"))
    return vae
