"""A channel between two processes that share one GPU: blocks stay in its memory, all else, and the credits, by another channel.

The sender copies the tensors of a block, one after another at multiples of 16 bytes, into a slot of device memory and marks on its
stream when that is done. What it says of the block through `control` names the slot, and the first time also the handles by which
the receiver maps the slot and its two events. The receiver's stream waits for the mark, copies out, and leaves a mark of its own, for which
the sender's stream waits before it writes there again. Neither process ever waits for the GPU, and nothing passes through the host.

There are two slots more than credits. A block is written before its credit is there, since its mark must stand before the receiver
hears of it; all but the last `slots` messages have been taken from the control by then, so the take before the newest of those has
ended and left its mark. That holds while one thread at a time takes.

Memory of a channel that ended is kept for the next: CUDA forbids freeing what another process may still have mapped.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch

from everface.core import native
from everface.core.errors import Unavailable
from everface.runtime.messages import Block, Message, Tensors
from everface.runtime.transport.base import SLOTS, Receiver, Sender, SideChannelEnd
from everface.runtime.transport.serialization import X, aligned, blank, describe

LEAST_BYTES = 1 << 20  # of a slot
PLACE, HANDLES = "ipc place", "ipc handles"  # what a block in description carries beside its own tensors
HANDLE_BYTES = 64  # of CUDA's handles, of memory and of events


class Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, passed by value."""

    _fields_ = [("bytes", ctypes.c_ubyte * HANDLE_BYTES)]


class Runtime:
    """The calls of the CUDA runtime that torch has no name for, on the device that is current. Raises Unavailable, as each of them does."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(native.find_cudart())
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def allocate(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)), f"{size} bytes for a channel")
        return address.value or 0

    def export(self, address: int) -> bytes:
        handle = Handle()
        self._check(self._library.cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(address)), "a handle of a channel's memory")
        return bytes(handle.bytes)

    def open(self, data: bytes) -> int:
        address, handle = ctypes.c_void_p(), Handle((ctypes.c_ubyte * HANDLE_BYTES)(*data))
        code = self._library.cudaIpcOpenMemHandle(ctypes.byref(address), handle, ctypes.c_uint(1))  # 1: the only flag there is
        self._check(code, "the other process's memory")
        return address.value or 0

    def close(self, address: int) -> None:
        self._library.cudaIpcCloseMemHandle(ctypes.c_void_p(address))

    def _check(self, code: int, what: str) -> None:
        if code:
            words = self._library.cudaGetErrorString(code).decode()
            raise Unavailable(f"CUDA does not give {what}: {words}; choose another carrier between processes of one GPU")


class Span:
    """Device memory that torch did not allocate, in the form in which it takes it."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 2}


@dataclass
class Slot:
    """A piece of device memory and the events that mark it written (`full`) and read (`free`)."""

    address: int
    data: torch.Tensor  # uint8
    full: Any  # torch.cuda.Event
    free: Any


_spare: dict[torch.device, list[tuple[int, int]]] = {}  # (bytes, address) of exported memory that no channel uses now
_sparing = threading.Lock()


class IpcSender(SideChannelEnd):
    """Upstream end, on `device`. `slots`: those of the control."""

    def __init__(self, control: Sender, device: torch.device, slots: int = SLOTS):
        super().__init__(control)
        self._control, self._runtime, self._device = control, Runtime(), device
        self._slots: list[Slot | None] = [None] * (slots + 2)
        self._outgrown: list[Slot] = []
        self._count = 0
        self._turn = threading.Lock()

    def send(self, message: Message) -> None:
        if not isinstance(message, Block):
            self._control.send(message)
            return
        with self._turn, torch.cuda.device(self._device):
            tensors = {k: t.to(self._device).contiguous() for k, t in {X: message.x, **message.condition}.items()}
            said = {k: describe(k, t) for k, t in tensors.items()}
            place, self._count = self._count % len(self._slots), self._count + 1
            slot, handles = self._find_slot(place, sum(aligned(t.nbytes) for t in tensors.values()))
            stream, start = torch.cuda.current_stream(), 0
            stream.wait_event(slot.free)
            for tensor in tensors.values():
                slot.data[start : start + tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
                start += aligned(tensor.nbytes)
            slot.full.record(stream)
            said[PLACE] = torch.tensor([place, slot.data.numel()])
            if handles:
                said[HANDLES] = torch.frombuffer(bytearray(handles), dtype=torch.uint8)
            self._control.send(replace(message, x=said.pop(X), condition=said))

    def join(self) -> None:
        super().join()
        with self._turn, _sparing:
            for slot in (*self._slots, *self._outgrown):
                if slot:
                    _spare.setdefault(self._device, []).append((slot.data.numel(), slot.address))
            self._slots, self._outgrown = [None] * len(self._slots), []

    def _find_slot(self, place: int, size: int) -> tuple[Slot, bytes]:
        """The slot, and its handles if the receiver does not know them."""
        slot = self._slots[place]
        if slot and size <= slot.data.numel():
            return slot, b""
        if slot:
            self._outgrown.append(slot)
        capacity = max(LEAST_BYTES, 1 << (size - 1).bit_length())
        with _sparing:
            spare = _spare.get(self._device, [])
            found = next((s for s in spare if s[0] == capacity), None)
            if found:
                spare.remove(found)
        address = found[1] if found else self._runtime.allocate(capacity)
        events = [torch.cuda.Event(interprocess=True) for _ in range(2)]
        slot = self._slots[place] = Slot(address, torch.as_tensor(Span(address, capacity), device=self._device), *events)
        return slot, b"".join((self._runtime.export(address), *(event.ipc_handle() for event in events)))


class IpcReceiver(SideChannelEnd):
    """Downstream end, on `device`. The tensors of a block that it answers are copies, in order on the device's current stream."""

    def __init__(self, control: Receiver, device: torch.device):
        super().__init__(control)
        self._control, self._runtime, self._device = control, Runtime(), device
        self._slots: dict[int, Slot] = {}

    def receive(self, timeout_s: float) -> Message | None:
        message = self._control.receive(timeout_s)
        if not isinstance(message, Block):
            return message
        said = {X: message.x, **message.condition}
        place, capacity = said.pop(PLACE).tolist()
        with torch.cuda.device(self._device):
            if HANDLES in said:
                self._map(place, capacity, said.pop(HANDLES).numpy().tobytes())
            slot, stream, start = self._slots[place], torch.cuda.current_stream(), 0
            stream.wait_event(slot.full)
            tensors: Tensors = {}
            for key, described in said.items():
                like = blank(described)
                tensors[key] = slot.data[start : start + like.nbytes].clone().view(like.dtype).reshape(like.shape)
                start += aligned(like.nbytes)
            slot.free.record(stream)
        return replace(message, x=tensors.pop(X), condition=tensors)

    def join(self) -> None:
        super().join()
        with torch.cuda.device(self._device):
            for place in list(self._slots):
                self._unmap(place)

    def _map(self, place: int, capacity: int, handles: bytes) -> None:
        if place in self._slots:
            self._unmap(place)
        memory, full, free = (handles[i : i + HANDLE_BYTES] for i in range(0, 3 * HANDLE_BYTES, HANDLE_BYTES))
        address = self._runtime.open(memory)
        data = torch.as_tensor(Span(address, capacity), device=self._device)
        events = [torch.cuda.Event.from_ipc_handle(self._device, handle) for handle in (full, free)]
        self._slots[place] = Slot(address, data, *events)

    def _unmap(self, place: int) -> None:
        slot = self._slots.pop(place)
        slot.free.synchronize()  # the copies out of it are through
        self._runtime.close(slot.address)
