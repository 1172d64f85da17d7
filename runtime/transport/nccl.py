"""A channel between two GPUs: blocks by NCCL from device to device, all else, and the credits, by another channel.

The message of a block, with descriptions in the place of its tensors, goes ahead through `control`. So the receiver waits on a
socket and posts a receive only for a block that is under way: no GPU spins for a block that is not there. Cancels overtake blocks
there too. The tensors are one after another in one of the channel's slots; a block that is larger than a slot, as one with another conditioning can be, goes
whole through `control`. A block arrives on the receiver's device, whichever device its tensors were on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from everface.core import native
from everface.runtime.messages import Block, Message
from everface.runtime.transport.base import SLOTS, ChannelError, Control, Receiver, Sender, SideChannelEnd
from everface.runtime.transport.block_layout import (
    collect_tensors,
    copy_out,
    describe_block,
    described_tensors,
    offsets_of,
    with_tensors,
)
from everface.runtime.transport.serialization import aligned

JOIN_MS = 60_000  # for both ends to join their NCCL communicator
WHOLE_KEY = "nccl whole"  # condition that marks a block whose tensors are in the message itself


@dataclass(frozen=True)
class Libraries:
    """The native module and the two libraries that its rings call. `open_libraries` finds them; tests pass fakes."""

    ring: ModuleType
    nccl: Any
    cuda: Any


def open_libraries() -> Libraries:
    """Raises Unavailable if the module is not built, or if NCCL or the CUDA runtime is missing."""
    ring = native.need("the nccl transport").ring
    return Libraries(ring, ring.Nccl(native.find_nccl()), ring.Cuda(native.find_cudart()))


class NcclEnd(SideChannelEnd[Control]):
    """One end of a channel: a ring and the memory of its slots. `capacity`: bytes of a slot, which holds all tensors of a block.

    `id`: 128 bytes that both ends share. `side`: "sender" or "receiver", as the native module spells them.
    """

    def __init__(
        self, control: Control, libraries: Libraries, side: str, id: bytes, device: torch.device, capacity: int, timeout_s: float
    ):
        super().__init__(control)
        self.device, self.capacity = device, aligned(capacity)
        self._ring_error: type[Exception] = libraries.ring.ChannelError
        slots = [torch.empty(self.capacity, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        addresses = [slot.data_ptr() for slot in slots]
        timeout_ms = int(timeout_s * 1000)
        self.ring: Any = libraries.ring.Ring(
            libraries.nccl, libraries.cuda, id, getattr(libraries.ring.Side, side), device.index or 0, addresses, self.capacity,
            JOIN_MS, timeout_ms,
        )  # fmt: skip
        self.slots = slots  # set after the ring, so that it is freed after the ring: NCCL may write to it until then

    def abort(self, reason: str = "the channel was aborted") -> None:
        super().abort(reason)
        self.ring.abort(reason)

    def join(self) -> None:
        super().join()
        self.ring.close()

    def close(self) -> bool:
        """Complete what is under way and leave the communicator. False: NCCL still holds the slots, end the process."""
        return self.ring.close()

    def _stream(self) -> int:
        """The handle of the current CUDA stream, 0 without a GPU."""
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0


class NcclSender(NcclEnd[Sender]):
    """Upstream end. `control` must have SLOTS credits."""

    def __init__(
        self, control: Sender, libraries: Libraries, id: bytes, device: torch.device, capacity: int, timeout_s: float = 120.0
    ):
        super().__init__(control, libraries, "sender", id, device, capacity, timeout_s)
        self._sending = threading.Lock()  # descriptions and blocks go in one order

    def send(self, message: Message) -> None:
        if not isinstance(message, Block):
            self._control.send(message)
            return
        tensors = collect_tensors(message, self.device)
        offsets, size = offsets_of(tensors)
        if size > self.capacity:
            with self._sending:
                self._control.send(replace(message, condition={**message.condition, WHOLE_KEY: torch.empty(0)}))
            return
        parts = [(tensor.data_ptr(), offsets[key], tensor.nbytes) for key, tensor in tensors.items()]
        described = describe_block(message, tensors)
        with self._sending:
            self._control.send(described)  # waits for a credit
            try:
                self.ring.send(parts, size, self._stream())
            except self._ring_error as error:
                self._control.abort(str(error))
                raise ChannelError(f"the next stage cannot be reached: {error}") from None


class NcclReceiver(NcclEnd[Receiver]):
    """Downstream end. The tensors of a received block are copies, queued on the device's current stream."""

    def __init__(
        self, control: Receiver, libraries: Libraries, id: bytes, device: torch.device, capacity: int, timeout_s: float = 120.0
    ):
        super().__init__(control, libraries, "receiver", id, device, capacity, timeout_s)

    def receive(self, timeout_s: float) -> Message | None:
        message = self._control.receive(timeout_s)
        if not isinstance(message, Block):
            return message
        if message.condition.pop(WHOLE_KEY, None) is not None:
            return with_tensors(message, collect_tensors(message, self.device))
        described = described_tensors(message)
        try:
            ticket: int = self.ring.recv(offsets_of(described)[1])
            self.ring.wait(ticket)
            tensors = copy_out(self.slots[ticket % SLOTS], described)
            self.ring.release(ticket, self._stream())
        except self._ring_error as error:
            self._control.abort(str(error))
            raise ChannelError(f"the previous stage went away: {error}") from None
        return with_tensors(message, tensors)
