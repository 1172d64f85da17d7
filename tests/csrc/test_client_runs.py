"""libeverface under sanitizers: the fake engine's sessions from several threads, and messages that were changed at random, at both ends.

A long run: `build/csrc/client-address/test_client client 0 1000000`, and the same with `engine`.
"""

from __future__ import annotations

import subprocess

import pytest
from tests.csrc.conftest import install_client, run
from tests.csrc.test_ring import fixed_addresses

RUNS = {
    "address": {"threads": 20, "client": 4000, "engine": 1500},
    "undefined": {"client": 4000, "engine": 1500},
    "thread": {"threads": 20, "engine": 300},
}


@pytest.mark.long
@pytest.mark.timeout(1200)  # a busy machine
@pytest.mark.parametrize("sanitize", RUNS)
def test_runs(sanitize: str) -> None:
    folder = install_client(sanitize).parent
    run("cmake", "-S", folder.parents[2], "-B", folder, "-DEVERFACE_TESTS=ON")
    run("cmake", "--build", folder, "--target", "test_client")
    for mode, count in RUNS[sanitize].items():
        command = [*fixed_addresses(), str(folder / "test_client"), mode, "0", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        if "unexpected memory mapping" in done.stderr:
            pytest.skip(f"this kernel has no room for the {sanitize} sanitizer")
        assert done.returncode == 0 and "runtime error" not in done.stderr, done.stderr[-8000:]
        assert done.stdout == f"{mode}: {count} runs\n"
