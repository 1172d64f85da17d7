"""Host memory for frames. It has no name, cannot be resized, and the client cannot write to it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

import numpy as np

# Python 3.11 lacks names of some of them.
F_ADD_SEALS = 1033
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10
PAGE = mmap.PAGESIZE


class HostMemory:
    """`size` bytes. The client maps `descriptor`."""

    handle = b""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("everface frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
            fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
            with contextlib.suppress(OSError):  # before Linux 5.1: the client's own memory is then all that its writes change
                fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_FUTURE_WRITE)
            fcntl.fcntl(self.descriptor, F_ADD_SEALS, SEAL_SEAL)
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, offset: int, image_HW3: np.ndarray) -> None:
        view = np.frombuffer(self._map, np.uint8, image_HW3.size, offset)
        view.reshape(image_HW3.shape)[:] = image_HW3

    def close(self) -> None:
        os.close(self.descriptor)
        with contextlib.suppress(BufferError):  # a frame is being copied into it: the memory goes with that view
            self._map.close()
