"""The calls of the CUDA runtime that torch does not offer: device memory that another process can map."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from everface.core import native
from everface.core.errors import Unavailable

HANDLE_BYTES = 64  # of CUDA's handles, both of memory and of events
LAZY_PEER_ACCESS = 1  # cudaIpcMemLazyEnablePeerAccess, the only flag that cudaIpcOpenMemHandle has


class MemoryHandle(ctypes.Structure):
    """cudaIpcMemHandle_t, passed by value."""

    _fields_ = [("bytes", ctypes.c_ubyte * HANDLE_BYTES)]


class CudaRuntime:
    """Acts on the current device. The constructor and every method but `close` raise Unavailable."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(native.find_cudart())
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def allocate(self, size: int) -> int:
        """The address of `size` bytes. They are never freed: CUDA forbids that while another process may have them mapped."""
        address = ctypes.c_void_p()
        self._check(
            self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)), f"allocate {size} bytes for a channel"
        )
        return address.value or 0

    def export(self, address: int) -> bytes:
        """A handle by which another process can `open` allocated memory."""
        handle = MemoryHandle()
        self._check(
            self._library.cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(address)), "export a channel's memory"
        )
        return bytes(handle.bytes)

    def open(self, data: bytes) -> int:
        """The address at which another process's memory is mapped."""
        address, handle = ctypes.c_void_p(), MemoryHandle((ctypes.c_ubyte * HANDLE_BYTES)(*data))
        code = self._library.cudaIpcOpenMemHandle(ctypes.byref(address), handle, ctypes.c_uint(LAZY_PEER_ACCESS))
        self._check(code, "map the other process's memory")
        return address.value or 0

    def close(self, address: int) -> None:
        """Unmap opened memory."""
        self._library.cudaIpcCloseMemHandle(ctypes.c_void_p(address))

    def _check(self, code: int, action: str) -> None:
        if code:
            reason = self._library.cudaGetErrorString(code).decode()
            raise Unavailable(f"CUDA cannot {action}: {reason}; free GPU memory, or choose the placement 'inline'")


class DeviceBuffer:
    """Device memory that torch did not allocate, in the form that torch.as_tensor accepts."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }


def memory_tensor(address: int, size: int, device: torch.device) -> torch.Tensor:
    """`size` bytes of device memory as uint8. The tensor does not own them."""
    return torch.as_tensor(DeviceBuffer(address, size), device=device)
