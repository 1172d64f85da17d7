"""Key and value caches: one per denoising step and session, allocated when a session opens, freed when it closes."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from everface.core.block import KVCache
from everface.core.errors import Unavailable


@dataclass(frozen=True)
class KVShape:
    """Sizes of one cache. `ring` and `sink` are slots, one a token."""

    layers: int
    ring: int
    sink: int
    heads: int
    width: int

    def bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.layers * (self.ring + self.sink) * self.heads * self.width * dtype.itemsize


class KVPool:
    """The caches of one device. At most `limit` at a time; raises Unavailable beyond it, or when memory is short."""

    def __init__(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str, limit: int):
        self.shape, self.dtype, self.device, self.limit = shape, dtype, torch.device(device), limit
        self._caches: dict[tuple[int, int], KVCache] = {}

    def __len__(self) -> int:
        return len(self._caches)

    def open(self, session: int, step: int) -> KVCache:
        """A zeroed cache for (session, step)."""
        if (session, step) in self._caches:
            raise RuntimeError(f"session {session} has a cache for step {step} already")
        if len(self) >= self.limit:
            raise Unavailable(f"all {self.limit} KV caches of {self.device} are taken: close a session first, or allow more")
        need, free = self.shape.bytes(self.dtype), self._free_bytes()
        short = f"a KV cache of {need / 2**20:.0f} MiB does not fit into the {free / 2**20:.0f} MiB free on {self.device}: " \
            "close a session or take a smaller picture"  # fmt: skip
        if need > free:
            raise Unavailable(short)
        s = self.shape
        ring, sink = (s.layers, s.ring, s.heads, s.width), (s.layers, s.sink, s.heads, s.width)
        try:
            tensors = [torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in (ring, ring, sink, sink)]
        except torch.OutOfMemoryError:
            raise Unavailable(short) from None
        cache = self._caches[session, step] = KVCache(*tensors)
        return cache

    def close(self, session: int) -> None:
        """Free every cache of a session."""
        for key in [key for key in self._caches if key[0] == session]:
            del self._caches[key]

    def _free_bytes(self) -> int:
        """Memory a new cache may use: what the system has, and what torch holds of it unused."""
        if self.device.type == "cuda":
            idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + idle
        return psutil.virtual_memory().available
