"""No worker outlives its parent, however the parent ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from tests.runtime.cluster.toy_pipeline import alive, assert_gone

PARENT = """
import sys, time
sys.path[:0] = {path!r}
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import start_on
pipeline = start_on("2", steps=3)
s = toy.open_session(pipeline, params={{"slow_role": "step0", "slow_s": 0.2}})
toy.push(s, toy.speech(9.0))
print(*pipeline.processes, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(300)", "raise KeyboardInterrupt"])
def test_the_end_of_the_parent_leaves_no_orphan(end: str) -> None:
    code = PARENT.format(path=sys.path, end=end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        stop = threading.Timer(100.0, parent.kill)  # whatever goes wrong
        stop.start()
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end.startswith("time"):
            assert all(alive(pid) for pid in pids)
            parent.send_signal(signal.SIGKILL)
        parent.wait()
        stop.cancel()
    assert_gone(pids, within_s=20.0)
