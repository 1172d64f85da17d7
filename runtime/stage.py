"""The roles of one device, run in order over the messages sent to it.

An error in a role travels downstream as a Failure in the place of the block, and costs one session its state on this device; the
process and the other sessions go on. Only an error that leaves the device itself unusable is raised, which ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from everface.core.log import log
from everface.runtime.messages import Block, Cancel, Cancelled, CloseSession, Failure, Message, OpenSession
from everface.runtime.model import PartsRole, Role, SettlingRole
from everface.runtime.transport.base import ChannelError

Emit = Callable[[Block], None]


class Stage:
    """`run` belongs to one thread; `on_cancel` may be called from any other. `device`: that of its roles."""

    def __init__(self, roles: Mapping[str, Role], device: str = "cpu"):
        self.roles = dict(roles)
        self._device = torch.device(device)
        self._settling = [(name, role) for name, role in self.roles.items() if isinstance(role, SettlingRole)]
        self._unsettled: int | None = None  # the session of the block that was run last
        self._newest: dict[int, int] = {}  # session -> newest revision known
        self._next: dict[int, int] = {}  # open session -> lowest block index that may still come
        self._in_parts: set[int] = set()  # open sessions that want their frames in parts

    def on_cancel(self, cancel: Cancel) -> None:
        """Take note of an interruption; a block being run is dropped before its next role."""
        self._newest[cancel.session] = max(cancel.revision, self._newest.get(cancel.session, 0))

    def run(self, message: Message, emit: Emit | None = None) -> Message:
        """What to send to the next stage for `message`: a block run or dropped or failed, anything else itself.

        emit: is called with the parts of a block that are ready before its last one, which is returned. Without it blocks stay whole.
        """
        with torch.no_grad():
            if isinstance(message, Block):
                return self._run_block(message, emit)
            if isinstance(message, OpenSession):
                return self._open(message)
            if isinstance(message, CloseSession):
                self._close(message.session)
                self._newest.pop(message.session, None)
            elif isinstance(message, Cancel):
                self.on_cancel(message)
            return message

    @property
    def unsettled(self) -> bool:
        """Whether `settle` has something to do."""
        return self._unsettled is not None

    def settle(self) -> None:
        """The work that the block of the last `run` left behind; called when its result was sent."""
        session, self._unsettled = self._unsettled, None
        if session is None or session not in self._next:
            return
        for name, role in self._settling:
            try:
                with torch.no_grad():
                    role.settle(session)
            except Exception as error:  # the next block finds the session closed, and it is opened again
                log.warning("after a block of session %d, %s failed: %s", session, name, _reason(error))
                self._close(session)
                return

    def check_device(self) -> None:
        """Raise if the device is lost, which an idle stage would not notice. Not while another thread of this process records a graph."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def reset(self) -> None:
        """Forget every session, keep the roles: the pipeline is being connected again and sessions will be opened again."""
        self._unsettled = None
        for session in list(self._next):
            self._close(session)
        self._newest.clear()

    @property
    def sessions(self) -> Iterable[int]:
        return self._next.keys()

    def _open(self, opening: OpenSession) -> OpenSession | Failure:
        self._next[opening.session] = 0
        if opening.parts:
            self._in_parts.add(opening.session)
        at = 0
        try:
            for role in self.roles.values():
                role.open(opening)
                at += 1
        except Exception as error:
            self._close(opening.session)
            return Failure(opening.session, 0, -1, list(self.roles)[at], _reason(error))
        return opening

    def _close(self, session: int) -> None:
        self._in_parts.discard(session)
        if self._next.pop(session, None) is not None:
            for role in self.roles.values():
                role.close(CloseSession(session))

    def _run_block(self, block: Block, emit: Emit | None) -> Block | Cancelled | Failure:
        header = (block.session, block.revision, block.index)
        if block.revision < self._newest.get(block.session, 0):
            return Cancelled(*header)
        expected = self._next.get(block.session)
        if expected is None:  # it failed here, and the scheduler does not know yet
            return Failure(*header, next(iter(self.roles)), "the session is not open on this stage")
        if block.index < expected:
            raise RuntimeError(f"block {block.index} of session {block.session} came after block {expected - 1}")
        self._next[block.session] = block.index + 1
        self._unsettled = block.session if self._settling else None
        at = 0
        try:
            for role in self.roles.values():
                if block.revision < self._newest.get(block.session, 0):
                    return Cancelled(*header)
                if emit and block.session in self._in_parts and isinstance(role, PartsRole):
                    block = _run_parts(role, block, emit)
                else:
                    block = role.run(block)
                at += 1
        except ChannelError:  # no fault of the role's: nobody takes its parts
            raise
        except Exception as error:
            self._close(block.session)
            return Failure(*header, list(self.roles)[at], _reason(error))
        return block


def _run_parts(role: PartsRole, block: Block, emit: Emit) -> Block:
    """Emit all parts but the last, and return that."""
    parts = role.run_parts(block)
    ready = next(parts)
    for part in parts:
        emit(replace(ready, more=True))
        ready = part
    return ready


def _reason(error: Exception) -> str:
    """The error in one line. Raises it again if the device is lost: after such an error CUDA accepts no call any more."""
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost) and not isinstance(error, torch.OutOfMemoryError):
        raise error
    log.warning("a role failed", exc_info=error)
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
