"""Memory that two processes can map and that has no name, so it cannot be left behind."""

from __future__ import annotations

import mmap
import os
import tempfile

import torch


def open_memory(folder: str, size: int) -> int:
    """A descriptor of `size` bytes of memory: a memory file, or on systems without them an unlinked file in `folder`."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("everface channel")
    else:
        descriptor, path = tempfile.mkstemp(dir=folder or None)
        os.unlink(path)
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int, size: int) -> torch.Tensor:
    """The first `size` bytes as uint8; mapped as long as a tensor uses them. Raises ValueError if there are fewer."""
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
