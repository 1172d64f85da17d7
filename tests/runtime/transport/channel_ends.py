"""Both ends of a channel in one process, and messages for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.runtime import toy

from everface.runtime.messages import Block, Cancel
from everface.runtime.signal import Signal
from everface.runtime.transport.base import Receiver
from everface.runtime.transport.selection import open_receiver, open_sender

KINDS = ("gloo", "shared")


def block(index: int) -> Block:
    return Block(1, 0, index, index * 7680, 12, toy.noise(index), {"audio": torch.full((3,), float(index))})


def frames(index: int, size: int) -> Block:
    return Block(1, 0, index, 0, 12, torch.randint(0, 256, (size,), dtype=torch.uint8), last=True)


def open_both(
    kind: str, path: Path, on_cancel: Callable[[Cancel], None] = print, timeout_s: float = 60.0, signal: Signal | None = None
) -> tuple[Any, Any]:
    """The sender, whose sends have `timeout_s`, and the receiver."""
    receivers: list[Receiver] = []
    opening = threading.Thread(target=lambda: receivers.append(open_receiver(kind, str(path), on_cancel, signal=signal)))
    opening.start()
    sender = open_sender(kind, str(path), timeout_s=timeout_s)
    opening.join()
    return sender, receivers[0]


def close_both(*ends: Any) -> None:
    for end in ends:
        end.abort()
    for end in ends:
        end.join()
