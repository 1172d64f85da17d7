"""A few kills; `python -m tests.client.kills PREFIX 0 200` makes many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.kills import KINDS, Host, host_of, kill_once

pytest.importorskip("cffi")


@pytest.fixture(scope="module")
def host(prefix: Path) -> Iterator[Host]:
    with host_of(prefix) as host:
        yield host


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=lambda seed: KINDS[seed].__name__)
def test_a_kill_loses_nothing(host: Host, seed: int) -> None:
    kill_once(host, seed)
