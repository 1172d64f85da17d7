"""A video that leaves through a pipe while it is made: a named one, or stdout."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from pathlib import Path

from av.error import FFmpegError

from everface.core.errors import BadInput, Unavailable
from everface.core.standard_streams import OutputLost, free_stdout

PIECE = 4096  # bytes: select promises no more room in a pipe, and a write must not wait where nothing can end it
TICK_S = 0.1
HURRY_S = 1.0


class OutputPipe:
    """A descriptor, which is written until its reader is gone, and closed at the end. libav calls `write`, on the writer's thread."""

    def __init__(self, descriptor: int, path: Path, standard: bool = False) -> None:
        self.path, self._standard = path, standard
        self.saved: Path | None = None
        self.fragmented: str | None = None
        self.unsigned: str | None = "it left through a pipe while it was made"
        self.give_up_s = float("inf")  # when to stop waiting for the reader, by time.monotonic()
        self.target = self
        self._descriptor = descriptor
        self._lost: OSError | None = None

    def write(self, data: bytes) -> int:
        """All of it. Raises OSError, InterruptedError when `give_up_s` is over."""
        left = memoryview(data)
        while left:
            if self._lost:
                raise self._lost
            try:
                _, ready, _ = select.select([], [self._descriptor], [], TICK_S)
                left = left[os.write(self._descriptor, left[:PIECE]) :] if ready else left
            except OSError as error:
                self._lost = error
            if time.monotonic() > self.give_up_s:
                self._lost = InterruptedError(errno.EINTR, "nobody reads it")
        return len(data)

    def hurry(self) -> None:
        """Somebody waits for the end: a reader that does not read by then is given up."""
        self.give_up_s = min(self.give_up_s, time.monotonic() + HURRY_S)

    def close(self, finished: bool) -> None:
        self.remove()
        self.saved = self.path

    def failure(self, error: OSError | FFmpegError, size: int) -> Unavailable | OutputLost:
        """What to raise after `error`. A reader of stdout that has gone has all that it wants."""
        self.remove()
        lost = self._lost or error
        if self._standard and isinstance(lost, BrokenPipeError):
            return OutputLost(lost)
        advice = "start its reader again" if isinstance(lost, BrokenPipeError) else "free some space"
        return Unavailable(f"cannot write {self.path} ({lost.strerror}), {advice}: its reader has what was written so far")

    def size(self) -> int:
        return 0

    def remove(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1


def open_pipe(path: Path) -> OutputPipe:
    """A named pipe. Waits for a reader."""
    return OutputPipe(os.open(path, os.O_WRONLY), path)  # here and not in libav, so that Ctrl-C ends the wait


def open_stdout() -> OutputPipe:
    """What stdout was: from now on, what is printed goes to stderr, so that it does not come between the bytes of the video.

    Raises BadInput if it is a terminal.
    """
    if os.isatty(1):
        raise BadInput("the video would go to this terminal: pipe stdout into a player or a file, or name a file with -o")
    return OutputPipe(free_stdout(), Path("stdout"), standard=True)
