"""One tiny official checkpoint for the whole session, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.weights.official import write_official


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only by agreement."""
    root = tmp_path_factory.mktemp("official")
    write_official(root, seed=7)
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where conversions are shared by the tests that are not about converting."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def official(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def refusal() -> Callable[[BaseException, str], None]:
    """Holds an error to the house rule: one line, one sentence, and it names what it must."""

    def check(error: BaseException, *named: str) -> None:
        text = str(error)
        assert "\n" not in text and len(text) < 600, text
        for name in named:
            assert name in text, f"{name!r} is not in: {text}"

    return check
