"""What a live session in an engine's thread says passes the border to the client, with the library in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from tests.client.kills import TONE, read_for
from tests.live.faces import live_in_process

from everface.client.engine_client import EngineClient, EngineSession
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.events import QualityChange, VideoFrame
from everface.live.session import LiveSession

pytest.importorskip("cffi")


@pytest.fixture
def both(prefix: Path, tmp_path: Path) -> Iterator[tuple[LiveSession, EngineSession]]:
    """A session at either end, that has given out a frame."""
    with live_in_process(idle=False, paced=False) as live:

        def opener(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
            return live, (8, 8)

        engine = Engine(opener, fps=25)
        threading.Thread(target=engine.serve, args=(listen(tmp_path / "e.sock"),), daemon=True).start()
        with EngineClient(tmp_path / "e.sock", prefix=prefix) as client, client.open_live("toy", idle=False, paced=False) as session:
            session.push_audio(TONE)
            assert isinstance(read_for(session, 20, VideoFrame)[-1], VideoFrame)
            yield live, session
        engine.stop(0.0)


def test_a_change_of_quality_is_an_event(both: tuple[LiveSession, EngineSession]) -> None:
    live, session = both
    change = QualityChange(2, "forwards 1, each frame shown for 2", 1.25)
    with live._changed:
        live._out.put(change)
        live._changed.notify_all()
    assert read_for(session, 20, QualityChange)[-1] == change


def test_every_count_passes(both: tuple[LiveSession, EngineSession]) -> None:
    """Each has a value that no other one has."""
    live, session = both
    session.end_segment()
    read_for(session, 1.0)
    with live._lock:
        live._count.update({name: 100 + at for at, name in enumerate(live._count)})
    here, there = live.stats(), session.stats()
    assert astuple(there) == pytest.approx(astuple(here)) and there.refill_frames == live._count["refill"] > 100
