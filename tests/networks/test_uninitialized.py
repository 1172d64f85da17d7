"""Modules to be filled from a checkpoint cost no random numbers and no import of torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from everface.networks.uninitialized import uninitialized


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with uninitialized():
        layer = nn.Sequential(nn.Linear(3, 4), nn.Embedding(3, 4), nn.Conv3d(1, 2, 3))
    assert all(p.is_meta for p in layer.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert not nn.Linear(3, 4).weight.is_meta


def test_a_model_is_built_without_torchs_compiler() -> None:
    code = (
        "import sys; from everface.core.config import Deployment; from everface.models.live_avatar import builders as b; "
        "b.build_dit(b.DEFAULT_WEIGHTS, None, Deployment()); b.build_decoder(b.DEFAULT_WEIGHTS, Deployment()); "
        "sys.exit(', '.join(m for m in ('torch._dynamo', 'sympy') if m in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
