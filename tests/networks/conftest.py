"""What several tests of the model need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from everface.core.config import DiTConfig
from everface.networks.transformer.dit import DiT


@pytest.fixture(scope="module")
def dit() -> DiT:
    """The transformer of the golden data, unfused, in float32."""
    path = Path(__file__).parents[1] / "golden" / "dit_weights.safetensors"
    with safe_open(path, "pt") as file:
        model = DiT(DiTConfig.from_dict(json.loads(file.metadata()["config"])))
    model.load_state_dict(load_file(path), strict=True)
    return model
