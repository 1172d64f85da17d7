"""A worker in a process of this host, and the last lines of its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque

from everface.core.log import log
from everface.runtime.cluster.control import Build, ControlSocket
from everface.runtime.cluster.watched_worker import WatchedWorker

KEPT_LINES = 60
MOST_LINE_BYTES = 4096
BOOT = """import json, sys
sys.path[:] = json.loads(sys.argv[2])
from everface.runtime.cluster.worker import main
main(int(sys.argv[1]))
"""


def start_worker(control: int, title: str, output: int | None = None) -> subprocess.Popen[bytes]:
    """A process that serves the supervisor at the other end of the socket `control`. `output`: where it prints, as Popen takes it."""
    arguments = [str(control), json.dumps([str(p) for p in sys.path]), title]
    # In its own process group: a Ctrl-C in the terminal reaches the parent only, which then ends its workers.
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, *arguments], pass_fds=[control], process_group=0,
        stdin=subprocess.DEVNULL, stdout=output, stderr=None if output is None else subprocess.STDOUT,
    )  # fmt: skip


class WorkerProcess(WatchedWorker):
    """Starts the process and has it build its roles. For the supervisor's threads; the reads and `close` are not thread-safe."""

    def __init__(self, build: Build, timeout_s: float):
        super().__init__(build, timeout_s)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # of its output
        self._rest = b""  # of a line that has not come completely
        ours, theirs = socket.socketpair()
        self.control = ControlSocket(ours)
        with theirs:
            self.process = start_worker(theirs.fileno(), f"everface stage {self.name}", subprocess.PIPE)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.send(build)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def traceback(self) -> str:
        return "\n".join(self.lines) if self.process.returncode == 1 else ""

    def kill(self) -> None:
        self.process.kill()

    def read_output(self) -> bool:
        """Wait for output, keep and log it; False at its end."""
        data = os.read(self.output.fileno(), 1 << 16)
        self._add_output(data)
        return bool(data)

    def _read_remaining_output(self) -> None:
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
        if code >= 0:
            self._read_remaining_output()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{how}, its last line was {self.lines[-1]!r}" if self.lines else f"{how} and printed nothing"

    def wait(self, timeout_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)

    def close(self) -> None:
        super().close()
        self.output.close()

    def _add_output(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")  # the end of the output ends its last line
        self._rest = self._rest[-MOST_LINE_BYTES:]
        for line in (raw.decode(errors="replace").rstrip() for raw in lines):
            if line:
                self.lines.append(line[:1000])
                log.info("%s: %s", self.name, line)
