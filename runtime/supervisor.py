"""The child processes of a pipeline: start, watch, kill. None outlives its parent, and a failure is told in one sentence.

Each child has three pipes. stdin: its orders as one line of JSON, then nothing until the parent is gone, which ends the child.
stdout: one byte an event (JOINING, READY, DONE with a message). stderr: log and traceback, of which the last lines are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.plan import Plan

JOINING, READY, DONE = b"j", b"r", b"d"
TICK_S = 0.2
KILL_S = 5.0  # for a killed child to be gone
KEPT_LINES = 60
BOOT = (
    "import json, sys; orders = json.loads(sys.stdin.buffer.readline()); sys.path[:] = orders.pop('path'); "
    "from everface.runtime.worker import main; main(**orders)"
)


class Child:
    """One process, its pipes, and how far it has come."""

    def __init__(self, roles: tuple[str, ...], orders: dict[str, Any]):
        self.name = "+".join(roles)
        self.events = {JOINING: 0, READY: 0, DONE: 0}
        self.owing_since_s = 0.0
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""
        self.pipes = 2  # that may still say something
        # its own process group: a Ctrl-C in the terminal reaches the parent only, which then ends its children
        command = [sys.executable, "-c", BOOT, f"everface stage {self.name}"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
        with contextlib.suppress(BrokenPipeError):  # it died already: the watch will say why
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({**orders, "path": [str(p) for p in sys.path]}).encode() + b"\n")
            self.process.stdin.flush()

    def read_events(self, data: bytes) -> None:
        for event in self.events:
            self.events[event] += data.count(event)
        self.owing_since_s = time.monotonic()

    def read_lines(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")  # the end of the pipe ends the last line
        self._rest = self._rest[-4096:]
        for line in (raw.decode(errors="replace").rstrip() for raw in lines):
            if line:
                self.lines.append(line[:1000])
                log.info("%s: %s", self.name, line)

    def tell_end(self) -> str:
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{how}, its last line being {self.lines[-1]!r}" if self.lines else f"{how} without a word"


class Supervisor:
    """Starts a child a device and watches them from one thread. `on_failure` wakes whoever waits for the pipeline."""

    def __init__(self, plan: Plan, orders: dict[str, Any], timeout_s: float, on_failure: Callable[[str], None]):
        self.timeout_s, self._on_failure = timeout_s, on_failure
        self.fed = 0  # messages that the parent gave to the first child
        self.failure: str | None = None
        self._changed = threading.Condition()
        self._failing = threading.Lock()
        self._closing = False
        self.children: list[Child] = []
        try:
            for rank, roles in enumerate(plan.devices):
                self.children.append(Child(roles, {**orders, "rank": rank, "roles": roles}))
        except BaseException:
            self._kill()
            raise
        self._thread = threading.Thread(target=self._watch, name="everface supervisor", daemon=True)
        self._thread.start()

    def wait_all(self, event: bytes, timeout_s: float) -> None:
        """Until every child has told `event`. Raises Unavailable if one fails first or time runs out."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.failure or all(c.events[event] for c in self.children), timeout_s)
        if not done:
            late = next(c for c in self.children if not c.events[event])
            self._fail(f"stage {late.name} was not ready after {timeout_s:g} s: allow it more time or a faster disk")
        self.check()

    def check(self) -> None:
        if self.failure:
            raise Unavailable(self.failure)

    def wait_failure(self, timeout_s: float) -> None:
        """Called when a hop broke: raise what the watch finds out about it within the time, if anything."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, timeout_s)
        self.check()

    def close(self, grace_s: float) -> None:
        """End all children: they get `grace_s` to end by themselves. No process is left, failure or not."""
        self._closing = True
        end_s = time.monotonic() + grace_s
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end_s - time.monotonic()))
        self._kill()
        self._thread.join()

    def _kill(self) -> None:
        for child in self.children:
            child.process.kill()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the system will reap it
                child.process.wait(KILL_S)
            if child.process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    child.process.stdin.close()

    def _fail(self, sentence: str) -> None:
        with self._failing:
            if self.failure or self._closing:
                return
            self._kill()  # first: whoever hears of the failure finds no process left
            with self._changed:
                self.failure = sentence
                self._changed.notify_all()
        self._on_failure(sentence)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                for pipe, read in ((child.process.stdout, child.read_events), (child.process.stderr, child.read_lines)):
                    assert pipe is not None
                    selector.register(pipe, selectors.EVENT_READ, (child, read))
            while selector.get_map():
                ready = selector.select(TICK_S)
                for key, _ in ready:
                    (child, read), data = key.data, os.read(key.fd, 1 << 16)
                    read(data)
                    if not data:
                        child.pipes -= 1
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                if not ready and all(c.process.poll() is not None for c in self.children):
                    break  # something that a child started keeps a pipe open
                if not self._closing and self.failure is None:
                    self._judge(quiet=not ready)
                with self._changed:
                    self._changed.notify_all()

    def _judge(self, quiet: bool) -> None:
        """Fail if a child ended, or owes an answer for too long; of several late ones the last in line holds up the others."""
        for child in self.children:
            if child.process.poll() is not None and (quiet or not child.pipes):  # its last words have been read
                if child.process.returncode == 1:  # a bug, not an everface error: keep its traceback
                    log.error("stage %s:\n%s", child.name, "\n".join(child.lines))
                self._fail(f"stage {child.name} {child.tell_end()}: the pipeline has ended, start it again once that is mended")
                return
        now_s, late = time.monotonic(), None
        done = [self.fed, *(c.events[DONE] for c in self.children)]
        for child, due, did in zip(self.children, done, done[1:]):
            if due <= did:
                child.owing_since_s = now_s
            elif now_s - child.owing_since_s > self.timeout_s:
                late = child
        if late:
            self._fail(f"stage {late.name} was silent for {self.timeout_s:g} s with work in flight: use a faster device or a longer timeout")
