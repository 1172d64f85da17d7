"""Workers of other hosts: they come to the supervisor, over TCP, and one that is lost is replaced by whichever comes next."""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from everface.core.errors import BadInput
from everface.core.log import log
from everface.core.loopback import is_loopback
from everface.runtime.cluster.control import Build, ControlSocket, Join, prepare_tcp
from everface.runtime.cluster.watched_worker import WatchedWorker

MOST_SILENT, JOIN_S = 64, 10.0  # connections that have not said who they are, and how long they may take when others come
ACCEPT_AGAIN_S = 0.05


@dataclass(frozen=True)
class Joined:
    """A worker that waits for a stage to run."""

    control: ControlSocket
    host: str
    join: Join


class RemoteWorker(WatchedWorker):
    """A stage of another host: it waits for a worker to join, and `attach` has that one build its roles."""

    replaceable = True

    def __init__(self, build: Build, timeout_s: float):
        super().__init__(build, timeout_s)
        self.joined: Joined | None = None
        self._gone = False

    @property
    def pid(self) -> int:
        return self.joined.join.pid if self.joined else 0

    @property
    def ended(self) -> bool:
        return self._gone

    def attach(self, joined: Joined) -> None:
        self.joined, self.control = joined, joined.control
        device = self.build.device
        if device.startswith("cuda"):
            device = f"cuda:{joined.join.device}"
        self.send(msgspec.structs.replace(self.build, device=device))
        log.info("stage %s runs at %s, process %d", self.name, joined.host, joined.join.pid)

    def exit_description(self) -> str:
        host = self.joined.host if self.joined else "its host"
        return f"is out of reach: its process at {host} ended, or the network is down"

    def kill(self) -> None:
        """Cut its control socket, which ends its process when it notices; no later than SILENT_MS, if the network is down."""
        self._gone = True
        if self.control:
            self.control.cut()

    def wait(self, timeout_s: float) -> None:
        """Nothing: whether its process has ended cannot be seen from here."""

    def read_reports(self) -> bool:
        alive = super().read_reports()
        self._gone = self._gone or not alive
        return alive


class JoinListener:
    """Listens at an address of this host. For the supervisor's thread. Raises BadInput if it cannot listen there, or if others can reach it
    and there is no token: who joins sees the blocks and makes the frames."""

    def __init__(self, address: tuple[str, int], token: str):
        host, port = address
        if not token and not is_loopback(host):
            raise BadInput(f"{host} can be reached from other machines: set EVERFACE_TOKEN, here and where everface join runs")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.socket = socket.create_server(address, family=family)
        except OSError as error:
            raise BadInput(f"no host can join at {host}:{port} ({os.strerror(error.errno or 0)}): name a free port of this host") from None
        self._token = token.encode()
        self.waiting: list[Joined] = []
        self._silent: dict[ControlSocket, float] = {}  # connections that have not joined yet, and since when; the oldest first

    def accept(self) -> tuple[ControlSocket, Callable[[], bool]] | None:
        """The control socket of a worker, and what reads from it until it is attached: False at its end. None if it is gone already, or too many are silent."""
        now_s = time.monotonic()
        for control, since_s in self._silent.items():
            if now_s - since_s > JOIN_S:
                control.cut()  # `read` then says that it has ended
        try:
            connected, (host, *_) = self.socket.accept()
        except OSError as error:
            log.warning("a worker could not be accepted: %s", error.strerror)
            time.sleep(ACCEPT_AGAIN_S)  # where files are short, it would be asked again at once
            return None
        if len(self._silent) >= MOST_SILENT:
            log.warning("a connection from %s was refused, as %d others have not joined yet", host, len(self._silent))
            connected.close()
            return None
        control = ControlSocket(prepare_tcp(connected))
        self._silent[control] = now_s
        return control, lambda: self._read(control, host)

    def _read(self, control: ControlSocket, host: str) -> bool:
        messages = control.receive()
        if messages is None:
            self._silent.pop(control, None)
            self.waiting = [joined for joined in self.waiting if joined.control is not control]
            return False
        for message in messages:
            if not isinstance(message, Join) or control not in self._silent or not hmac.compare_digest(message.token.encode(), self._token):
                log.warning("a worker of %s was refused: its EVERFACE_TOKEN is not this host's, or it did not join first", host)
                self._silent.pop(control, None)
                self.waiting = [joined for joined in self.waiting if joined.control is not control]
                return False
            del self._silent[control]
            self.waiting.append(Joined(control, host, message))
        return True
