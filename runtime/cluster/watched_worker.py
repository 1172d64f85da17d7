"""One worker as its supervisor sees it, wherever it runs: how far it has come, and what it works on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from everface.core.log import log
from everface.runtime.cluster.control import (
    Build,
    Built,
    Command,
    Connected,
    ControlSocket,
    Disconnected,
    Report,
    WorkFinished,
    WorkStarted,
)
from everface.runtime.cluster.watchdog import BLOCK, Watchdog


class WatchedWorker(ABC):
    """For the supervisor's threads; `read_reports` and `close` are not thread-safe."""

    replaceable = False  # it can be replaced even if it is lost before its roles are built
    traceback = ""  # of a bug that ended it

    def __init__(self, build: Build, timeout_s: float):
        self.name = "+".join(build.roles)
        self.build = build
        self.watchdog = Watchdog(timeout_s)
        self.built = False
        self.generation = 0  # of the connections that it has made
        self.loss: str | None = None  # why it is lost, as a sentence
        self.control: ControlSocket | None = None

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process id on its host."""

    @property
    @abstractmethod
    def ended(self) -> bool: ...

    @abstractmethod
    def exit_description(self) -> str:
        """Of a worker that has ended: how."""

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Until it has ended, or for `timeout_s`."""

    def close(self) -> None:
        """Of a worker that has ended."""
        if self.control:
            self.control.close()

    def send(self, command: Command) -> None:
        if self.control:
            self.control.send(command)

    def read_reports(self) -> bool:
        """Wait for reports and take note of them; False at the end of the worker."""
        reports = self.control.receive() if self.control else None
        for report in reports or ():
            self._handle(report, time.monotonic())
        return reports is not None

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
