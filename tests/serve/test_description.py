"""The OpenAPI description is true: generated requests, good and bad, get the responses that it names."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serve.hosting import Host

MODES = ("POSITIVE", "NEGATIVE")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_requests_get_what_is_described(host: Host, mode: str) -> None:
    schemathesis: Any = pytest.importorskip("schemathesis")
    hypothesis: Any = pytest.importorskip("hypothesis")
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{host.port}/openapi.json")
    # Files are described as any bytes: what is no audio is refused, which the description cannot say.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        try:
            cases = operation.as_strategy(generation_mode=getattr(schemathesis.GenerationMode, mode))
        except Exception:  # a route without parameters has no bad requests
            continue

        @hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True, database=None)
        @hypothesis.given(case=cases)
        def check(case: Any) -> None:
            nonlocal seen
            seen += 1
            case.call_and_validate(excluded_checks=excluded)

        try:
            check()
        except hypothesis.errors.Unsatisfiable:
            continue
    assert seen >= 40, seen


def test_every_route_is_described(host: Host) -> None:
    paths = host.http.get("/openapi.json").json()["paths"]
    live = [f"/v1/videos/sessions{more}" for more in ("", "/{session_id}", "/{session_id}/chunks", "/{session_id}/interrupt")]
    wanted = ["/healthz", "/metrics", "/readyz", "/v1/avatar", "/v1/speech", "/v1/videos", *live, "/v1/videos/{video_id}", "/v1/videos/{video_id}/content"]
    assert sorted(paths) == wanted
    assert all("401" in method["responses"] for path in paths.values() for method in path.values())
