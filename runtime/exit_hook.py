"""Closes what is still open when the interpreter exits.

A thread that is inside torch while the interpreter is torn down aborts the process (SIGABRT): Python ends the thread when it comes back
from torch, and C++ code does not let that happen. So pipelines end before, whether the program ran to its end, raised or called exit.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator

from everface.core.log import log

_closes: dict[int, Callable[[], None]] = {}
_numbers = itertools.count()


def close_at_exit(close: Callable[[], None]) -> Callable[[], None]:
    """Have `close` called when the main thread ends, the last registered first. Returns a function that takes this back.

    `close` must end in bounded time, and be safe to call from the main thread. Not called in a forked process. Thread-safe.
    """
    number = next(_numbers)
    _closes[number] = close

    def forget() -> None:
        _closes.pop(number, None)

    return forget


def _close_all() -> None:
    with _no_ctrl_c():
        while _closes:
            _, close = _closes.popitem()
            try:
                close()
            except Exception:
                log.exception("something could not be closed at exit")


@contextlib.contextmanager
def _no_ctrl_c() -> Generator[None]:
    """An impatient second Ctrl-C would leave threads running, and end the process by an abort."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


os.register_at_fork(after_in_child=_closes.clear)  # the pipelines are the parent's
# Before Python waits for the program's other threads: one that waits for frames would keep the process alive for ever.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
