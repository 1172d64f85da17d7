"""How many threads live video gets."""

import time

import pytest
import torch

from everface.core.machine import live_threads


@pytest.mark.parametrize(("gain", "expected"), [(1.0, 1), (1.15, 1), (2.0, None)])
def test_threads_that_bring_nothing_are_left_out(gain: float, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "mm", lambda a, b: time.sleep(0.01 / (gain if torch.get_num_threads() == 2 else 1)))
    try:
        torch.set_num_threads(2)
        assert live_threads("bfloat16") == expected and torch.get_num_threads() == 2
        assert live_threads("fp8") == expected
    finally:
        torch.set_num_threads(before)


def test_one_thread_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "mm", None)
    assert live_threads("float32") is None
