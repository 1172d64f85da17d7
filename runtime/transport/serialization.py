"""Messages to bytes and back: [int64 header length][msgpack header][tensor bytes, each at a multiple of 16]. No pickle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from everface.core.errors import BadInput
from everface.runtime.messages import (
    Block,
    Cancel,
    Cancelled,
    Closed,
    CloseSession,
    Failure,
    Message,
    Opened,
    OpenSession,
    Stop,
    Tensors,
)

MOST_BYTES = 1 << 30  # of one message; a 704x384 block of frames takes 9.7 MB
ALIGN = 16
DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "u8": torch.uint8,
    "i64": torch.int64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAIN: dict[str, type] = {
    "close": CloseSession, "cancel": Cancel, "cancelled": Cancelled, "failure": Failure,
    "opened": Opened, "closed": Closed, "stop": Stop,
}  # fmt: skip
KINDS: dict[type, str] = {OpenSession: "open", Block: "block", **{cls: kind for kind, cls in PLAIN.items()}}

Fields = dict[str, int | float | str | bool]


class Slice(msgspec.Struct, array_like=True):
    """One tensor: its key, dtype and shape. Its bytes follow those of the slice before it, at the next multiple of 16."""

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


@dataclass(frozen=True)
class Packet:
    """A message ready to be written: its packed header, where each of its tensors starts, and the bytes of all."""

    head: bytes
    tensors: tuple[tuple[int, torch.Tensor], ...]
    size: int


def pack(message: Message) -> Packet:
    """Lay out a message; no tensor is copied. Raises BadInput for a dtype that cannot be sent, or beyond MOST_BYTES."""
    header = Header(KINDS[type(message)])
    tensors: Tensors = {}
    if isinstance(message, OpenSession):
        header.fields.update(session=message.session, parts=message.parts)
        header.params, tensors = message.params, message.tensors
    elif isinstance(message, Block):
        header.fields.update((k, getattr(message, k)) for k in ("session", "revision", "index", "pts", "frames", "last", "first", "more"))
        tensors = {"x": message.x, **{f"condition.{k}": t for k, t in message.condition.items()}}
    else:
        header.fields = dict(vars(message))
    header.slices = [Slice(key, dtype_name(key, tensor.dtype), list(tensor.shape)) for key, tensor in tensors.items()]
    head = _pack(header)
    size = aligned(8 + len(head))
    placed: list[tuple[int, torch.Tensor]] = []
    for tensor in tensors.values():
        placed.append((size, tensor))
        size += aligned(tensor.nbytes)
    if size > MOST_BYTES:
        raise BadInput(f"a message of {size} bytes is beyond the limit of {MOST_BYTES}: send a smaller image")
    return Packet(head, tuple(placed), size)


def write(packet: Packet, data: torch.Tensor) -> torch.Tensor:
    """Copy the message to `data`, uint8 [packet.size] on the CPU that starts at a multiple of 16. Returns `data`."""
    data[:8].view(torch.int64)[0] = len(packet.head)
    data[8 : 8 + len(packet.head)] = torch.frombuffer(bytearray(packet.head), dtype=torch.uint8)
    for start, tensor in packet.tensors:
        data[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return data


def encode(message: Message) -> torch.Tensor:
    """The message as a uint8 tensor on the CPU. Raises as `pack` does."""
    packet = pack(message)
    return write(packet, torch.empty(packet.size, dtype=torch.uint8))


def decode(data: torch.Tensor) -> Message:
    """The message in `data`; its tensors are views of `data`. Raises BadInput if the bytes are not one whole message."""
    try:
        length = int(data[:8].view(torch.int64)[0])
        if not 0 < length <= data.numel() - 8:
            raise ValueError(f"a header of {length} bytes in {data.numel()}")
        header = _unpack(data[8 : 8 + length].numpy().tobytes())
        tensors: Tensors = {}
        start = aligned(8 + length)
        for s in header.slices:
            dtype = DTYPES[s.dtype]
            size = math.prod(s.shape) * dtype.itemsize
            if min(s.shape, default=0) < 0 or start + size > data.numel():
                raise ValueError(f"tensor {s.key!r} goes beyond the end")
            tensors[s.key] = data[start : start + size].view(dtype).reshape(s.shape)
            start += aligned(size)
        if start != data.numel():
            raise ValueError(f"{data.numel()} bytes where the header says {start}")
        return _build(header, tensors)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise BadInput(f"these bytes are not a message of the pipeline: {error}") from None


def _build(header: Header, tensors: Tensors) -> Message:
    fields: dict[str, Any] = header.fields  # a name that the class does not have raises TypeError
    if header.kind == "open":
        return OpenSession(**fields, tensors=tensors, params=header.params)
    if header.kind == "block":
        condition = {k.removeprefix("condition."): t for k, t in tensors.items() if k != "x"}
        return Block(**fields, x=tensors["x"], condition=condition)
    return PLAIN[header.kind](**fields)


def dtype_name(key: str, dtype: torch.dtype) -> str:
    """The name of a dtype in a header. Raises BadInput, naming the tensor, for one that cannot be sent."""
    if dtype not in DTYPE_NAMES:
        raise BadInput(f"tensor {key!r} of {dtype} cannot travel: convert it to one of {', '.join(map(str, DTYPE_NAMES))}")
    return DTYPE_NAMES[dtype]


def aligned(size: int) -> int:
    """`size` rounded up to the next multiple of 16."""
    return -(-size // ALIGN) * ALIGN
