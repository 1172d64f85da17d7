"""`everface join`: lends the devices of this host to a pipeline of another one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

from everface.core import env
from everface.core.log import log
from everface.runtime.cluster.control import ControlSocket, Join, prepare_tcp
from everface.runtime.cluster.worker_process import start_worker

CONNECT_S = 2.0  # for one attempt
RETRY_S = 1.0  # between two attempts, and between the end of a worker and the next


class Joiner:
    """`run` keeps one worker process for each device, until `close`, from any thread. A worker that ends is followed by another."""

    def __init__(self, address: tuple[str, int], devices: int = 1):
        self._address = address
        self._ended = threading.Event()
        self._workers: set[subprocess.Popen[bytes]] = set()
        self._threads = [
            threading.Thread(target=self._serve, args=(n,), name=f"everface join {n}", daemon=True) for n in range(devices)
        ]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        try:
            self._ended.wait()
        finally:
            self.close()

    def close(self) -> None:
        self._ended.set()
        for worker in list(self._workers):
            worker.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self, device: int) -> None:
        said = False
        while not self._ended.is_set():
            try:
                connected = socket.create_connection(self._address, CONNECT_S)
            except OSError as error:
                if not said:
                    log.warning("no pipeline at %s:%d yet (%s)", *self._address, error.strerror or error)
                said = True
            else:
                said = False
                self._work(connected, device)
            self._ended.wait(RETRY_S)

    def _work(self, connected: socket.socket, device: int) -> None:
        """Run one worker until it ends."""
        with prepare_tcp(connected):
            if not ControlSocket(connected).send(Join(env.token() or "", device, os.getpid())):
                return
            worker = start_worker(connected.fileno(), f"everface stage of {self._address[0]}")
        self._workers.add(worker)
        with contextlib.ExitStack() as stack:
            stack.callback(self._workers.discard, worker)
            if self._ended.is_set():  # `close` may not have seen it
                worker.kill()
            log.info("device %d works for %s:%d", device, *self._address)
            log.info("the worker of device %d ended with %d", device, worker.wait())
