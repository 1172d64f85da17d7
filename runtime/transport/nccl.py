"""A channel between two GPUs: blocks by NCCL from device to device, all else, and the credits, by gloo.

What is said of a block before it comes, its header and the description of its tensors, goes by gloo, so the receiver waits on a
socket and posts a receive only for what is under way: no GPU ever spins for a block that is not there. Epochs overtake by
the same way. The tensors lie one after another in one of the channel's slots, each at a multiple of 16 bytes. A block arrives on
the receiver's device, whichever device its tensors were on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from everface.core import native
from everface.core.errors import BadInput
from everface.runtime.messages import Block, Message, Tensors
from everface.runtime.transport.base import SLOTS, ChannelError, Receiver, Sender, SideChannelEnd
from everface.runtime.transport.serialization import X, aligned, blank, describe

JOIN_MS = 60_000


@dataclass(frozen=True)
class Libraries:
    """The native module and the two libraries that its rings call. `open_libraries` finds them; tests pass fakes."""

    ring: ModuleType
    nccl: Any
    cuda: Any


def open_libraries() -> Libraries:
    """Raises Unavailable if the module is not built, or NCCL or the CUDA runtime is not there."""
    ring = native.need("the nccl transport").ring
    return Libraries(ring, ring.Nccl(native.find_nccl()), ring.Cuda(native.find_cudart()))


class NcclEnd(SideChannelEnd):
    """One end of a channel: a ring, and the memory of its slots. `capacity`: bytes of the largest block, all its tensors."""

    def __init__(
        self, control: Sender | Receiver, at: Libraries, side: str, id: bytes, device: torch.device, capacity: int, timeout_s: float
    ):
        super().__init__(control)
        self.device, self.capacity = device, aligned(capacity)
        self._broken = at.ring.ChannelError
        slots = [torch.empty(self.capacity, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        addresses = [slot.data_ptr() for slot in slots]
        late_ms = int(timeout_s * 1000)
        self.ring = at.ring.Ring(
            at.nccl, at.cuda, id, getattr(at.ring.Side, side), device.index or 0, addresses, self.capacity, JOIN_MS, late_ms
        )
        self.slots = slots  # after the ring, so that it goes after the ring too: NCCL may write to it until then

    def stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def abort(self, reason: str = "the channel was aborted") -> None:
        super().abort(reason)
        self.ring.abort(reason)

    def join(self) -> None:
        super().join()
        self.ring.close()

    def close(self) -> bool:
        """Complete what is under way and leave. False: NCCL still holds the slots, end the process."""
        return self.ring.close()


class NcclSender(NcclEnd):
    """Upstream end. `control` carries everything but the tensors of blocks and holds the credits: two slots a channel."""

    def __init__(self, control: Sender, at: Libraries, id: bytes, device: torch.device, capacity: int, timeout_s: float = 120.0):
        super().__init__(control, at, "sender", id, device, capacity, timeout_s)
        self._control = control
        self._order = threading.Lock()  # descriptions and blocks in one order

    def send(self, message: Message) -> None:
        if not isinstance(message, Block):
            self._control.send(message)
            return
        tensors = {k: t.to(self.device).contiguous() for k, t in {X: message.x, **message.condition}.items()}
        size = sum(aligned(t.nbytes) for t in tensors.values())
        if size > self.capacity:
            raise BadInput(f"a block of {size} bytes does not fit the channel's slots of {self.capacity}: open it with more")
        parts, start = [], 0
        for tensor in tensors.values():
            parts.append((tensor.data_ptr(), start, tensor.nbytes))
            start += aligned(tensor.nbytes)
        described = {k: describe(k, t) for k, t in tensors.items()}
        with self._order:
            self._control.send(replace(message, x=described.pop(X), condition=described))  # waits for a credit
            try:
                self.ring.send(parts, size, self.stream())
            except self._broken as error:
                self._control.abort(str(error))
                raise ChannelError(f"the next stage cannot be reached: {error}") from None


class NcclReceiver(NcclEnd):
    """Downstream end. The tensors of a block that it answers are copies, in order on the device's current stream."""

    def __init__(self, control: Receiver, at: Libraries, id: bytes, device: torch.device, capacity: int, timeout_s: float = 120.0):
        super().__init__(control, at, "receiver", id, device, capacity, timeout_s)
        self._control = control

    def receive(self, timeout_s: float) -> Message | None:
        message = self._control.receive(timeout_s)
        if not isinstance(message, Block):
            return message
        described = {X: message.x, **message.condition}
        blanks: Tensors = {k: blank(d) for k, d in described.items()}
        try:
            ticket = self.ring.recv(sum(aligned(t.nbytes) for t in blanks.values()))
            self.ring.wait(ticket)
            slot, start = self.slots[ticket % SLOTS], 0
            tensors: Tensors = {}
            for key, like in blanks.items():
                tensors[key] = slot[start : start + like.nbytes].clone().view(like.dtype).reshape(like.shape)
                start += aligned(like.nbytes)
            self.ring.release(ticket, self.stream())
        except self._broken as error:
            self._control.abort(str(error))
            raise ChannelError(f"the stage before went away: {error}") from None
        return replace(message, x=tensors.pop(X), condition=tensors)
