"""`everface train data`: speech, and from it and a trained VAE the clips that stage 1 learns from, drawn by a process a core."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path

import torch

from everface.core.config import ModelConfig, VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.core.machine import cores
from everface.model.vae import VAE
from everface.train.data.clips import SHARD, make_clips
from everface.train.synthetic.voices import make_speech
from everface.weights.files import open_file
from everface.weights.load import load_into

ENCODER = ("encoder.", "conv1.")  # names of the weights that make latents


def make_data(folder: Path, vae_run: Path, count: int, seed: int, minutes: float) -> Path:
    """Fill folder/speech (espeak-ng, once) and folder/clips, `count` of them or as many as the time allows; resumable.

    `vae_run` is what train_vae left, or a model folder (read_vae_config). Returns folder/clips.
    """
    vae = read_vae(vae_run)
    speech, clips = folder / "speech", folder / "clips"
    if not (speech / "complete").exists():
        make_speech(speech, seed)
        (speech / "complete").touch()
    workers = min(cores(), -(-count // SHARD))
    if workers == 1:
        make_clips(clips, speech, vae, count, seed, minutes)
        return clips
    spawn = multiprocessing.get_context("spawn")  # a fork of a process whose threads have worked may hang
    crew = [spawn.Process(target=work, args=(clips, speech, vae_run, count, seed, minutes, n, workers)) for n in range(workers)]
    try:
        for process in crew:
            process.start()
        for process in crew:
            process.join()
            if process.exitcode:
                raise Unavailable(f"a process that made clips ended with exit status {process.exitcode}: see above; go on with the same command")
    finally:
        for process in crew:
            if process.is_alive():
                process.kill()
    return clips


def work(clips: Path, speech: Path, vae_run: Path, count: int, seed: int, minutes: float, worker: int, workers: int) -> None:
    """One process of make_data. A small convolution gains less from a second thread than a second clip does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends the others
    torch.set_num_threads(1)
    make_clips(clips, speech, read_vae(vae_run), count, seed, minutes, worker, workers)


def read_vae_config(folder: Path) -> VAEConfig:
    """Of a finished VAE run, from vae.json, or of a model folder such as the bundled one, from config.json."""
    try:
        if not (folder / "vae.json").exists() and (folder / "config.json").exists():
            return ModelConfig.from_dict(json.loads((folder / "config.json").read_text())).vae
        return VAEConfig.from_dict(json.loads((folder / "vae.json").read_text()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no finished VAE run ({error}): make one with `everface train vae`") from None


def read_vae(folder: Path) -> VAE:
    """Its VAE, with the measured latent mean and std."""
    vae = VAE(read_vae_config(folder)).eval()
    load_into(vae, open_file(folder / "vae.safetensors"))
    return vae
