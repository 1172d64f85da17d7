"""The OpenAPI description is true: generated requests, good and bad, get the responses that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.serve.hosting import Host, hosted

schemathesis: Any = pytest.importorskip("schemathesis")
hypothesis: Any = pytest.importorskip("hypothesis")


@pytest.fixture(scope="module")
def description() -> Iterator[Any]:
    with hosted() as host:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{host.port}/openapi.json")


schema = schemathesis.pytest.from_fixture("description")


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True)
def test_requests_get_what_is_described(case: Any) -> None:
    # Files are described as any bytes, and a video as any id: what is none is refused, which the description cannot say.
    case.call_and_validate(excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])


def test_every_route_is_described(host: Host) -> None:
    paths = host.http.get("/openapi.json").json()["paths"]
    wanted = ["/healthz", "/metrics", "/readyz", "/v1/avatar", "/v1/speech", "/v1/videos", "/v1/videos/{video_id}", "/v1/videos/{video_id}/content"]
    assert sorted(paths) == wanted
    assert all("401" in method["responses"] for path in paths.values() for method in path.values())
