"""What a deployment is where nobody decided it."""

from __future__ import annotations

import pytest
import torch

from everface import Deployment, best_deployment
from everface.avatar import this_machine


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(this_machine, "live_threads", lambda dtype: {"bfloat16": 1, "float32": None}[dtype])
    monkeypatch.setattr(this_machine, "cpu_dtypes", lambda: {torch.float32, torch.bfloat16})
    monkeypatch.delenv("EVERFACE_THREADS", raising=False)


def test_a_cuda_device_is_taken_and_nothing_that_was_given_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_deployment() == best_deployment(live=True) == Deployment(device="cuda", dtype="bfloat16")
    assert best_deployment(dtype="fp8", placement="2") == Deployment("2", "cuda", "fp8")
    assert best_deployment(device="cpu") == Deployment()


def test_live_video_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_deployment() == Deployment()
    assert best_deployment(live=True) == Deployment(dtype="bfloat16", threads=1)
    assert best_deployment(live=True, threads=2, dtype="float32") == Deployment(threads=2)
    monkeypatch.setattr(this_machine, "cpu_dtypes", lambda: {torch.float32})
    assert best_deployment(live=True) == Deployment()
