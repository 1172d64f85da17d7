"""The ABI is the committed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.csrc.abi import DUMP, check_versions, describe
from tests.csrc.conftest import ROOT


def test_the_abi_is_the_committed_one(prefix: Path) -> None:
    pytest.importorskip("cffi")
    held, now = DUMP.read_text(), describe(prefix)
    assert check_versions(held, now) == []
    assert now == held, "write csrc/abi.txt again: python -m tests.csrc.abi PREFIX"
    assert f"EVERFACE_ABI {held.split()[1].split('.')[0]})" in (ROOT / "CMakeLists.txt").read_text()


def test_a_change_without_a_version_is_seen() -> None:
    held = DUMP.read_text()
    more = held + "function int ef_new(void)\n"
    less = held.replace("ef_session_cancel", "ef_session_stop")
    assert check_versions(held, more) and check_versions(held, less)
    assert not check_versions(held, more.replace("ABI 1.0", "ABI 1.1"))
    assert check_versions(held, less.replace("ABI 1.0", "ABI 1.1")) and not check_versions(held, less.replace("ABI 1.0", "ABI 2.0"))
    moved = held.replace("struct ef_event pts 16", "struct ef_event pts 24").replace("ABI 1.0", "ABI 1.1")
    assert moved.count("pts 24") == 1 and check_versions(held, moved)
