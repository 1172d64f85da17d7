"""The model over its kernels instead of their references: a golden block, and a whole step in three precisions."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("triton")
if not torch.cuda.is_available():
    import tests.kernels.interpreter  # noqa: F401  fixes the interpreter
from tests.runtime.launches import as_on_a_gpu

from everface.core.config import DiTConfig
from everface.core.regions import HALVES
from everface.kernels.attention.block_causal import launch_block_causal
from everface.kernels.attention.block_causal_fp8 import launch_block_causal_fp8
from everface.kernels.attention.cross import launch_cross, launch_cross_quantized
from everface.kernels.fused.norm_rope import rotate
from everface.networks.transformer.dit import BlockPosition, DiT
from everface.networks.transformer.layers import Ring, TransformerBlock
from everface.networks.transformer.linear import Residual, RowLinear
from everface.networks.transformer.rope import frames_table
from everface.networks.transformer.speakers import token_masks
from everface.weights.quantize import quantize_for_dtype

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the model takes its kernels anyway")
KERNELS = (
    "fused.gate_norm_modulate", "fused.qk_norm_rope_store", "fused.qk_norm_rope_quantize", "fused.flow_step", "linear.fp8_linear",
    "linear.quantize_rows",
)  # fmt: skip
CFG = DiTConfig(
    dim=128, ffn_dim=256, freq_dim=32, num_heads=2, num_layers=2, text_dim=8, text_len=20, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0,),
)  # fmt: skip


@contextlib.contextmanager
def interpreted() -> Iterator[dict[str, Mock]]:
    """Every op launches its kernel under the interpreter. Yields how often each was called, by name."""
    launches = {
        "attention.cross.cross_op": launch_cross,
        "attention.cross.cross_quantized_op": launch_cross_quantized,
        "attention.self_attention.block_causal_op": launch_block_causal,
        "attention.self_attention.block_causal_fp8_op": launch_block_causal_fp8,
        **{f"{module}.launch": importlib.import_module(f"everface.kernels.{module}").launch for module in KERNELS},
    }
    with as_on_a_gpu(), contextlib.ExitStack() as stack:
        spies = {name: Mock(side_effect=launch) for name, launch in launches.items()}
        for name, spy in spies.items():
            stack.enter_context(patch(f"everface.kernels.{name}", spy))
        yield {name.split(".")[-1].removesuffix("_op").replace("launch", name.split(".")[1]): spy for name, spy in spies.items()}


@torch.no_grad()
def test_a_golden_block(golden: Path) -> None:
    """The first noisy block of the case `dit_block`, on the sink that the file holds, as float32."""
    data, weights = load_file(golden / "dit_block.safetensors"), load_file(golden / "dit_weights.safetensors")
    with safe_open(golden / "dit_weights.safetensors", "pt") as file:
        cfg = DiTConfig.from_dict(json.loads(file.metadata()["config"]))
    block, sink_k, sink_v = TransformerBlock(cfg), data["sink.cond_k"], data["sink.cond_v"]
    block.load_state_dict({k.removeprefix("blocks.1."): v for k, v in weights.items() if k.startswith("blocks.1.")})
    block.self_attn.fuse()
    text = block.cross_attn.text_kv(block.cross_attn.keys_values(data["context_emb"][None]))
    angle = data["noisy.cond_rope_angle"]
    sink = len(sink_k)
    k, v = torch.full((2, sink + 192, *sink_k.shape[1:]), torch.nan)
    v[:sink] = sink_v
    x, mod = Residual(data["noisy.x"].view(1, 3, -1, cfg.dim)), block.modulations(data["e"][None, :, :, 0])
    with interpreted() as ran:
        rotate(sink_k, torch.stack((angle.cos(), angle.sin()), dim=-1), out=k[:sink])
        ring = Ring(k, v, torch.tensor(sink), sink + 96, frames_table(0, 3, (4, 8), cfg.head_dim))
        y = block.stream(x, mod, text, ring).value()
    torch.testing.assert_close(y.view(96, -1), data["noisy.block0.y"], atol=2e-5, rtol=0)
    called = {name: spy.call_count for name, spy in ran.items() if spy.call_count}
    assert called == {"cross": 1, "block_causal": 1, "gate_norm_modulate": 4, "qk_norm_rope_store": 1}


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.02), ("fp8", 0.05), ("fp8 epilogue", 0.05), ("fp8-attention", 0.06)])
@torch.no_grad()
def test_a_step(kind: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels against references, relative to the change of the latent: the third block, its position read from memory."""
    monkeypatch.setattr(RowLinear, "gelu_in_epilogue", kind.endswith("epilogue"))
    kind = kind.removesuffix(" epilogue")
    torch.manual_seed(6)
    dit = DiT(CFG).eval().requires_grad_(False)
    dit.to(torch.float32 if kind == "float32" else torch.bfloat16).fuse()
    quantize_for_dtype(dit, kind)
    text_kv = dit.text_kv(dit.embed_text(torch.randn(20, 8)))
    audio_kv, rope = dit.audio_kv(torch.randn(3, 5, 128), torch.randn(3, 128)), dit.rope((2, 2))
    caches, x = [dit.new_cache(4, 4) for _ in range(2)], torch.randn(16, 3, 4, 4).to(dit.dtype)
    held = [name for name, kept in vars(caches[0]).items() if kept is not None]  # no ranges: every head attends to all keys
    for name in held:
        part = torch.randn(getattr(caches[0], name).shape) * (8 if kind == "fp8-attention" else 1)  # typical e4m3 values
        for cache in caches:
            getattr(cache, name).copy_(part)
    mod, text_kv = dit.modulations(dit.time(857.7)), dit.stream_text_kv(text_kv)
    where = dit.block_position((2, 2), 2, 9)
    tensors = BlockPosition(*(torch.tensor(n) for n in where[:3]), used=where.used)

    want = dit.step(x, 0.8577, 0.602, mod, text_kv, audio_kv, caches[0], rope, where)
    with interpreted() as ran:
        got = dit.step(x, 0.8577, 0.602, mod, text_kv, audio_kv, caches[1], rope, tensors)
    change = (want - x).float().square().mean().sqrt()
    assert (got - want).float().square().mean().sqrt() / change < tolerance
    for a, b in ((getattr(cache, name) for cache in caches) for name in held):
        assert (a.float() - b.float()).square().mean().sqrt() <= tolerance * a.float().square().mean().sqrt()
    assert ran["gate_norm_modulate"].call_count == 3 * 2 + 1 + 1 and ran["flow_step"].call_count == 1
    quantized = 2 if kind.startswith("fp8") else 0
    assert ran["fp8_linear"].call_count == quantized * RowLinear.gelu_in_epilogue and ran["quantize_rows"].call_count == 2 * quantized
    assert [ran[name].call_count for name in ("cross_quantized", "cross")] == ([3, 0] if quantized else [0, 3])  # text, and audio once
    attended = [ran[name].call_count for name in ("block_causal", "qk_norm_rope_store", "block_causal_fp8", "qk_norm_rope_quantize")]
    assert attended == ([0, 0, 2, 2] if kind == "fp8-attention" else [2, 2, 0, 0])


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.02), ("fp8", 0.05)])
@torch.no_grad()
def test_two_speakers(kind: str, tolerance: float) -> None:
    """What the injection of two voices adds, by kernels against references, behind a block whose addition is still to be done."""
    torch.manual_seed(6)
    dit = DiT(CFG).eval().requires_grad_(False)
    dit.to(torch.float32 if kind == "float32" else torch.bfloat16).fuse()
    quantize_for_dtype(dit, kind)
    audio_kv = dit.audio_kv(torch.randn(2, 3, 5, 128), torch.randn(2, 3, 128))[0]
    masks = token_masks(HALVES, (2, 2)).to(dit.dtype)
    r = Residual(torch.randn(1, 3, 4, 128), torch.randn(1, 3, 4, 128).to(dit.dtype), torch.randn(1, 1, 1, 128))
    want = dit.audio_injector.stream(r, 0, audio_kv, masks)
    with interpreted() as ran:
        got = dit.audio_injector.stream(r, 0, audio_kv, masks)
    assert want.y is not None and got.y is not None and got.y.dtype == dit.dtype
    torch.testing.assert_close(got.x, want.x, atol=tolerance, rtol=tolerance)
    assert (got.y - want.y).float().square().mean().sqrt() <= tolerance * want.y.float().square().mean().sqrt()
    assert ran["gate_norm_modulate"].call_count == 2 and ran["cross_quantized" if kind == "fp8" else "cross"].call_count == 2
