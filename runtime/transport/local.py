"""A channel within one process: messages are passed on, not copied."""

from __future__ import annotations

import torch

from everface.runtime.messages import UNBUFFERED, Block, Message
from everface.runtime.signal import Signal
from everface.runtime.transport.base import SLOTS, ChannelError, OnCancel, QueuedReceiver


class LocalChannel(QueuedReceiver):
    """Both ends are this object.

    Tensors on a GPU pass from the sender's stream to the receiver's: the receiver's stream waits for them, no thread does.
    """

    def __init__(
        self, slots: int = SLOTS, on_cancel: OnCancel | None = None, timeout_s: float = 120.0, signal: Signal | None = None
    ):
        super().__init__(on_cancel, signal=signal)
        self._slots, self._timeout_s, self._held = slots, timeout_s, 0
        self._events: dict[int, torch.cuda.Event] = {}  # id of a waiting message -> recorded when its tensors are complete

    @property
    def held(self) -> int:
        """Slots taken."""
        return self._held

    def room(self) -> bool:
        """Whether a send would return at once."""
        return self._broken is not None or self._held < self._slots

    def send(self, message: Message) -> None:
        if not isinstance(message, UNBUFFERED):
            with self._changed:
                if not self._wait(lambda: self._broken is None and self._held < self._slots, self._timeout_s):
                    raise ChannelError(f"the next stage received nothing for {self._timeout_s:g} s")
                self._held += 1
        if _on_gpu(message):
            event = self._events[id(message)] = torch.cuda.Event()
            event.record()
        self._enqueue(message)

    def receive(self, timeout_s: float) -> Message | None:
        message = self._dequeue(timeout_s)
        if message is not None and not isinstance(message, UNBUFFERED):
            with self._changed:
                self._held -= 1
                self._changed.notify_all()
        event = self._events.pop(id(message), None)
        if event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(event)
            for tensor in _on_gpu(message):
                tensor.record_stream(stream)
        return message

    def join(self) -> None:
        """No thread serves this channel."""


def _on_gpu(message: Message | None) -> list[torch.Tensor]:
    return [t for t in (message.x, *message.condition.values()) if t.is_cuda] if isinstance(message, Block) else []
