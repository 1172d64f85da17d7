"""A fleet of servers on a real Ray cluster on this machine: its replicas are toys, whose steps sleep."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.serve.hosting import ToyBackend, next_event
from tests.test_house import ROOT
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from everface.core.errors import BadInput
from everface.serve.ray import build, fleet, replica_app
from everface.serve.settings import Limits, ServeSettings

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SESSIONS, REPLICAS = 2, 3
WAIT_S = 120.0
PORT = 8123


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.update(RAY_raylet_start_wait_time_s="300")  # a busy machine takes its time
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT)])  # replicas import the toys
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "EVERFACE_SIGNING": "off"}}
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20, runtime_env=environment)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


def run(least: int, most: int, shrink_s: float = 3.0) -> None:
    settings = ServeSettings(limits=Limits(sessions=SESSIONS, drain_s=10.0))
    application = fleet(settings, least=least, most=most, make_backend=lambda _: ToyBackend(), shrink_s=shrink_s)
    serve.run(application, name="everface", route_prefix="/")
    wait(lambda: running() >= least)


def wait(done: Any) -> None:
    end_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def running() -> int:
    states = serve.status().applications["everface"].deployments["everface"].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


def opened() -> ClientConnection:
    """A session; asks again where a replica has no place."""
    end_s = time.monotonic() + WAIT_S
    while True:
        socket = connect(f"ws://127.0.0.1:{PORT}/v1/avatar/stream", max_size=None, compression=None, open_timeout=WAIT_S).__enter__()
        try:
            socket.send(json.dumps({"type": "start", "format": "jpeg", "paced": True}))
            next_event(socket, "started")
            return socket
        except ConnectionClosed:
            assert time.monotonic() < end_s
            time.sleep(0.2)


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


def replicas() -> list[Any]:
    names = [entry for entry in ray.util.list_named_actors(all_namespaces=True) if "REPLICA" in entry["name"] and "everface" in entry["name"]]
    return [ray.get_actor(entry["name"], namespace=entry["namespace"]) for entry in names]


def test_every_replica_serves_its_sessions_and_one_that_dies_takes_only_its_own_along(cluster: None) -> None:
    run(REPLICAS, REPLICAS)
    readings = [Reading(opened()) for _ in range(REPLICAS * SESSIONS)]
    wait(lambda: all(reading.frames > 50 for reading in readings))
    assert not any(reading.ended_s for reading in readings)
    killed_s = time.monotonic()
    ray.kill(replicas()[0])
    wait(lambda: sum(bool(reading.ended_s) for reading in readings) == SESSIONS)
    told_s = [reading.ended_s - killed_s for reading in readings if reading.ended_s]
    left = [reading for reading in readings if not reading.ended_s]
    before = [reading.frames for reading in left]
    wait(lambda: all(reading.frames > count + 50 for reading, count in zip(left, before)))
    print(f"the sessions of the replica that was killed were told after {', '.join(f'{s * 1e3:.0f} ms' for s in told_s)}")
    assert max(told_s) < 5.0 and not any(reading.ended_s for reading in left)
    wait(lambda: running() == REPLICAS)
    again = [Reading(opened()) for _ in range(SESSIONS)]
    wait(lambda: all(reading.frames > 10 for reading in again))
    for reading in (*left, *again):
        reading.socket.close()


def test_it_grows_with_open_sessions_and_shrinks_without_a_failed_one(cluster: None) -> None:
    run(1, REPLICAS)
    wait(lambda: running() == 1)
    readings = [Reading(opened()) for _ in range(SESSIONS)]
    wait(lambda: running() > 1)
    readings += [Reading(opened()) for _ in range(SESSIONS)]
    wait(lambda: all(reading.frames > 20 for reading in readings))
    kept = readings.pop(0)
    for reading in readings:
        reading.socket.close()
    wait(lambda: running() == 1)
    before = kept.frames
    wait(lambda: kept.frames > before + 20 or kept.ended_s)
    kept.socket.close()


def test_a_replica_has_every_route_but_those_of_videos() -> None:
    backend = ToyBackend()
    try:
        with TestClient(replica_app(ServeSettings(), backend), base_url="http://localhost") as client:
            assert client.get("/healthz").status_code == client.get("/").status_code == client.get("/v1/avatar").status_code == 200
            assert client.get("/v1/videos").status_code == client.post("/v1/videos", files={"audio": b"x"}).status_code == 404
    finally:
        backend.close()


def test_arguments_are_checked() -> None:
    for arguments in ({"wheels": "4"}, {"gpus": "many"}, {"least": "5", "most": "2"}, {"dtype": "int3"}):
        with pytest.raises(BadInput):
            build(arguments)
    assert build({"sessions": "2", "most": "3"})
