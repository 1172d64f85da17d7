"""Memory of the transformer beside its weights and caches: one layer at a time while the sink is refreshed, one block while it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench.stream.random14b import random_dit
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from everface.core.config import Deployment, DiTConfig, ModelConfig
from everface.models.live_avatar.builders import dtype_of, load_dit
from everface.models.live_avatar.caches import SessionCaches
from everface.models.live_avatar.roles import Denoiser, StepRole
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.schedule import Schedule
from everface.runtime.messages import OpenSession
from everface.weights.quantize import quantize_for_dtype

WIDTH, TEXT = 64, 4
LATENT = (16, 16)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made while it is active hold at once. Tensors from before are not counted."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        self.alive = {k: kept for k, kept in self.alive.items() if not kept[0].expired()}
        for tensor in (t for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known | given and tensor.device.type != "meta":
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


def config(layers: int) -> DiTConfig:
    return DiTConfig(
        dim=WIDTH, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=layers, text_dim=8, text_len=TEXT, audio_dim=16, wav2vec_layers=1,
        audio_inject_layers=(0,),
    )  # fmt: skip


def refresh(layers: int, dtype: str, prime: Callable[[Denoiser, Any, Any], None]) -> tuple[int, SessionCaches]:
    """(peak bytes of a refresh of the sink, the caches after it)."""
    torch.manual_seed(1)
    deployment = Deployment(dtype=dtype)
    dit = DiT(config(layers)).to(dtype_of(deployment)).eval().requires_grad_(False).fuse()
    quantize_for_dtype(dit, dtype)
    d = Denoiser(dit, ModelConfig(dit.cfg), deployment)
    drawn = torch.Generator().manual_seed(2)
    tensors = {
        "reference": torch.randn(16, 1, *LATENT, generator=drawn), "motion": torch.randn(16, 19, *LATENT, generator=drawn),
        "text": torch.randn(TEXT, 8, generator=drawn),
    }  # fmt: skip
    for step in (0, 1):
        StepRole(d, Schedule.for_sampler("official"), step).open(OpenSession(1, tensors, {"seed": 1, "rope_fp16": False}))
    state, new = d.sessions[1], {"reference": torch.randn(16, 1, *LATENT, generator=drawn)}
    slot = state.caches.slot
    held = [*slot.shared.values(), *(t for made in slot.roles.values() for t in made.values()), *dit.state_dict().values()]
    with torch.inference_mode(), Peak(held) as peak:
        prime(d, state, new)
    return peak.bytes, state.caches


def prime_at_once(d: Denoiser, state: Any, new: Any) -> None:
    """What `Denoiser.prime` does, with all layers in memory."""
    known = state.opened | {k: d.onto(v) for k, v in new.items()}
    text_kv = d.dit.text_kv(d.dit.embed_text(known["text"]))
    for layer, kv in enumerate(zip(*d.dit.prefill_sink(known["reference"], known["motion"], text_kv), strict=True)):
        state.caches.set_sink(layer, *kv)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8", "fp8-attention"])
def test_a_refresh_of_the_sink_holds_one_layer_beside_the_caches(dtype: str) -> None:
    few, _ = refresh(2, dtype, Denoiser.prime)
    many, mine = refresh(8, dtype, Denoiser.prime)
    at_once, other = refresh(8, dtype, prime_at_once)
    layer = mine.sink_k_LCHd[0].numel() * mine.sink_k_LCHd.element_size()
    assert many - few < layer, "the peak grows with the number of layers"
    assert at_once - many > 2 * 6 * layer // (4 if dtype == "fp8-attention" else 1)  # so the counter sees what it is to see
    assert torch.equal(mine.sink_k_LCHd, other.sink_k_LCHd)
    assert torch.equal(mine.cache(1).sink_v_LCHd.float(), other.cache(1).sink_v_LCHd.float())


def load(layers: int, dtype: str) -> tuple[int, DiT]:
    """(peak bytes of loading, the model)."""
    torch.manual_seed(1)
    source = {name: t.bfloat16() for name, t in DiT(config(layers)).state_dict().items()}
    with torch.device("meta"):
        dit = DiT(config(layers))
    with Peak(list(source.values())) as peak:
        load_dit(dit, source, Deployment(dtype=dtype))
    whole = DiT(config(layers)).to(dtype_of(Deployment(dtype=dtype))).eval().requires_grad_(False)
    whole.load_state_dict(source)
    quantize_for_dtype(whole.fuse(), dtype)
    for part in (*whole.transformer_blocks(), whole.audio_injector):
        part.pack()
    for (name, a), (other, b) in zip(dit.state_dict().items(), whole.state_dict().items(), strict=True):
        assert name == other and a.dtype == b.dtype and torch.equal(a.float(), b.float()), name
    return peak.bytes, dit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8", "fp8-attention"])
def test_loading_holds_one_block_in_16_bits_beside_the_model(dtype: str) -> None:
    (few, small), (many, large) = load(2, dtype), load(8, dtype)
    sizes = [sum(t.numel() * t.element_size() for t in dit.state_dict().values()) for dit in (small, large)]
    block = sum(t.numel() for t in DiT(config(1)).blocks.state_dict().values())
    assert many - few < sizes[1] - sizes[0] + block, "the peak grows by more than the model does"


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8-attention"])
def test_random_weights_hold_one_block_in_16_bits_beside_the_model(dtype: str) -> None:
    """And are those of a model that is drawn whole and quantized afterwards."""
    peaks, sizes = [], []
    for layers in (2, 8):
        torch.manual_seed(1)
        with Peak([]) as peak:
            dit = random_dit(config(layers), "cpu", quantized=dtype)
        peaks.append(peak.bytes)
        sizes.append(sum(t.numel() * t.element_size() for t in dit.state_dict().values()))
        torch.manual_seed(1)
        whole = random_dit(config(layers), "cpu")
        quantize_for_dtype(whole, dtype)
        for (name, a), (other, b) in zip(dit.state_dict().items(), whole.state_dict().items(), strict=True):
            assert name == other and a.dtype == b.dtype and torch.equal(a.float(), b.float()), name
    block = sum(t.numel() for t in DiT(config(1)).blocks.state_dict().values())
    assert peaks[1] - peaks[0] < sizes[1] - sizes[0] + block, "the peak grows by more than the model does"


@pytest.mark.parametrize("dtype", ["float32", "fp8"])
def test_text_weights_on_the_host_change_no_bit(dtype: str) -> None:
    torch.manual_seed(1)
    source = DiT(config(3)).state_dict()
    results = []
    for place in ("device", "host"):
        with torch.device("meta"):
            dit = DiT(config(3))
        load_dit(dit, source, Deployment(dtype=dtype, text_weights=place))
        assert any(name.startswith("blocks.0.cross_attn.k.") for name in dit.state_dict()) == (place == "device")
        with torch.inference_mode():
            results.append(dit.text_kv(dit.embed_text(torch.ones(TEXT, 8))))
    for (k, v), (host_k, host_v) in zip(*results, strict=True):
        assert torch.equal(k, host_k) and torch.equal(v, host_v)
