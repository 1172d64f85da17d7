"""Ctrl-C, SIGTERM and SIGHUP end a command in one way: its files are completed, its processes end, and the exit code says which it was.

Only the first signal interrupts. Later ones would cut short the completion of a file, so they are answered with a line; but it all takes
GIVE_UP_S at most.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

GIVE_UP_S = 30.0  # from the first signal to the end of the process, whatever hangs
AGAIN_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A class of its own, because Python ends by SIGINT after a plain KeyboardInterrupt that came inside exec(), as imports use it."""


class Interruption:
    """Handles the signals within its `with`: the first raises Interrupted there. Does nothing in other threads than the main one.

    A signal that is ignored when it begins stays ignored, as nohup and a shell's background jobs want it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the first
        self._before: dict[int, Any] = {}
        self._main = threading.get_ident()
        self._raised = self._again = self._over = False

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as a shell reports a program that a signal ended."""
        return 128 + (self.signal or signal.SIGINT)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The handlers are as before; after a signal, the process is about to end, and nothing may stop it from ending in order."""
        for number, before in self._before.items():
            signal.signal(number, before if self.signal is None else signal.SIG_IGN)
        self._over = True

    def end(self) -> None:
        """End the process at once if threads are left that would make an ordinary end an abort: a device hangs, or is very slow."""
        if self.signal is not None and any(thread.name.startswith("everface ") for thread in threading.enumerate()):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(self.exit_code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._again = self._again, False
        if self._raised:
            if not again:
                with contextlib.suppress(OSError):  # not print: the main thread may be in the middle of one
                    os.write(2, f"everface: still finishing, for {GIVE_UP_S:g} s at most\n".encode())
            return
        if self.signal is None:
            self.signal = number
            _thread.start_new_thread(
                self._watch, ()
            )  # not threading.Thread: the main thread may be in the middle of starting one
        if not _importing(frame):  # else an exception may abort the process: C++ code that calls Python is on the stack
            self._raised = True
            raise Interrupted

    def _watch(self) -> None:
        """Send a signal that came during an import again, until it is over. End the process when GIVE_UP_S is over."""
        end_s = time.monotonic() + GIVE_UP_S
        while not self._over and time.monotonic() < end_s:
            time.sleep(AGAIN_S)
            if not self._raised and self.signal is not None:
                self._again = True
                signal.pthread_kill(self._main, self.signal)  # a real one, which ends a system call
        if not self._over:
            os._exit(self.exit_code)  # nothing is flushed: that may be what hangs


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
