"""Five clients that misbehave at a real server leave nothing behind, and the good ones go on. tests.serve.load measures how well."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.serve.load import ServerProcess, report, run


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs 127.0.0.2")
def test_bad_clients_leave_nothing_behind(small_model: Path, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, 5, "--weights", str(small_model), "--threads", "1")
    try:
        load = run(server, clients=20, bad=5, live=2, seconds=12.0, rounds=1)
    finally:
        server.close()
    said = report(load, 2, 13)
    assert load.problems() == [], said
    _, bad = load.phases
    assert bad.counts["refused uploads"] and bad.counts["slow readers"] and bad.counts["half-open, closed by the server"] and bad.counts["requests sent"], said
    assert bad.stored_mb < 40, said  # 32 MB of an upload, at most
    assert len(load.of("frame", "bad")) > 0.5 * len(load.of("frame", "quiet")) > 100, said  # how steadily is not for a shared machine to say
