"""A channel between two processes that share one GPU: blocks stay in its memory, all else, and the credits, by another channel.

The sender copies the tensors of a block into a slot of device memory and records an event on its stream. The message that it
sends through `control` names the slot, and the first time also carries the handles by which the receiver maps the slot and its
two events. The receiver's stream waits for that event, copies the tensors out, and records the other event, which the sender's
stream waits for before it writes to the slot again. Neither process waits for the GPU, and nothing passes through host memory.

There are two slots more than credits. A block is written before the sender has a credit for it, because its event must be
recorded before the receiver gets the message. By then all but the last `slots` messages were received from the control, so the
receive before the newest of those has ended and recorded its event. That holds while one thread at a time receives.

Memory of a channel that ended is kept for the next one: CUDA forbids freeing what another process may still have mapped.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from everface.runtime.messages import Block, Message
from everface.runtime.transport.base import SLOTS, Receiver, Sender, SideChannelEnd
from everface.runtime.transport.block_layout import (
    collect_tensors,
    copy_out,
    describe_block,
    described_tensors,
    offsets_of,
    with_tensors,
)
from everface.runtime.transport.cuda_runtime import HANDLE_BYTES, CudaRuntime, memory_tensor

Event: Any = torch.cuda.Event  # torch leaves parts of it without types
LEAST_BYTES = 1 << 20  # of a slot
SLOT_KEY, HANDLES_KEY = "ipc slot", "ipc handles"  # conditions that the control message has besides the descriptions


@dataclass
class Slot:
    """A piece of device memory and the events that mark it written (`full`) and read (`free`)."""

    address: int
    data: torch.Tensor  # uint8
    full: torch.cuda.Event
    free: torch.cuda.Event


_spare: dict[torch.device, list[tuple[int, int]]] = {}  # (bytes, address) of exported memory that no channel uses now
_spare_lock = threading.Lock()


class IpcSender(SideChannelEnd[Sender]):
    """Upstream end, on `device`. `slots`: those of the control."""

    def __init__(self, control: Sender, device: torch.device, slots: int = SLOTS):
        super().__init__(control)
        self._runtime, self._device = CudaRuntime(), device
        self._slots: list[Slot | None] = [None] * (slots + 2)
        self._outgrown: list[Slot] = []
        self._count = 0
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        if not isinstance(message, Block):
            self._control.send(message)
            return
        with self._sending, torch.cuda.device(self._device):
            tensors = collect_tensors(message, self._device)
            described = describe_block(message, tensors)
            offsets, size = offsets_of(tensors)
            number, self._count = self._count % len(self._slots), self._count + 1
            slot, handles = self._find_slot(number, size)
            stream = torch.cuda.current_stream()
            stream.wait_event(slot.free)
            for key, tensor in tensors.items():
                start = offsets[key]
                slot.data[start : start + tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
            slot.full.record(stream)
            described.condition[SLOT_KEY] = torch.tensor([number, slot.data.numel()])
            if handles:
                described.condition[HANDLES_KEY] = torch.frombuffer(bytearray(handles), dtype=torch.uint8)
            self._control.send(described)

    def join(self) -> None:
        super().join()
        with self._sending, _spare_lock:
            for slot in (*self._slots, *self._outgrown):
                if slot:
                    _spare.setdefault(self._device, []).append((slot.data.numel(), slot.address))
            self._slots, self._outgrown = [None] * len(self._slots), []

    def _find_slot(self, number: int, size: int) -> tuple[Slot, bytes]:
        """The slot, of at least `size` bytes, and its handles if the receiver has not mapped it yet."""
        slot = self._slots[number]
        if slot and size <= slot.data.numel():
            return slot, b""
        if slot:
            self._outgrown.append(slot)
        capacity = max(LEAST_BYTES, 1 << (size - 1).bit_length())
        with _spare_lock:
            spare = _spare.get(self._device, [])
            found = next((s for s in spare if s[0] == capacity), None)
            if found:
                spare.remove(found)
        address = found[1] if found else self._runtime.allocate(capacity)
        events = [Event(interprocess=True) for _ in range(2)]
        slot = self._slots[number] = Slot(address, memory_tensor(address, capacity, self._device), *events)
        return slot, b"".join((self._runtime.export(address), *(event.ipc_handle() for event in events)))


class IpcReceiver(SideChannelEnd[Receiver]):
    """Downstream end, on `device`. The tensors of a received block are copies, queued on the device's current stream."""

    def __init__(self, control: Receiver, device: torch.device):
        super().__init__(control)
        self._runtime, self._device = CudaRuntime(), device
        self._slots: dict[int, Slot] = {}

    def receive(self, timeout_s: float) -> Message | None:
        message = self._control.receive(timeout_s)
        if not isinstance(message, Block):
            return message
        number, capacity = (int(n) for n in message.condition.pop(SLOT_KEY))
        handles = message.condition.pop(HANDLES_KEY, None)
        with torch.cuda.device(self._device):
            if handles is not None:
                self._map(number, capacity, handles.numpy().tobytes())
            slot, stream = self._slots[number], torch.cuda.current_stream()
            stream.wait_event(slot.full)
            tensors = copy_out(slot.data, described_tensors(message))
            slot.free.record(stream)
        return with_tensors(message, tensors)

    def join(self) -> None:
        super().join()
        with torch.cuda.device(self._device):
            for number in list(self._slots):
                self._unmap(number)

    def _map(self, number: int, capacity: int, handles: bytes) -> None:
        if number in self._slots:
            self._unmap(number)
        memory, full, free = (handles[i : i + HANDLE_BYTES] for i in range(0, 3 * HANDLE_BYTES, HANDLE_BYTES))
        address = self._runtime.open(memory)
        events: list[Any] = [Event.from_ipc_handle(self._device, handle) for handle in (full, free)]
        self._slots[number] = Slot(address, memory_tensor(address, capacity, self._device), *events)

    def _unmap(self, number: int) -> None:
        slot = self._slots.pop(number)
        slot.free.synchronize()  # the copies out of it are complete
        self._runtime.close(slot.address)
