"""A tiny model of our own layout with random weights, a drawn face and a noise that swells and ebbs like speech."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from everface.core.config import AudioConfig, DiTConfig, ModelConfig, TextConfig, VAEConfig
from everface.networks.audio.articulators import ArticulatorNet
from everface.networks.transformer.dit import DiT
from everface.networks.video.vae import VAE
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral
from everface.train.synthetic.voices import write_wav

SMALL = ModelConfig(
    DiTConfig(
        dim=64, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=1, audio_dim=160, wav2vec_layers=1,
        audio_inject_layers=(0, 2),
    ),
    VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)),
    AudioConfig("logmel", 40, 4),
    TextConfig("none"),
    "small",
    (64, 64),
)  # fmt: skip


def write_model(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(5)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    modules = {"dit": DiT(config.dit), "vae": VAE(config.vae)} | ({"articulators": ArticulatorNet(160)} if config.motion else {})
    for name, module in modules.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="session")
def small_listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that hears someone else."""
    config = replace(SMALL, dit=replace(SMALL.dit, audio_dim=2 * SMALL.dit.audio_dim), audio=replace(SMALL.audio, listens=True))
    return write_model(tmp_path_factory.mktemp("listener"), config)


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("face") / "face.png"
    rgb = render(sample_identity(1, torch.Generator().manual_seed(3)), neutral(1), 96)[0]
    Image.fromarray(((rgb + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.1 s: four blocks and a tail of nine frames less a bit."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    t = np.arange(int(2.1 * 16_000)) / 16_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    write_wav(path, torch.from_numpy(0.1 * noise * (1 + np.sin(2 * np.pi * 3 * t))).float())
    return path
