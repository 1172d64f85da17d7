"""Frames on a GPU, from an engine to a program, with the fake CUDA runtime at both ends, and with the real one where there is a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.client.kills import COMMAND
from tests.csrc.conftest import fake_cuda
from tests.engine.processes import ROOT, WITHOUT_CLIENTS, engine_process, held, links

from everface.core.native import find_cudart

pytest.importorskip("cffi")
LONGEST_S = 60.0
REAL = pytest.param("real", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def command(mode: str, prefix: Path, device: int, engine: Path | str, *settings: str) -> list[str]:
    return [sys.executable, "-m", "tests.client.gpu_client", mode, str(prefix), str(device), str(engine), *settings]


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200, cwd=ROOT, env=env)  # type: ignore[arg-type]  any number of them


@pytest.fixture(params=["fake", REAL])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """For this process's children."""
    folder = str(fake_cuda()) if request.param == "fake" else str(Path(find_cudart()).parent)
    monkeypatch.setenv("LD_LIBRARY_PATH", folder)
    return request.param


@pytest.fixture
def engine(cuda: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with engine_process(tmp_path / "e.sock") as process:
        yield process


def wait_until(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + LONGEST_S
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_frames_on_a_gpu_are_those_in_host_memory(engine: subprocess.Popen[bytes], cuda: str, prefix: Path, tmp_path: Path) -> None:
    devices = (-1, 0, 3) if cuda == "fake" else (-1, 0)
    said = {device: run("frames", prefix, device, tmp_path / "e.sock") for device in devices}
    assert all(done.returncode == 0 for done in said.values()), {device: done.stderr for device, done in said.items()}
    assert len({done.stdout for done in said.values()}) == 1 and len(said[0].stdout) == 65


@pytest.mark.long
def test_an_engine_that_was_lost_gives_frames_on_the_gpu_again(cuda: str, prefix: Path) -> None:
    lost = run("lose", prefix, 0, COMMAND)
    assert lost.returncode == 0 and len(lost.stdout) == 65, lost.stderr


@pytest.mark.parametrize("cuda", ["fake"], indirect=True)
def test_memory_is_freed_when_the_client_has_closed_it_and_not_before(engine: subprocess.Popen[bytes], prefix: Path, tmp_path: Path) -> None:
    def memories() -> int:
        return sum("fake cuda" in link for link in links(engine))

    for killed in (False, True):
        with subprocess.Popen(command("hold", prefix, 0, tmp_path / "e.sock"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as client:
            assert client.stdin and client.stdout and client.stdout.readline() == b"held\n"
            wait_until(lambda: held(engine) == WITHOUT_CLIENTS)  # its session is over
            assert memories() == 1
            if killed:
                client.kill()
            else:
                client.stdin.write(b"\n")
                client.stdin.flush()
                assert client.stdout.readline() == b"released\n"
            wait_until(lambda: memories() == 0)
            client.kill()


@pytest.mark.parametrize("cuda", ["fake"], indirect=True)
def test_what_cannot_be_is_refused_in_a_sentence(cuda: str, prefix: Path, tmp_path: Path) -> None:
    """By the library, by the fake engine, and by one that finds no CUDA runtime or another one's GPU."""
    for arguments, status, word in (
        (("fake", "format=2"), "EF_BAD_INPUT", "EF_RGB24"),
        (("fake",), "EF_BAD_INPUT", "the fake engine has no GPU"),
    ):
        done = run("refused", prefix, 0, *arguments)
        assert done.returncode == 1 and done.stderr.startswith(status) and word in done.stderr, done.stderr
    done = run("refused", prefix, 9, "fake")
    assert done.stderr.startswith("EF_UNAVAILABLE: CUDA device 9 cannot be used"), done.stderr


def test_without_cuda_either_end_says_so(prefix: Path, tmp_path: Path) -> None:
    for name in ("libcudart.so.13", "libcudart.so.12"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        pytest.skip("this machine has CUDA")
    with engine_process(tmp_path / "e.sock"):
        done = run("refused", prefix, 0, tmp_path / "e.sock")
        assert done.stderr.startswith("EF_UNAVAILABLE: frames on a GPU need libcudart") and done.stderr.count("\n") == 1, done.stderr
        if torch.version.cuda is None:
            done = run("refused", prefix, 0, tmp_path / "e.sock", env=os.environ | {"LD_LIBRARY_PATH": str(fake_cuda())})
            assert done.stderr.startswith("EF_UNAVAILABLE: an engine with frames on a GPU needs libcudart") and done.stderr.count("\n") == 1, done.stderr
