"""Why a session ends."""

from __future__ import annotations

from everface.core.errors import EverfaceError
from everface.core.log import log


class Refused(Exception):
    """A WebSocket close code, a word for programs, a sentence for people."""

    def __init__(self, code: int, word: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.word, self.reason = code, word, reason


def why(error: Exception) -> Refused:
    """What to tell a client of the error that ended its session."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, EverfaceError):
        return Refused(1013, "unavailable", str(error))
    log.error("a live session ended by a bug", exc_info=error)
    return Refused(1011, "bug", "this session ended by a bug of everface: open another")
