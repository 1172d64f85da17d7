"""Memory of a GPU for frames, which the client opens by a CUDA IPC handle.

It is allocated by itself, since such a handle opens a whole allocation, and torch's allocator hands out parts of larger ones.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from everface.core.errors import Unavailable
from everface.core.log import log
from everface.core.native import find_cudart

HANDLE_BYTES = 64
WHOLE = 2 << 20  # bytes that CUDA allocates at a time: in less, the client would open what is not a frame too
HOST_TO_DEVICE, NON_BLOCKING = 1, 1


class CudaMemory:
    """`size` bytes on the GPU with PCI bus id `gpu`. Thread-safe. Raises Unavailable.

    `descriptor` goes to the client, which closes it once it has closed the memory: only then may the memory be freed.
    """

    def __init__(self, size: int, gpu: str) -> None:
        self._cuda = _load()
        self._device = ctypes.c_int()
        self._base, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._lock = threading.Lock()
        self._closed = False
        self._check(self._cuda.cudaDeviceGetByPCIBusId(ctypes.byref(self._device), gpu.encode()), f"the engine does not see the GPU {gpu}")
        handle = ctypes.create_string_buffer(HANDLE_BYTES)
        try:
            with self._on_device():
                self._check(self._cuda.cudaMalloc(ctypes.byref(self._base), ctypes.c_size_t(-(-size // WHOLE) * WHOLE)), "the GPU has no room for frames")
                self._check(self._cuda.cudaIpcGetMemHandle(handle, self._base), "the GPU's memory cannot be shared")
                self._check(self._cuda.cudaStreamCreateWithPriority(ctypes.byref(self._stream), NON_BLOCKING, 0), "the GPU gives no stream")
            self._watched, self.descriptor = os.pipe()
        except BaseException:
            self._free()
            raise
        self.handle = handle.raw

    def write(self, offset: int, image_HW3: np.ndarray) -> None:
        """Returns when the frame is there. Raises Unavailable."""
        image_HW3 = np.ascontiguousarray(image_HW3)
        to, source = ctypes.c_void_p((self._base.value or 0) + offset), ctypes.c_void_p(image_HW3.ctypes.data)
        with self._lock:
            if self._closed:
                return
            with self._on_device():
                copied = self._cuda.cudaMemcpyAsync(to, source, ctypes.c_size_t(image_HW3.nbytes), HOST_TO_DEVICE, self._stream)
                self._check(copied or self._cuda.cudaStreamSynchronize(self._stream), "a frame cannot be copied to the GPU")

    def close(self) -> None:
        """Frees it when the client has closed it, which a thread waits for; the client's end closes that."""
        with self._lock:
            self._closed = True
        os.close(self.descriptor)
        threading.Thread(target=self._free_later, name="everface engine gpu memory", daemon=True).start()

    def _free_later(self) -> None:
        ended = select.poll()
        ended.register(self._watched, 0)
        ended.poll()
        os.close(self._watched)
        self._free()

    def _free(self) -> None:
        with self._on_device():
            if self._stream:
                self._cuda.cudaStreamDestroy(self._stream)
            if self._base and (failed := self._cuda.cudaFree(self._base)):
                log.warning("memory for frames on a GPU cannot be freed (%s)", self._reason(failed))

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """It is current in this thread for a while."""
        before = ctypes.c_int()
        self._cuda.cudaGetDevice(ctypes.byref(before))
        self._check(self._cuda.cudaSetDevice(self._device), "the GPU cannot be used")
        try:
            yield
        finally:
            self._cuda.cudaSetDevice(before)

    def _check(self, result: int, what: str) -> None:
        if result:
            raise Unavailable(f"{what} ({self._reason(result)}): choose another GPU, or frames in host memory")

    def _reason(self, result: int) -> str:
        return self._cuda.cudaGetErrorString(result).decode("utf-8", "replace")


@cache
def _load() -> Any:
    """Raises Unavailable."""
    try:
        cuda = ctypes.CDLL(find_cudart("an engine with frames on a GPU"))
        for name in ("cudaDeviceGetByPCIBusId", "cudaIpcGetMemHandle", "cudaStreamCreateWithPriority"):
            getattr(cuda, name)
        cuda.cudaGetErrorString.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the CUDA runtime cannot be loaded ({error}): install a CUDA build of torch, which brings it") from None
    return cuda
