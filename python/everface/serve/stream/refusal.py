"""Why a connection ends."""

from __future__ import annotations


class Refused(Exception):
    """A WebSocket close code, a word for programs, a sentence for people."""

    def __init__(self, code: int, word: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.word, self.reason = code, word, reason
