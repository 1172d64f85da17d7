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
    major, minor = map(int, held.split()[1].split("."))
    same, next_minor, next_major = (f"ABI {major}.{minor}", f"ABI {major}.{minor + 1}", f"ABI {major + 1}.0")
    more = held + "function int ef_new(void)\n"
    less = held.replace("ef_session_cancel", "ef_session_stop")
    assert check_versions(held, more) and check_versions(held, less)
    assert not check_versions(held, more.replace(same, next_minor))
    assert check_versions(held, less.replace(same, next_minor)) and not check_versions(held, less.replace(same, next_major))
    moved = held.replace("struct ef_event pts 16", "struct ef_event pts 24").replace(same, next_minor)
    assert moved.count("pts 24") == 1 and check_versions(held, moved)
