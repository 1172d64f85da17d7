"""Signing is on in these tests, with a key in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everface.provenance import signing


@pytest.fixture(autouse=True)
def key_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("EVERFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVERFACE_SIGNING", raising=False)
    signing._find.cache_clear()
    yield tmp_path / "cache" / "signing"
    signing._find.cache_clear()
