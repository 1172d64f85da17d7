"""A model that is not trained can be timed, and the one for 256x256 is as small as it must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.train.miniature import SMALL_DIT, SMALL_VAE

from everface.core.config import Deployment
from everface.networks.motion import POSE
from everface.networks.sizes import decoder_sizes, dit_parameters, encoder_sizes
from everface.train.distill.presets import PRESETS
from everface.train.speed import measure_block, write_untrained


def test_a_block_is_counted_and_timed(tmp_path: Path) -> None:
    small = replace(PRESETS["tiny"].model, dit=replace(SMALL_DIT, audio_dim=160), vae=replace(SMALL_VAE, patch_size=2), size=(64, 64))
    cost = measure_block(write_untrained(small, tmp_path / "model"), Deployment(), blocks=1)
    assert cost.size == (64, 64) and cost.fps > 0 and cost.gflop > 0.01
    named = {op.name: op for op in cost.ops}
    assert named["aten::addmm"].gflop > 0 and sum(op.gflop for op in cost.ops) <= cost.gflop
    assert "GFLOP a block" in cost.table() and set(cost.peak_gflops) == {"float32", "bfloat16"}


def test_the_model_for_256x256_fits() -> None:
    model = PRESETS["heads-256"].model
    assert model.size == (256, 256) and model.vae.stride == (4, 16, 16)
    assert model.dit.in_dim == model.dit.out_dim == model.vae.z_dim and model.dit.cond_dim == POSE
    parameters = sum(dit_parameters(model.dit)) + encoder_sizes(model.vae, 16, 16)[0] + decoder_sizes(model.vae, 16, 16)[0]
    assert 2 * parameters < 24.9e6
