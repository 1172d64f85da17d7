"""Frames in memory that an engine and one client share. It has no name, cannot be resized, and the client cannot write to it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading

import numpy as np

from everface.core.errors import BadInput

# Python 3.11 lacks names of some of them.
F_ADD_SEALS = 1033
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10
PAGE = mmap.PAGESIZE


class FrameRing:
    """`slots` frames of [height, width, 3] uint8. The engine fills a free slot, the client releases it. Thread-safe."""

    def __init__(self, slots: int, height: int, width: int) -> None:
        self.shape = (height, width, 3)
        self.slot_bytes = -(-height * width * 3 // PAGE) * PAGE
        self.descriptor = os.memfd_create("everface frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, slots * self.slot_bytes)
            self._map = mmap.mmap(self.descriptor, slots * self.slot_bytes)
            fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
            with contextlib.suppress(OSError):  # before Linux 5.1: the client's own memory is then all that its writes change
                fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_FUTURE_WRITE)
            fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_SEAL)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.slots = slots
        self._free = set(range(slots))
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
        view = np.frombuffer(self._map, np.uint8, image_HW3.size, slot * self.slot_bytes)
        view.reshape(self.shape)[:] = image_HW3
        return slot

    def release(self, slot: int) -> None:
        """Raises BadInput for a slot that is not lent out."""
        with self._changed:
            if not 0 <= slot < self.slots or slot in self._free:
                raise BadInput(f"slot {slot} was released, but it is not borrowed: release each frame once")
            self._free.add(slot)
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
        os.close(self.descriptor)
        with contextlib.suppress(BufferError):  # a frame is being copied into it: the memory goes with that view
            self._map.close()
