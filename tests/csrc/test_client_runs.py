"""libeverface under sanitizers: sessions of the fake engine and of a real one from several threads, and messages that were changed at random, at both ends.

A long run: `build/csrc/client-address/test_client client 0 1000000`, and the same with `engine`. With clang: csrc/tests/fuzz_protocol.cc.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.csrc import corpus
from tests.csrc.conftest import client_program, fake_cuda
from tests.csrc.test_ring import fixed_addresses
from tests.engine.processes import engine_process

RUNS = {
    "address": {"threads": 20, "client": 4000, "engine": 1500},
    "undefined": {"client": 4000, "engine": 1500},
    "thread": {"threads": 20, "engine": 300},
}


def run_program(sanitize: str, *arguments: str) -> str:
    """What it printed. Skips the test where this kernel has no room for the sanitizer."""
    command = [*fixed_addresses(), str(client_program(sanitize)), *arguments]
    env = os.environ | {"LD_LIBRARY_PATH": str(fake_cuda(sanitize))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"this kernel has no room for the {sanitize} sanitizer")
    assert done.returncode == 0 and "runtime error" not in done.stderr and "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[-8000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)  # a busy machine
@pytest.mark.parametrize("sanitize", RUNS)
def test_runs(sanitize: str) -> None:
    for mode, count in RUNS[sanitize].items():
        assert run_program(sanitize, mode, "0", str(count)) == f"{mode}: {count} runs\n"


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_sessions_of_a_real_engine_from_several_threads(sanitize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them with frames on a GPU, of the fake CUDA runtime."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_cuda()))
    with engine_process(tmp_path / "e.sock"):
        assert run_program(sanitize, "threads", "0", "30", str(tmp_path / "e.sock"), "fake-cuda") == "threads: 30 runs\n"


def test_the_corpus_is_small_and_has_every_kind_of_message() -> None:
    for end in (corpus.TO_LIBRARY, corpus.TO_ENGINE):
        assert corpus.kinds(end) == corpus.all_kinds(end)
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < 200_000
    assert {name: (corpus.FOLDER / name).read_bytes() for name, _ in corpus.inputs()} == dict(corpus.inputs())


@pytest.mark.parametrize("sanitize", ["", *[pytest.param(name, marks=pytest.mark.long) for name in RUNS]])
def test_the_corpus_ends_in_order(sanitize: str) -> None:
    files = sorted(map(str, corpus.FOLDER.iterdir()))
    assert run_program(sanitize, "replay", *files) == f"replay: {len(files)} runs\n"
