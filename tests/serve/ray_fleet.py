"""A fleet of toy servers on a Ray cluster on this machine, and sessions in it."""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.serve.hosting import ToyBackend, next_event
from tests.test_house import ROOT
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from everface.serve.ray import fleet
from everface.serve.settings import Limits, ServeSettings

SESSIONS = 2  # of a replica
WAIT_S = 120.0
PORT = 8123


class Fleet:
    """Of one application, which `run` replaces."""

    def __init__(self) -> None:
        self.ray, self.serve = importlib.import_module("ray"), importlib.import_module("ray.serve")

    def run(self, least: int, most: int, shrink_s: float = 3.0, sleep_s: float = 0.0) -> None:
        settings = ServeSettings(limits=Limits(sessions=SESSIONS, drain_s=10.0))
        application = fleet(settings, least=least, most=most, make_backend=lambda _: ToyBackend(sleep_s), shrink_s=shrink_s)
        self.serve.run(application, name="everface", route_prefix="/")
        wait(lambda: self.running() >= least)

    def running(self) -> int:
        states = self.serve.status().applications["everface"].deployments["everface"].replica_states
        return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")

    def kill_one(self) -> None:
        names = [
            entry for entry in self.ray.util.list_named_actors(all_namespaces=True) if "REPLICA" in entry["name"] and "everface" in entry["name"]
        ]
        self.ray.kill(self.ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]))


@contextmanager
def cluster() -> Iterator[Fleet]:
    os.environ.update(RAY_raylet_start_wait_time_s="300")  # a busy machine takes its time
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT)])  # replicas import the toys
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "EVERFACE_SIGNING": "off"}}
    found = Fleet()
    found.ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20, runtime_env=environment)
    try:
        found.serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        yield found
        found.serve.shutdown()
    finally:
        found.ray.shutdown()


def wait(done: Callable[[], Any]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.1)


def asked(paced: bool = True, idle: bool = True) -> ClientConnection | None:
    """A session; None where the replica that Ray has chosen has no place. `idle`: it gives out frames without audio too."""
    socket = connect(f"ws://127.0.0.1:{PORT}/v1/avatar/stream", max_size=None, compression=None, open_timeout=WAIT_S).__enter__()
    try:
        socket.send(json.dumps({"type": "start", "format": "jpeg", "paced": paced, "idle": idle}))
        next_event(socket, "started")
    except ConnectionClosed:
        return None
    return socket


def opened(paced: bool = True) -> ClientConnection:
    """A session; asks again where a replica has no place."""
    end_s = time.monotonic() + WAIT_S
    while (socket := asked(paced)) is None:
        assert time.monotonic() < end_s, "no replica had a place"
        time.sleep(0.2)
    return socket


class Reading(threading.Thread):
    """Counts what a session gives out, until it is closed."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(daemon=True)
        self.socket, self.frames, self.ended_s = socket, 0, 0.0
        self.start()

    def run(self) -> None:
        try:
            for message in self.socket:
                self.frames += isinstance(message, bytes)
        except ConnectionClosed:
            pass
        self.ended_s = time.monotonic()

    def close(self) -> None:
        self.socket.close()
        self.join()
