"""Memory of a GPU between benches of whole models."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Frees what the bench before has left: two models of 14B and their rings are most of a device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
