"""The caches of one session on one device: text keys and values, the attention sink, and one KV ring for each denoising step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from everface.networks.transformer.kv_cache import KVCache, kv_pair
from everface.networks.transformer.kv_profile import KeptKeys
from everface.runtime.cache_pool import CachePool, CacheSlot

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class KVLayout:
    """Sizes of one session's caches. `ring`, `sink` and `text` are counted in tokens. Every step has keys and values of its own, sink
    before ring; text and the sink's un-rotated keys are shared by the steps of a device. `quantized` is the 8-bit dtype of a step's keys
    and values, if they are quantized. `kind`: what else must be equal before another session may reuse the tensors."""

    layers: int
    ring: int
    sink: int
    text: int
    heads: int
    width: int
    dtype: torch.dtype
    quantized: torch.dtype | None = None
    kind: Hashable = ()

    def shared(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        text_k, text_v = kv_pair((self.layers, self.text, self.heads, self.width), self.dtype, device)
        sink_k = torch.zeros((self.layers, self.sink, self.heads, self.width), dtype=self.dtype, device=device)
        return {"sink_k": sink_k, "text_k": text_k, "text_v": text_v}

    def per_role(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        k, v = kv_pair((self.layers, self.sink + self.ring, self.heads, self.width), self.dtype, device, self.quantized)
        return {"k": k, "v": v}


@dataclass(frozen=True)
class SessionCaches:
    """A view of a pool's slot."""

    slot: CacheSlot

    @property
    def steps(self) -> list[int]:
        return list(self.slot.roles)  # type: ignore[arg-type]  # `open_caches` names roles by their step

    @property
    def text(self) -> Pair:
        """(k, v) of [layers, text, heads, width]."""
        return self.slot.shared["text_k"], self.slot.shared["text_v"]

    @property
    def sink_k_LCHd(self) -> torch.Tensor:
        """Un-rotated, so never quantized."""
        return self.slot.shared["sink_k"]

    def cache(self, step: int, kept: KeptKeys | None = None) -> KVCache:
        tensors = self.slot.roles[step]
        return KVCache(tensors["k"], tensors["v"], self.sink_k_LCHd, kept)

    def share_ring(self, step: int, other: int) -> None:
        """Let `step` use the ring of another step."""
        self.slot.roles[step] = self.slot.roles[other]

    def set_sink(self, layer: int, k_CHd: torch.Tensor, v_CHd: torch.Tensor) -> None:
        """Copy one layer of a sink, its keys un-rotated, into the slots of every step."""
        self.sink_k_LCHd[layer].copy_(k_CHd)
        for step in self.steps:
            self.cache(step).sink_v_LCHd[layer].copy_(v_CHd)


def open_caches(pool: CachePool, session: int, step: int, layout: KVLayout) -> SessionCaches:
    """The session's caches, with an empty ring for `step` in them, behind the sink that its other steps have. Raises Unavailable."""
    slot, used = pool.open(session, step, layout)
    caches = SessionCaches(slot)
    if used:  # a kernel's tile may reach beyond what is written, where its weight is 0: NaN of a failed session would survive that
        caches.cache(step).k_LSHd.zero_()
        caches.cache(step).v_LSHd.zero_()
    else:
        other = next((s for s in caches.steps if s != step), None)
        if other is not None:
            caches.cache(step).sink_v_LCHd.copy_(caches.cache(other).sink_v_LCHd)
    return caches
