"""The 8-bit policy: exactly the layers of the release, exactly its codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.weights.official import TINY, dit_shapes, fill
from torch import nn

from everface.core.config import DiTConfig
from everface.model.dit import DiT
from everface.weights.quantize import FP8Linear, quantise, quantised_names

KEPT = {
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "head.head",
    "casual_audio_encoder.encoder.final_linear",
}


def test_every_linear_but_the_exclusions() -> None:
    dit = DiT(TINY.dit)
    attentions = [f"blocks.{i}.{a}_attn" for i in range(3) for a in ("self", "cross")] + [
        f"audio_injector.injector.{j}" for j in (0, 1)
    ]
    wanted = {f"{attention}.{leaf}" for attention in attentions for leaf in "qkvo"}
    wanted |= {f"blocks.{i}.ffn.{k}" for i in range(3) for k in (0, 2)}
    wanted |= {f"audio_injector.injector_adain_layers.{j}.linear" for j in (0, 1)}
    assert set(quantised_names(dit)) == wanted
    linears = {name for name, module in dit.named_modules() if isinstance(module, nn.Linear)}
    assert linears - wanted == KEPT


def test_released_weight_count() -> None:
    with torch.device("meta"):
        dit = DiT(DiTConfig())
    weights = [dit.get_parameter(f"{name}.weight").numel() for name in quantised_names(dit)]
    assert len(weights) == 460
    assert round(sum(weights) / 1e9, 2) == 15.94


@pytest.mark.parametrize("case", ["typical", "small", "large"])
def test_golden(golden: Path, case: str) -> None:
    """Codes and scale exactly, output to one ulp of bfloat16 (golden README 11)."""
    tensors = load_file(golden / "fp8_linear.safetensors")
    x, w_OI, bias = (tensors[f"{case}.{name}"] for name in ("x", "weight", "bias"))
    linear = nn.Linear(w_OI.shape[1], w_OI.shape[0], dtype=torch.bfloat16)
    linear.load_state_dict({"weight": w_OI, "bias": bias})
    layer = FP8Linear(linear)
    assert torch.equal(layer.weight.float(), tensors[f"{case}.weight_fp8"].float())
    torch.testing.assert_close(layer.scale, tensors[f"{case}.weight_scale"], rtol=1e-6, atol=0)
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, tensors[f"{case}.y_scaled_mm_bf16"], rtol=2**-7, atol=1e-5)


def test_quantised_model_runs_and_stays_close() -> None:
    dit = DiT(TINY.dit)
    dit.load_state_dict(fill(dit_shapes(TINY.dit), 3, torch.float32))
    names, before = quantised_names(dit), {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    x = torch.randn(1, 10, TINY.dit.dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wide = dit.blocks[1].get_submodule("ffn")(x)
        quantise(dit)
        narrow = dit.blocks[1].get_submodule("ffn")(x)
    assert all(isinstance(dit.get_submodule(name), FP8Linear) for name in names) and quantised_names(dit) == []
    after = dit.state_dict()
    changed = {name.removesuffix(".weight") for name in before if after[name].dtype != before[name].dtype}
    assert changed == set(names)
    assert all(torch.equal(after[name], before[name]) for name in before if name.removesuffix(".weight") not in changed)
    error = ((narrow - wide).norm() / wide.norm()).item()
    assert 0.001 < error < 0.1, error
