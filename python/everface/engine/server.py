"""The engine: accepts clients at a socket, or from the process that started it, and ends in order."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path

from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.core.threads import switch_quickly
from everface.engine import protocol
from everface.engine.connection import Connection, Opener

MOST_CONNECTIONS = 64
TICK_S = 0.1
STOP_S = 5.0


def listen(path: Path) -> socket.socket:
    """A listening socket that only this user can connect to. Replaces what a dead engine left. Raises BadInput."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(128)  # clients that come while the weights are loaded
    except OSError as error:
        listener.close()
        if error.errno is None or error.errno == errno.ENAMETOOLONG:
            raise BadInput(f"{path} is too long for a socket: name a path of at most 107 characters") from None
        raise BadInput(f"an engine cannot listen at {path} ({error.strerror}): name a path in a folder of your own") from None
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise BadInput(f"{path} is there already and is no socket: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise BadInput(f"an engine listens at {path} already: use it, or name another path")


class Engine:
    """Serves clients in threads. `opener` opens a live session for a request; it may be called from several threads at once. `fps`: of its sessions."""

    def __init__(self, opener: Opener, fps: int, version: str = "") -> None:
        self._opener, self._fps, self._version = opener, fps, version
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._draining = False

    def serve(self, listener: socket.socket) -> None:
        """Accept clients until an exception, such as an interruption, comes. The listener is closed then. The process is the engine's."""
        switch_quickly()
        with listener:
            listener.settimeout(TICK_S)
            while True:
                with contextlib.suppress(TimeoutError):
                    self._begin(listener.accept()[0])

    def serve_owner(self, owner: socket.socket) -> None:
        """Take clients' sockets from the process that started this one, until it closes its end."""
        switch_quickly()
        with owner:
            while True:
                try:
                    data, descriptors, _, _ = socket.recv_fds(owner, 1, 4)
                except OSError:
                    return
                for descriptor in descriptors:
                    self._begin(socket.socket(fileno=descriptor))
                if not data:
                    return

    def stop(self, drain_s: float) -> None:
        """Refuse new sessions, give out what was pushed to the open ones, for drain_s seconds at most, and end them."""
        end_s = time.monotonic() + drain_s
        with self._lock:
            self._draining = True
            connections = list(self._connections)
        for connection in connections:
            connection.refusal = Unavailable("the engine is stopping: start another")
            if connection.session:
                connection.session.drain(drain_s)
        while time.monotonic() < end_s and any(c.session and not c.session.over for c in self._open()):
            time.sleep(0.02)
        end_s = time.monotonic() + STOP_S
        while (left := self._open()) and time.monotonic() < end_s:
            for connection in left:
                connection.cut()
            time.sleep(0.02)

    @property
    def connections(self) -> int:
        return len(self._open())

    def _open(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    def _begin(self, connected: socket.socket) -> None:
        connected.setblocking(True)
        with self._lock:
            if self._draining or len(self._connections) >= MOST_CONNECTIONS:
                full = f"the engine has {MOST_CONNECTIONS} clients, which is all it takes: try again later"
                why = "the engine is stopping: start another" if self._draining else full
                with contextlib.suppress(OSError), connected:
                    connected.send(protocol.encode(protocol.ErrorNotice(protocol.UNAVAILABLE, why)))
                return
            connection = Connection(connected, self._opener, self._fps, self._version)
            self._connections.add(connection)
        threading.Thread(target=self._run, args=(connection,), name="everface engine client", daemon=True).start()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self._connections.discard(connection)
            log.debug("a client is gone; %d are left", self.connections)
