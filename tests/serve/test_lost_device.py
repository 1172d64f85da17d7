"""What a server says of a pipeline that is brought back, and of one that is lost for good. Its stages are processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.serve.hosting import Host, ToyBackend, end_of, hosted

from everface.runtime.cluster.process_pipeline import ProcessPipeline

WAIT_S = 60.0


def wait_status(host: Host, status: str) -> dict[str, Any]:
    host.wait(lambda: host.http.get("/readyz").json()["status"] == status, WAIT_S)
    response = host.http.get("/readyz")
    assert response.status_code == (200 if status == "ready" else 503)
    return response.json()


@pytest.mark.long
def test_readiness_follows_the_pipeline(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    backend = ToyBackend(placement="2", lost=str(lost))
    pipeline = backend.pipeline
    assert isinstance(pipeline, ProcessPipeline)
    with hosted(backend) as host:
        socket = host.started(idle=True)
        os.kill(pipeline.processes[0], signal.SIGKILL)
        assert wait_status(host, "recovering")["reason"] is None
        assert host.http.get("/healthz").status_code == 200
        fatal, code, _ = end_of(host.asking())
        assert fatal is not None and "recovering" in fatal["message"] and code == 1013
        wait_status(host, "ready")
        host.started().close()

        lost.touch()  # the stage that is started again finds no device
        os.kill(pipeline.processes[0], signal.SIGKILL)
        reason = wait_status(host, "failed")["reason"]
        assert "stage step0" in reason and "CUDA error: no device is there" in reason
        assert host.http.get("/healthz").status_code == 503 and "everface_ready 0.0" in host.http.get("/metrics").text
        for told in (socket, host.asking()):
            fatal, code, _ = end_of(told, WAIT_S)
            assert fatal is not None and "no device is there" in fatal["message"] and code in (1011, 1013)  # the session failed; there is none
        assert host.http.post("/v1/videos/sessions", files={"format": (None, "fmp4")}).json()["error"]["message"] == reason
