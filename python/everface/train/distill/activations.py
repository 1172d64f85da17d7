"""Activation checkpointing of the streaming blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.checkpoint import checkpoint

from everface.networks.transformer.dit import DiT


@contextmanager
def checkpointed(dit: DiT) -> Iterator[None]:
    """The blocks' `stream` recomputes its activations in the backward pass, inside a `with`. A block's write into its copied ring is
    repeated too, with the same values."""
    blocks = dit.transformer_blocks()
    held = [vars(block).get("stream") for block in blocks]  # set by FSDP2
    for block in blocks:
        object.__setattr__(block, "stream", lambda *given, stream=block.stream: checkpoint(stream, *given, use_reentrant=False))
    try:
        yield
    finally:
        for block, stream in zip(blocks, held, strict=True):
            if stream is None:
                object.__delattr__(block, "stream")
            else:
                object.__setattr__(block, "stream", stream)
