"""A captured step of the random model and its inputs: one block of a session whose ring is full, as the runtime replays it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench.peaks import device
from bench.stream.random14b import CONFIG, LATENT

from everface.kernels.fused.row_primitives import to_e4m3
from everface.networks.transformer.dit import BlockPosition, DiT, StepMod
from everface.networks.transformer.kv_cache import KVCache
from everface.networks.transformer.layers import AudioKV, TextKV
from everface.networks.transformer.rope import Rope
from everface.runtime.cuda_graph import CapturedGraph, GraphPool

CFG = CONFIG.dit
FULL = CFG.window_blocks - 1  # the first block that finds the ring full
SIGMAS, TIME = (0.8577, 0.602), 857.7


class Inputs(NamedTuple):
    """Inputs of a step besides the weights."""

    x: torch.Tensor
    mod: StepMod
    text_kv: list[TextKV]
    audio_kv: list[AudioKV]
    cache: KVCache
    rope: Rope
    position: BlockPosition  # numbers


@torch.inference_mode()
def make_inputs(dit: DiT) -> Inputs:
    """A full ring of random keys and values, random text and audio."""
    (h, w), cfg = LATENT, dit.cfg
    torch.manual_seed(3)
    with torch.device(device()):
        text_kv = dit.text_kv(dit.embed_text(torch.randn(cfg.text_len, cfg.text_dim)))
        audio_kv = dit.audio_kv(torch.randn(3, cfg.num_audio_token + 1, cfg.dim), torch.randn(3, cfg.dim))
        cache, rope = dit.new_cache(h, w), dit.rope((h // 2, w // 2))
        for part in cache.tensors:
            part.normal_()
        x = torch.randn(16, 3, h, w).to(dit.dtype)
        position = dit.block_position((h // 2, w // 2), 8 + FULL, 17)
        return Inputs(x, dit.modulations(dit.time(TIME)), dit.stream_text_kv(text_kv), audio_kv, cache, rope, position)


@torch.inference_mode()
def quantize_cache(dit: DiT, given: Inputs) -> Inputs:
    """The same keys and values quantized as the attention of this model reads them, a layer at a time."""
    cache, scales = dit.new_cache(*LATENT), dit._qkv_scales()
    for layer, c in enumerate(scales):
        for part, factor_H in (("k_LNHd", 1 / c.k_scale_H), ("v_LNHd", c.v_factor_H), ("sink_k_LCHd", 1 / c.k_scale_H)):
            x, kept = getattr(given.cache, part)[layer] * factor_H[:, None], getattr(cache, part)[layer]
            kept.copy_(to_e4m3(x) if kept.dtype == dit.quantized_dtype else x)
    return given._replace(cache=cache) if scales else given


def step(dit: DiT, given: Inputs) -> Callable[[], torch.Tensor]:
    """The captured step as a call; it copies its input in, as the runtime does."""
    _, mod, text_kv, audio_kv, cache, rope, position = given

    def function(used: int, x: torch.Tensor, **where: Any) -> tuple[torch.Tensor, ...]:
        return (dit.step(x, *SIGMAS, mod, text_kv, audio_kv, cache, rope, BlockPosition(**where, used=used)),)

    positions = {name: torch.zeros((), dtype=torch.int64, device=device()) for name in ("first", "sink", "start")}
    captured = CapturedGraph(function, {"x": given.x.clone(), **positions}, GraphPool(device()))
    numbers = {name: getattr(position, name) for name in positions}
    return lambda: captured.run(position.used, x=given.x, **numbers)[0]
