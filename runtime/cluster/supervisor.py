"""The child processes of a pipeline: start, watch, replace, end. None outlives its parent; what is lost is told in one sentence.

A child is heard over its control socket (heartbeats, what it works on) and its output (log and traceback, the last lines kept).
A lost child, dead or hung, is killed at once and the others drop their connections but keep their roles; `restore` replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from everface.core.errors import Unavailable
from everface.core.log import log
from everface.runtime.cluster.control import (
    Build,
    Built,
    Command,
    Connect,
    Connected,
    ControlSocket,
    Disconnect,
    Disconnected,
    Heartbeat,
    Report,
    WorkFinished,
    WorkStarted,
)
from everface.runtime.cluster.watchdog import Watchdog
from everface.runtime.planning.placement import Placement

TICK_S = 0.1
KILL_S = 5.0  # for a killed child to be gone
KEPT_LINES = 60
MOST_LOSSES, WITHIN_S = 3, 60.0  # more than so many in that time: something is wrong that a restart does not mend
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from everface.runtime.cluster.worker import main; main(int(sys.argv[1]))"


class Child:
    """One process, its socket, its output, and how far it has come."""

    def __init__(self, roles: tuple[str, ...], timeout_s: float):
        self.name = "+".join(roles)
        self.watch = Watchdog(self.name, timeout_s)
        self.built = False
        self.generation = 0  # of the connections it has joined
        self.lost: str | None = None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""
        ours, theirs = socket.socketpair()
        self.channel = ControlSocket(ours)
        command = [
            sys.executable,
            "-c",
            BOOT,
            str(theirs.fileno()),
            json.dumps([str(p) for p in sys.path]),
            f"everface stage {self.name}",
        ]
        # its own process group: a Ctrl-C in the terminal reaches the parent only, which then ends its children
        out = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], process_group=0, **out)  # type: ignore[call-overload]

    def note(self, event: Command | Report, now_s: float) -> None:
        self.watch.on_cancel(now_s)
        if isinstance(event, Built):
            self.built = True
        elif isinstance(event, Connected):
            self.generation = event.generation
            self.watch.begin(now_s)
        elif isinstance(event, WorkStarted):
            self.watch.enter(now_s, f"{event.kind} {event.index} of session {event.session}" if event.index >= 0 else event.kind)
        elif isinstance(event, WorkFinished):
            self.watch.leave(now_s)
        elif isinstance(event, Disconnected):
            log.info("stage %s: %s", self.name, event.reason)
        else:
            assert isinstance(event, Heartbeat)

    def read_lines(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")  # the end of the pipe ends the last stream
        self._rest = self._rest[-4096:]
        for stream in (raw.decode(errors="replace").rstrip() for raw in lines):
            if stream:
                self.lines.append(stream[:1000])
                log.info("%s: %s", self.name, stream)

    def tell_end(self) -> str:
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{how}, its last stream being {self.lines[-1]!r}" if self.lines else f"{how} without a word"


class Supervisor:
    """Keeps one child a device. `on_loss(sentence)` is called from the watching thread as soon as one is lost."""

    def __init__(self, plan: Placement, devices: list[str], build: dict[str, Any], timeout_s: float, on_loss: Callable[[str], None]):
        self._devices = devices
        self._plan, self._order, self._timeout_s, self._on_loss = plan, build, timeout_s, on_loss
        self.generation = 0
        self.failure: str | None = None  # final: the pipeline will not come back
        self.losses: deque[float] = deque(maxlen=MOST_LOSSES + 1)
        self._changed = threading.Condition()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self.children: list[Child] = []
        try:
            self.children = [self._spawn(rank) for rank in range(len(plan.devices))]
        except BaseException:
            self._kill_all()
            raise
        self._thread = threading.Thread(target=self._watch, name="everface supervisor", daemon=True)
        self._thread.start()

    def wait_built(self, timeout_s: float) -> None:
        """Until every child has its roles. Raises Unavailable if one is lost first or time runs out."""
        self._wait(lambda: all(c.built for c in self.children), timeout_s, "had not built its roles", lambda c: c.built)

    def connect(self, connect: Connect) -> None:
        """Tell all children to connect anew; `join` is the caller's own order, the last rank's."""
        self.generation = connect.generation
        for rank, child in enumerate(self.children):
            child.channel.send(msgspec.structs.replace(connect, rank=rank, device=self._devices[rank]))

    def wait_connected(self, timeout_s: float) -> None:
        def joined(child: Child) -> bool:
            return child.generation == self.generation

        self._wait(lambda: all(map(joined, self.children)), timeout_s, "was not connected", joined)

    def lost(self) -> str | None:
        """The sentence about the first child that is lost and not replaced yet."""
        return self.failure or next((c.lost for c in self.children if c.lost), None)

    def wait_loss(self, timeout_s: float) -> str | None:
        """Called when a connection broke: what the watch finds out about it within the time, if anything."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost() is not None, timeout_s)
        return self.lost()

    def restore(self) -> list[str]:
        """Replace what is lost. Answers the names of the stages begun anew; raises Unavailable if it happens too often."""
        begun = []
        with self._changed:
            for place, child in enumerate(self.children):
                if child.lost:
                    self.children[place] = self._spawn(place)
                    begun.append(child.name)
            if len(self.losses) > MOST_LOSSES and self.losses[-1] - self.losses[0] < WITHIN_S:
                self._give_up(f"{MOST_LOSSES + 1} stages were lost within {WITHIN_S:g} s: mend the cause and start again")
        self.check()
        return begun

    def check(self) -> None:
        if self.failure:
            raise Unavailable(self.failure)

    def close(self, grace_s: float) -> None:
        """ChannelEnd all children: they get `grace_s` to end by themselves. No process is left, failure or not."""
        self._closing = True
        end_s = time.monotonic() + grace_s
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end_s - time.monotonic()))
        self._kill_all()
        self._thread.join()
        self._selector.close()
        for child in self.children:
            child.channel.close()

    # inside

    def _spawn(self, rank: int) -> Child:
        child = Child(self._plan.devices[rank], self._timeout_s)
        child.channel.send(Build(list(self._plan.devices[rank]), self._devices[rank], **self._order))
        assert child.process.stdout is not None
        self._selector.register(child.channel.sock, selectors.EVENT_READ, (child, self._read_events))
        self._selector.register(child.process.stdout, selectors.EVENT_READ, (child, self._read_output))
        return child

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str, ready: Callable[[Child], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.lost() or done(), timeout_s):
                late = next(c for c in self.children if not ready(c))
                self._lose(late, f"{what} after {timeout_s:g} s: allow it more time or a faster disk")
        if sentence := self.lost():
            raise Unavailable(sentence)

    def _kill_all(self) -> None:
        for child in self.children:
            child.process.kill()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the system will reap it
                child.process.wait(KILL_S)

    def _lose(self, child: Child, why: str) -> None:
        """Kill it, for good measure, and have the others drop their connections to it."""
        if child.lost or self._closing:
            return
        child.process.kill()
        with self._changed:
            child.lost = f"stage {child.name} {why}"
            child.watch.rest()
            if child.process.returncode == 1:  # a bug, not an everface error: keep its traceback
                log.error("stage %s:\n%s", child.name, "\n".join(child.lines))
            self.losses.append(time.monotonic())
            if not child.built:
                self._give_up(f"{child.lost}: mend that and start again")
            for other in self.children:
                if not other.lost:
                    other.watch.rest()
                    other.channel.send(Disconnect())
            self._changed.notify_all()
        log.warning("%s", child.lost)
        self._on_loss(child.lost)

    def _give_up(self, sentence: str) -> None:
        self.failure = self.failure or sentence

    def _watch(self) -> None:
        judged_s = 0.0
        while not (self._closing and all(c.process.poll() is not None for c in self.children)):
            try:
                ready = self._selector.select(TICK_S)
            except OSError:  # a file went away under it: the next round has a new list
                continue
            joining, gone = [c.built + c.generation for c in self.children], False
            for key, _ in ready:
                child, read = key.data
                if not read(child):
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    gone = True
            now_s = time.monotonic()
            if joining != [c.built + c.generation for c in self.children]:
                with self._changed:
                    self._changed.notify_all()
            if not gone and now_s < judged_s + TICK_S:  # ten events a block come here: most need nothing more
                continue
            judged_s = now_s
            for child in list(self.children):
                if child.process.poll() is not None and not self._closing:
                    if child.process.returncode >= 0:
                        self._read_last(child)
                    self._lose(child, child.tell_end())
                elif why := child.watch.late(now_s):
                    self._lose(child, why)
            with self._changed:
                self._changed.notify_all()

    def _read_events(self, child: Child) -> bool:
        events = child.channel.read()
        for event in events or ():
            child.note(event, time.monotonic())
        if events is None and not self._closing:  # its process ends, or has ended: be there when it does
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(1.0)
        return events is not None

    def _read_output(self, child: Child) -> bool:
        assert child.process.stdout is not None
        data = os.read(child.process.stdout.fileno(), 1 << 16)
        child.read_lines(data)
        return bool(data)

    def _read_last(self, child: Child) -> None:
        """The last words of a child that ended, as far as they are there."""
        out = child.process.stdout
        if out is None or out.closed:
            return
        os.set_blocking(out.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(out.fileno(), 1 << 16):
                child.read_lines(data)
        child.read_lines(b"")
