"""Key and value caches of the sessions on one device, pooled: taken when a session opens, given back when it closes."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from everface.core.block import KVCache, kv_pair
from everface.core.errors import Unavailable

Pair = tuple[torch.Tensor, torch.Tensor]
Made = TypeVar("Made", bound=tuple[torch.Tensor, ...])


@dataclass(frozen=True)
class KVShape:
    """Sizes of one session's caches. `ring`, `sink` and `text` are slots, one a token. Every step has keys and values of its own, sink
    before ring; text and the sink's un-rotated keys are shared by the steps of a device. `codes` is the dtype of one byte in which what
    a step has is held, if it is (core/block.kv_pair). `kind` is what else must be equal before the next session may take them over."""

    layers: int
    ring: int
    sink: int
    text: int
    heads: int
    width: int
    codes: torch.dtype | None = None
    kind: Hashable = ()


@dataclass(eq=False)
class Slot:
    """One session's caches. The tensors outlive the session, so what was captured over them serves the next one of their shape."""

    shape: KVShape
    sink_k_LCHd: torch.Tensor  # un-rotated, hence never in codes
    text: Pair  # (k, v) of [layers, text, heads, width]
    rings: dict[int, Pair] = field(default_factory=dict)  # step -> (k, v) of [layers, sink + ring, heads, width]
    kept: dict[Hashable, object] = field(default_factory=dict)  # whatever lives as long as they do: captured steps, their inputs

    def cache(self, step: int) -> KVCache:
        return KVCache(*self.rings[step], self.sink_k_LCHd)

    def prime(self, k_LCHd: torch.Tensor, v_LCHd: torch.Tensor) -> None:
        """Take over a sink, its keys un-rotated, for every step."""
        self.sink_k_LCHd.copy_(k_LCHd)
        for step in self.rings:
            self.cache(step).sink_v_LCHd.copy_(v_LCHd)


class KVPool:
    """The slots of one device, at most `limit` of them. A closed session's slot waits for the next of its shape; one of another shape
    evicts it when the limit or the memory is short. Raises Unavailable when that does not help; then nothing is held for the session.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str, limit: int):
        self.dtype, self.device, self.limit = dtype, torch.device(device), limit
        self._taken: dict[int, Slot] = {}
        self._waiting: list[Slot] = []  # the one given back last comes last

    def __len__(self) -> int:
        """Sessions that hold a slot."""
        return len(self._taken)

    def open(self, session: int, step: int, shape: KVShape) -> Slot:
        """The session's slot, with an empty ring for `step` in it, behind the sink that its other steps have."""
        try:
            slot = self._taken.get(session) or self._take(session, shape)
            if step not in slot.rings:
                others = [slot.cache(other) for other in slot.rings]
                slot.rings[step] = self._pair(shape, shape.sink + shape.ring, shape.codes)
                if others:
                    slot.cache(step).sink_v_LCHd.copy_(others[0].sink_v_LCHd)
            else:  # a kernel's tile may reach beyond what is written, where its weight is 0: which NaN of a failed session would survive
                slot.cache(step).k_LSHd.zero_()
                slot.cache(step).v_LSHd.zero_()
        except BaseException:
            self._taken.pop(session, None)
            raise
        return slot

    def close(self, session: int) -> None:
        """Give back the session's slot, if it has one."""
        slot = self._taken.pop(session, None)
        if slot is not None:
            self._waiting.append(slot)

    def _take(self, session: int, shape: KVShape) -> Slot:
        fit = next((slot for slot in reversed(self._waiting) if slot.shape == shape), None)
        if fit is not None:
            self._waiting.remove(fit)
        else:
            if len(self._taken) >= self.limit:
                raise Unavailable(f"all {self.limit} sessions of {self.device} are taken: close one first, or allow more")
            if len(self._taken) + len(self._waiting) >= self.limit:
                del self._waiting[0]
            text = self._pair(shape, shape.text)
            size = (shape.layers, shape.sink, shape.heads, shape.width)
            (sink_k_LCHd,) = self._made(lambda device: (torch.zeros(size, dtype=self.dtype, device=device),))
            fit = Slot(shape, sink_k_LCHd, text)
        self._taken[session] = fit
        return fit

    def _pair(self, shape: KVShape, slots: int, codes: torch.dtype | None = None) -> Pair:
        size = (shape.layers, slots, shape.heads, shape.width)
        return self._made(lambda device: kv_pair(size, self.dtype, device, codes))

    def _made(self, make: Callable[[torch.device | str], Made]) -> Made:
        """What `make` makes on a device, after evicting as many waiting slots as that takes."""
        need = sum(t.untyped_storage().nbytes() for t in make("meta"))
        while True:
            free = self._free_bytes()
            try:
                if need <= free:
                    return make(self.device)
            except torch.OutOfMemoryError:
                pass
            if not self._waiting:
                raise Unavailable(
                    f"KV caches of {need / 2**20:.0f} MiB do not fit into the {free / 2**20:.0f} MiB free on {self.device}: "
                    "close a session or take a smaller picture"
                )
            del self._waiting[0]

    def _free_bytes(self) -> int:
        """Memory a new cache may use: what the system has, and what torch holds of it unused."""
        if self.device.type == "cuda":
            idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + idle
        try:
            import psutil
        except ImportError:  # then what the system could free is not counted
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return psutil.virtual_memory().available
