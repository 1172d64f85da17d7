"""Set before anything numerical is imported: one thread a test process, kernels under Triton's interpreter without a GPU."""

import os
import sys
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "python")  # child processes test this tree, not an installed one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same sums in the same order, alone or under pytest -n
os.environ["EVERFACE_SIGNING"] = "off"  # signatures differ from run to run; tests/provenance turns them on

import torch

if not torch.cuda.is_available():
    # Triton reads the variable at its first import and never again: tl.sum and its like are jitted there and then.
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "triton was imported before conftest.py"
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

torch.set_num_threads(1)

pytest_plugins = ["tests.small_model", "tests.small_live_talk"]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The reference data that every module is held to."""
    return Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
