"""Where the sessions of the contract run: in this process, and in an engine behind libeverface."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.csrc.conftest import prefix  # noqa: F401 a fixture
from tests.engine.processes import engine_process
from tests.live.faces import live_in_engine, live_in_process

from everface.client.engine_client import EngineClient


@pytest.fixture(scope="session")
def engine_client(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineClient]:  # noqa: F811 the fixture
    pytest.importorskip("cffi")
    path = tmp_path_factory.mktemp("engine") / "e.sock"
    with engine_process(path), EngineClient(path, prefix=prefix) as engine:
        yield engine


@pytest.fixture(params=["in process", "in an engine"])
def live(request: pytest.FixtureRequest) -> Any:
    if request.param == "in process":
        return live_in_process
    return partial(live_in_engine, request.getfixturevalue("engine_client"))
