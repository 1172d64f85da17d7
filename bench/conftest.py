"""Options of the benches."""

from __future__ import annotations

import pytest

from bench.parts import SOAK_S


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=float, default=SOAK_S, help="seconds that a session streams once it is warm")
    parser.addoption("--attention", default="auto", help="attention backends of steps and sessions, each a row: bench/attention.py")
