"""The server's tests need the extra everface[serve]."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "httpx")
collect_ignore_glob = [] if all(importlib.util.find_spec(name) for name in NEEDED) else ["test_*.py"]


@pytest.fixture(scope="module")
def host() -> Iterator[Any]:
    """A server over the toy model."""
    from tests.serve.hosting import hosted

    with hosted() as host:
        yield host


@pytest.fixture(scope="module")
def small_host(small_model: Path) -> Iterator[Any]:
    """A server over the small model, loaded."""
    from tests.serve.hosting import hosted

    from everface.core.config import Deployment
    from everface.serve.backend import Backend
    from everface.serve.settings import ServeSettings

    backend = Backend(ServeSettings(weights=small_model, deployment=Deployment(threads=1, sessions=5)))
    with hosted(backend) as host:
        host.wait(lambda: host.service.ready, 60)
        yield host


@pytest.fixture(scope="module")
def token_host() -> Iterator[Any]:
    """A server that wants a token."""
    from tests.serve.hosting import TOKEN, hosted

    with hosted(token=TOKEN) as host:
        yield host
