"""A folder for the files of a channel."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="channel") as name:  # tmp_path can be longer than the path of a socket may be
        yield Path(name)
