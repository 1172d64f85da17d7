"""Tensors of a block that travel apart from its message: one after another in one piece of memory, each at a multiple of 16 bytes.

The message that announces such a block has a description in the place of each tensor: int64 [index of its dtype, *shape].
"""

from __future__ import annotations

from dataclasses import replace

import torch

from everface.runtime.messages import Block, Tensors
from everface.runtime.transport.serialization import DTYPES, aligned, dtype_name

X_KEY = ""  # key of a block's x beside its conditions, which may have an "x" too
DTYPE_ORDER = list(DTYPES)


def collect_tensors(block: Block, device: torch.device) -> Tensors:
    """The tensors of a block, contiguous on `device`, x first under X_KEY."""
    return {key: tensor.to(device).contiguous() for key, tensor in {X_KEY: block.x, **block.condition}.items()}


def offsets_of(tensors: Tensors) -> tuple[dict[str, int], int]:
    """Where each tensor starts, and the bytes of all of them."""
    offsets: dict[str, int] = {}
    size = 0
    for key, tensor in tensors.items():
        offsets[key] = size
        size += aligned(tensor.nbytes)
    return offsets, size


def describe_tensor(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """The description of a tensor. Raises BadInput for a dtype that cannot be sent; `key` is for its text."""
    return torch.tensor([DTYPE_ORDER.index(dtype_name(key, tensor.dtype)), *tensor.shape])


def empty_like_description(description: torch.Tensor) -> torch.Tensor:
    """A tensor without memory, on the meta device, of the described dtype and shape."""
    dtype, *shape = (int(number) for number in description)
    return torch.empty(shape, dtype=DTYPES[DTYPE_ORDER[dtype]], device="meta")


def describe_block(block: Block, tensors: Tensors) -> Block:
    """`block` with the descriptions of its tensors in their place. Raises BadInput for a dtype that cannot be sent."""
    return with_tensors(block, {key: describe_tensor(key, tensor) for key, tensor in tensors.items()})


def described_tensors(block: Block) -> Tensors:
    """A tensor without memory for each description in `block`."""
    return {key: empty_like_description(description) for key, description in {X_KEY: block.x, **block.condition}.items()}


def copy_out(memory: torch.Tensor, like: Tensors) -> Tensors:
    """Copies of the tensors in `memory`, uint8, with the dtypes and shapes of `like`; queued on the current stream."""
    offsets, _ = offsets_of(like)
    return {
        key: memory[offsets[key] : offsets[key] + tensor.nbytes].clone().view(tensor.dtype).reshape(tensor.shape)
        for key, tensor in like.items()
    }


def with_tensors(block: Block, tensors: Tensors) -> Block:
    """`block` with other tensors, x under X_KEY."""
    return replace(block, x=tensors[X_KEY], condition={key: tensor for key, tensor in tensors.items() if key != X_KEY})
