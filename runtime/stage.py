"""The roles of one device, run in order, and the messages that they are sent.

What goes wrong in a role is told downstream as a Failure, in the place of the block, and costs one session its state on this device;
the process and the other sessions go on. Only an error that leaves the device itself unusable is raised, which ends the process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from everface.core.block import Block, CloseSession, OpenSession
from everface.core.errors import BadInput
from everface.core.log import log


@dataclass(frozen=True)
class Cancel:
    """Interruption: blocks of `session` older than `revision` are worthless from now on. Overtakes the blocks in its way."""

    session: int
    revision: int


@dataclass(frozen=True)
class Cancelled:
    """Stands for a dropped block to the end of the pipeline, so that the count in flight stays right."""

    session: int
    revision: int
    index: int


@dataclass(frozen=True)
class Failure:
    """Stands for a block that could not be made, or, with index -1, for a session that could not be opened."""

    session: int
    revision: int
    index: int
    role: str
    reason: str


@dataclass(frozen=True)
class Opened:
    """Every stage has the session."""

    session: int


@dataclass(frozen=True)
class Closed:
    """No stage has the session any more."""

    session: int


@dataclass(frozen=True)
class Stop:
    """The pipeline ends: a stage hands it on and returns."""


Message = OpenSession | Block | CloseSession | Cancel | Cancelled | Failure | Opened | Closed | Stop
Answer = Block | Cancelled | Failure | Opened | Closed  # what leaves the last stage
UNBUFFERED = (Cancel, Stop)  # need no credit, so they reach a stage whose channel is full


class Role(Protocol):
    """One denoising step, or the decoder. Keeps its own state per session; sees the blocks of a session in rising order.

    `close` also comes to a role that failed to open, or that came after it; nothing is freed then.
    """

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block: ...

    def close(self, closing: CloseSession) -> None: ...


Factory = Callable[[str, dict[str, Any]], Role]
"""A role from its name and a JSON-able spec, in the process where it will run."""


def find_factory(name: str) -> Factory:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise BadInput(f"role factory {name!r} cannot be imported: {error}; give it as 'module:function'") from None


class Stage:
    """Runs messages through the roles of one device. `run` belongs to one thread; `on_cancel` may be called from any other."""

    def __init__(self, roles: Mapping[str, Role]):
        self.roles = dict(roles)
        self._newest: dict[int, int] = {}  # session -> newest revision cancels of
        self._next: dict[int, int] = {}  # open session -> lowest block index that may still come

    def on_cancel(self, notice: Cancel) -> None:
        """Take note of an interruption; a block being run is dropped before its next role."""
        self._newest[notice.session] = max(notice.revision, self._newest.get(notice.session, 0))

    def run(self, message: Message) -> Message:
        """What to give to the next stage for `message`: a block run or dropped or failed, anything else itself."""
        with torch.no_grad():
            if isinstance(message, Block):
                return self._run_block(message)
            if isinstance(message, OpenSession):
                return self._open(message)
            if isinstance(message, CloseSession):
                self._close(message.session)
                self._newest.pop(message.session, None)
            elif isinstance(message, Cancel):
                self.on_cancel(message)
            return message

    def reset(self) -> None:
        """Forget every session, keep the roles: the pipeline is connected anew and sessions will be opened again."""
        for session in list(self._next):
            self._close(session)
        self._newest.clear()

    @property
    def sessions(self) -> Iterable[int]:
        return self._next.keys()

    def _open(self, opening: OpenSession) -> OpenSession | Failure:
        self._next[opening.session] = 0
        at = 0
        try:
            for role in self.roles.values():
                role.open(opening)
                at += 1
        except Exception as error:
            self._close(opening.session)
            return Failure(opening.session, 0, -1, list(self.roles)[at], _tell(error))
        return opening

    def _close(self, session: int) -> None:
        if self._next.pop(session, None) is not None:
            for role in self.roles.values():
                role.close(CloseSession(session))

    def _run_block(self, block: Block) -> Block | Cancelled | Failure:
        header = (block.session, block.revision, block.index)
        if block.revision < self._newest.get(block.session, 0):
            return Cancelled(*header)
        expected = self._next.get(block.session)
        if expected is None:  # it failed here, and the session has not cancels of it yet
            return Failure(*header, next(iter(self.roles)), "the session is not open on this stage")
        if block.index < expected:
            raise RuntimeError(f"block {block.index} of session {block.session} came after block {expected - 1}")
        self._next[block.session] = block.index + 1
        at = 0
        try:
            for role in self.roles.values():
                if block.revision < self._newest.get(block.session, 0):
                    return Cancelled(*header)
                block = role.run(block)
                at += 1
        except Exception as error:
            self._close(block.session)
            return Failure(*header, list(self.roles)[at], _tell(error))
        return block


def answer_of(message: Message) -> Answer | None:
    """What the caller is to on_cancel of a message that has passed the last stage."""
    if isinstance(message, OpenSession):
        return Opened(message.session)
    if isinstance(message, CloseSession):
        return Closed(message.session)
    return message if isinstance(message, Block | Cancelled | Failure) else None


def _tell(error: Exception) -> str:
    """The error in one stream. Raises it on if the device is lost: after such an error CUDA answers nothing any more."""
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost) and not isinstance(error, torch.OutOfMemoryError):
        raise error
    log.warning("a role failed", exc_info=error)
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
