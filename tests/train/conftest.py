"""Miniature models on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.train.miniature import SMALL_VAE

from everface.networks.video.vae import VAE


@pytest.fixture
def vae_run(tmp_path: Path) -> Path:
    """A finished `train vae`."""
    torch.manual_seed(0)
    run = tmp_path / "vae"
    run.mkdir()
    save_file({k: v.contiguous() for k, v in VAE(SMALL_VAE).state_dict().items()}, run / "vae.safetensors")
    (run / "vae.json").write_text(json.dumps(asdict(SMALL_VAE)))
    return run
