"""Frames in memory that an engine and one client share: the slots, and who has which."""

from __future__ import annotations

import threading

import numpy as np

from everface.core.errors import BadInput
from everface.engine.cuda_memory import CudaMemory
from everface.engine.host_memory import PAGE, HostMemory


class FrameRing:
    """`slots` frames of [height, width, 3] uint8. The engine fills a free slot, the client releases it. Thread-safe.

    gpu: PCI bus id of the GPU that holds them; empty: host memory. Raises Unavailable where the GPU cannot.
    """

    def __init__(self, slots: int, height: int, width: int, gpu: str = "") -> None:
        self.shape = (height, width, 3)
        self.slot_bytes = -(-height * width * 3 // PAGE) * PAGE
        size = slots * self.slot_bytes
        self._memory: HostMemory | CudaMemory = CudaMemory(size, gpu) if gpu else HostMemory(size)
        self.descriptor, self.handle = self._memory.descriptor, self._memory.handle
        self.slots = slots
        self._free = list(range(slots))  # the last released is used first: it is the likeliest to be in a cache
        self._changed = threading.Condition()
        self._closed = False

    def wait_free(self, timeout_s: float) -> bool:
        """Whether a slot is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed, timeout_s)
            return bool(self._free)

    def put(self, image_HW3: np.ndarray) -> int:
        """Copy a frame into a free slot and lend it out. Only one thread may put, after wait_free."""
        if image_HW3.shape != self.shape or image_HW3.dtype != np.uint8:
            raise BadInput(f"a frame of {list(image_HW3.shape)} does not fit the session's {list(self.shape)}: open another session")
        with self._changed:
            slot = self._free.pop()
        self._memory.write(slot * self.slot_bytes, image_HW3)
        return slot

    def release(self, slot: int) -> None:
        """Raises BadInput for a slot that is not lent out."""
        with self._changed:
            if not 0 <= slot < self.slots or slot in self._free:
                raise BadInput(f"slot {slot} was released, but it is not borrowed: release each frame once")
            self._free.append(slot)
            self._changed.notify_all()

    @property
    def borrowed(self) -> int:
        with self._changed:
            return self.slots - len(self._free)

    def close(self) -> None:
        """Wakes whoever waits, and frees the memory. May be called twice. Nothing may be put after it."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._memory.close()
