"""A fleet of servers on a real Ray cluster on this machine: its replicas are toys. `tests/serve/ray_load.py` measures one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tests.serve.hosting import ToyBackend
from tests.serve.ray_fleet import SESSIONS, Fleet, Reading, cluster, opened, wait
from tests.serve.ray_load import killed, scaled

from everface.core.errors import BadInput
from everface.serve.ray import build, replica_app
from everface.serve.settings import ServeSettings

pytest.importorskip("ray")
pytest.importorskip("ray.serve")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
REPLICAS = 3


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    with cluster() as fleet:
        yield fleet


def test_every_replica_serves_its_sessions_and_one_that_dies_takes_only_its_own_along(servers: Fleet) -> None:
    servers.run(REPLICAS, REPLICAS)
    for row in killed(servers):
        print(row.line())
        assert row.passed
    again = [Reading(opened()) for _ in range(SESSIONS)]
    wait(lambda: all(reading.frames > 10 for reading in again))
    for reading in again:
        reading.close()


def test_it_grows_with_open_sessions_and_shrinks_without_a_failed_one(servers: Fleet) -> None:
    row = scaled(servers)
    assert row.passed, row.line()


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
