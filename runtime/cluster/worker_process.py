"""One worker process as its supervisor sees it: how far it has come, what it works on, and the last lines of its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque

from everface.core.log import log
from everface.runtime.cluster.control import (
    Build,
    Built,
    Command,
    Connected,
    ControlSocket,
    Disconnected,
    Heartbeat,
    Report,
    WorkFinished,
    WorkStarted,
)
from everface.runtime.cluster.watchdog import BLOCK, Watchdog

KEPT_LINES = 60
MOST_LINE_BYTES = 4096
BOOT = """import json, sys
sys.path[:] = json.loads(sys.argv[2])
from everface.runtime.cluster.worker import main
main(int(sys.argv[1]))
"""


class WorkerProcess:
    """Starts the process and has it build its roles. For the supervisor's threads; the reads and `close` are not thread-safe."""

    def __init__(self, build: Build, timeout_s: float):
        self.name = "+".join(build.roles)
        self.watchdog = Watchdog(timeout_s)
        self.built = False
        self.generation = 0  # of the connections that it has made
        self.loss: str | None = None  # why it is lost, as a sentence
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # of its output
        self._rest = b""  # of a line that has not come completely
        ours, theirs = socket.socketpair()
        self.control = ControlSocket(ours)
        arguments = [str(theirs.fileno()), json.dumps([str(p) for p in sys.path]), f"everface stage {self.name}"]
        with theirs:
            # In its own process group: a Ctrl-C in the terminal reaches the parent only, which then ends its workers.
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT, *arguments], pass_fds=[theirs.fileno()], process_group=0,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.send(build)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def send(self, command: Command) -> None:
        self.control.send(command)

    def read_reports(self) -> bool:
        """Wait for reports and take note of them; False at the end of the process."""
        reports = self.control.receive()
        for report in reports or ():
            self._handle(report, time.monotonic())
        return reports is not None

    def read_output(self) -> bool:
        """Wait for output, keep and log it; False at its end."""
        data = os.read(self.output.fileno(), 1 << 16)
        self._add_output(data)
        return bool(data)

    def read_remaining_output(self) -> None:
        """Of a process that has ended, as far as it is there: nothing is waited for."""
        if self.output.closed:
            return
        os.set_blocking(self.output.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output.fileno(), 1 << 16):
                self._add_output(data)
        self._add_output(b"")

    def exit_description(self) -> str:
        """How the process ended, and the last line of its output."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{how}, its last line was {self.lines[-1]!r}" if self.lines else f"{how} and printed nothing"

    def wait(self, timeout_s: float) -> None:
        """Until the process has ended, or for `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)

    def close(self) -> None:
        """Of a process that has ended."""
        self.control.close()
        self.output.close()

    def _handle(self, report: Command | Report, now_s: float) -> None:
        self.watchdog.alive(now_s)
        if isinstance(report, Built):
            self.built = True
        elif isinstance(report, Connected):
            self.generation = report.generation
            self.watchdog.start(now_s)
        elif isinstance(report, WorkStarted):
            work = f"{BLOCK} {report.index} of session {report.session}" if report.kind == BLOCK else report.kind
            self.watchdog.begin_work(now_s, work)
        elif isinstance(report, WorkFinished):
            self.watchdog.end_work(now_s)
        elif isinstance(report, Disconnected):
            log.info("stage %s: %s", self.name, report.reason)
        else:
            assert isinstance(report, Heartbeat)

    def _add_output(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")  # the end of the output ends its last line
        self._rest = self._rest[-MOST_LINE_BYTES:]
        for line in (raw.decode(errors="replace").rstrip() for raw in lines):
            if line:
                self.lines.append(line[:1000])
                log.info("%s: %s", self.name, line)
