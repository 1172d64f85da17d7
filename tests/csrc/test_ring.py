"""Two rings over the fake NCCL: thousands of seeded timelines, faults of every kind, and a peer in another process that dies."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.csrc.conftest import Build

TIMELINES = {
    "": {"stress": 1500, "faults": 150, "processes": 4},
    "address": {"stress": 400, "faults": 40},
    "thread": {"stress": 400, "faults": 40},
}


def fixed_addresses() -> list[str]:
    """Sanitizers place their shadow at fixed addresses, which a randomized mapping may hit."""
    return ["setarch", platform.machine(), "--addr-no-randomize"] if shutil.which("setarch") else []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine can be fifty times slower
@pytest.mark.parametrize("sanitize", [pytest.param(s, marks=[pytest.mark.long] if s else [], id=s or "plain") for s in TIMELINES])
def test_timelines(build: Build, sanitize: str) -> None:
    folder = build(sanitize)
    for mode, count in TIMELINES[sanitize].items():
        program = [str(folder / "test_ring"), str(folder / "libfake_nccl.so"), str(folder / "libfake_cudart.so")]
        command = [*(fixed_addresses() if sanitize else []), *program, mode, "0", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            printed, errors = running.communicate(timeout=800)
        if sanitize and "unexpected memory mapping" in errors:
            pytest.skip(f"this kernel has no room for the {sanitize} sanitizer")
        assert running.returncode == 0, errors[-8000:]
        assert printed == f"{mode}: {count} timelines\n"
        assert not list(Path("/dev/shm").glob(f"everface-fake-nccl-{running.pid}-*"))
