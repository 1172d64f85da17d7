"""Messages to bytes and back: [int64 header length][msgpack header][tensor bytes, each at a multiple of 16]. No pickle."""

from __future__ import annotations

import math

import msgspec
import torch

from everface.core.block import Block, Closing, Opening, Tensors
from everface.core.errors import BadInput
from everface.runtime.stage import Closed, Epoch, Failure, Message, Opened, Stop, Tombstone

MOST_BYTES = 1 << 30  # of one message; a 704x384 block of frames takes 9.7 MB
ALIGN = 16
DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "u8": torch.uint8,
    "i64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAIN: dict[str, type] = {
    "closing": Closing, "epoch": Epoch, "tombstone": Tombstone, "failure": Failure, "opened": Opened, "closed": Closed, "stop": Stop,
}  # fmt: skip
KINDS = {Opening: "opening", Block: "block", **{cls: kind for kind, cls in PLAIN.items()}}

Fields = dict[str, int | float | str | bool]


class Slice(msgspec.Struct, array_like=True):
    """One tensor: its key, dtype and shape; its bytes follow those of the slice before it, at the next multiple of 16."""

    key: str
    dtype: str
    shape: list[int]


class Header(msgspec.Struct, array_like=True):
    """All of a message but its tensor bytes."""

    kind: str
    fields: Fields = {}
    params: Fields = {}
    slices: list[Slice] = []


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Header).decode


def encode(message: Message) -> torch.Tensor:
    """The message as a uint8 tensor on the CPU. Raises BadInput for a dtype the wire does not know, or beyond MOST_BYTES."""
    header, tensors = Header(KINDS[type(message)]), {}
    if isinstance(message, Opening):
        header.fields["session"] = message.session
        header.params, tensors = message.params, message.tensors
    elif isinstance(message, Block):
        header.fields.update((k, getattr(message, k)) for k in ("session", "epoch", "index", "pts", "frames", "last"))
        tensors = {"x": message.x, **{f"condition.{k}": t for k, t in message.condition.items()}}
    else:
        header.fields = dict(vars(message))
    size = 0
    for key, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise BadInput(f"tensor {key!r} of {tensor.dtype} cannot travel: convert it to one of {', '.join(map(str, NAMES))}")
        header.slices.append(Slice(key, NAMES[tensor.dtype], list(tensor.shape)))
        size += _aligned(tensor.numel() * tensor.element_size())
    head = _pack(header)
    start = _aligned(8 + len(head))
    if start + size > MOST_BYTES:
        raise BadInput(f"a message of {start + size} bytes is beyond the limit of {MOST_BYTES}: send a smaller picture")
    data = torch.zeros(start + size, dtype=torch.uint8)
    data[:8].view(torch.int64)[0] = len(head)
    data[8 : 8 + len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data[start : start + flat.numel()] = flat
        start += _aligned(flat.numel())
    return data


def decode(data: torch.Tensor) -> Message:
    """The message in `data`; its tensors are views of `data`. Raises BadInput if the bytes are not one whole message."""
    try:
        length = int(data[:8].view(torch.int64)[0])
        if not 0 < length <= data.numel() - 8:
            raise ValueError(f"a header of {length} bytes in {data.numel()}")
        header = _unpack(data[8 : 8 + length].numpy().tobytes())
        tensors, start = {}, _aligned(8 + length)
        for s in header.slices:
            dtype = DTYPES[s.dtype]
            size = math.prod(s.shape) * dtype.itemsize
            if min(s.shape, default=0) < 0 or start + size > data.numel():
                raise ValueError(f"tensor {s.key!r} goes beyond the end")
            tensors[s.key] = data[start : start + size].view(dtype).reshape(s.shape)
            start += _aligned(size)
        if start != data.numel():
            raise ValueError(f"{data.numel()} bytes where the header says {start}")
        return _build(header, tensors)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise BadInput(f"these bytes are not a message of the pipeline: {error}") from None


def _build(header: Header, tensors: Tensors) -> Message:
    fields: dict = header.fields
    if header.kind == "opening":
        return Opening(**fields, tensors=tensors, params=header.params)
    if header.kind == "block":
        condition = {k.removeprefix("condition."): t for k, t in tensors.items() if k != "x"}
        return Block(**fields, x=tensors["x"], condition=condition)
    return PLAIN[header.kind](**fields)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
