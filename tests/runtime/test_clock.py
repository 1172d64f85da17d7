"""The wall clock may jump: nothing that waits, paces or expires reads it."""

from __future__ import annotations

import re

import pytest
from tests.test_house import ROOT

ROOMS = ("runtime", *(f"python/everface/{room}" for room in ("core", "live", "avatar", "models", "media", "engine", "client", "serve", "integrations")))
WALL = re.compile(r"\btime\.(time|time_ns|localtime)\b|\bdatetime\.now\b|from time import")
WALL_CPP = re.compile(r"\bsystem_clock\b|CLOCK_REALTIME|gettimeofday|\bsem_timedwait\b|pthread_cond_timedwait")
SHOWN = {  # times that a caller is shown, and nothing else
    "python/everface/serve/videos/jobs.py": 2,
    "python/everface/serve/stream/http_session.py": 1,
}


@pytest.mark.parametrize("room", ROOMS)
def test_times_are_those_of_the_monotonic_clock(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        assert len(WALL.findall(path.read_text())) == SHOWN.get(name, 0), name


def test_so_are_those_of_the_native_code() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".c", ".cc", ".cpp", ".h", ".hpp")]
    assert sources and not [path for path in sources if WALL_CPP.search(path.read_text())]
