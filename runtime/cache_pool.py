"""Caches of the sessions on one device, pooled: taken when a session opens, returned when it closes.

A pool knows no layout. A `CacheLayout` of the model makes the tensors: some shared by the roles of a device, some for each role.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from everface.core.errors import Unavailable

Made = dict[str, torch.Tensor]


class CacheLayout(Protocol):
    """The tensors of one session. Layouts compare equal when one session's tensors can serve another's."""

    def shared(self, device: torch.device | str) -> Made:
        """Tensors that all roles of a device use. Called with device "meta" to learn their size."""
        ...

    def per_role(self, device: torch.device | str) -> Made:
        """Tensors of one role."""
        ...


@dataclass(eq=False)
class CacheSlot:
    """One session's tensors. They outlive the session, so what was captured over them serves the next one of the same layout."""

    layout: CacheLayout
    shared: Made
    roles: dict[Hashable, Made] = field(default_factory=dict[Hashable, Made])
    attached: dict[Hashable, object] = field(default_factory=dict[Hashable, object])  # whatever lives as long as they do: captured graphs, their inputs


class CachePool:
    """The slots of one device, at most `limit` of them. For one thread.

    A closed session's slot waits for the next of its layout; one of another layout evicts it when the limit or the memory is short.
    Raises Unavailable when that does not help; then nothing is held for the session.
    """

    def __init__(self, device: torch.device | str, limit: int):
        self.device, self.limit = torch.device(device), limit
        self._taken: dict[int, CacheSlot] = {}
        self._waiting: list[CacheSlot] = []  # the one returned last comes last

    def __len__(self) -> int:
        """Sessions that hold a slot."""
        return len(self._taken)

    def open(self, session: int, role: Hashable, layout: CacheLayout) -> tuple[CacheSlot, bool]:
        """The session's slot with tensors for `role` in it, and whether those were used by an earlier session."""
        try:
            slot = self._taken.get(session) or self._take(session, layout)
            used = role in slot.roles
            if not used:
                slot.roles[role] = self._make(layout.per_role)
        except BaseException:
            self._taken.pop(session, None)
            raise
        return slot, used

    def close(self, session: int) -> None:
        """Return the session's slot, if it has one."""
        slot = self._taken.pop(session, None)
        if slot is not None:
            self._waiting.append(slot)

    def _take(self, session: int, layout: CacheLayout) -> CacheSlot:
        fit = next((slot for slot in reversed(self._waiting) if slot.layout == layout), None)
        if fit is not None:
            self._waiting.remove(fit)
        else:
            if len(self._taken) >= self.limit:
                raise Unavailable(f"all {self.limit} sessions of {self.device} are taken: close one first, or allow more")
            if len(self._taken) + len(self._waiting) >= self.limit:
                del self._waiting[0]
            fit = CacheSlot(layout, self._make(layout.shared))
        self._taken[session] = fit
        return fit

    def _make(self, make: Callable[[torch.device | str], Made]) -> Made:
        """What `make` makes on the device, after evicting as many waiting slots as that takes."""
        need = sum({id(t.untyped_storage()): t.untyped_storage().nbytes() for t in make("meta").values()}.values())
        while True:
            free = self._free_bytes()
            try:
                if need <= free:
                    return make(self.device)
            except torch.OutOfMemoryError:
                pass
            if not self._waiting:
                raise Unavailable(
                    f"caches of {need / 2**20:.0f} MiB do not fit into the {free / 2**20:.0f} MiB free on {self.device}: "
                    "close a session or take a smaller image"
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
