"""A change of quality passes the border: from a live session in an engine's thread to the client, with the library in between."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.client.kills import TONE, read_for
from tests.live.faces import live_in_process

from everface.client.engine_client import EngineClient
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.events import QualityChange, VideoFrame
from everface.live.session import LiveSession

pytest.importorskip("cffi")


def test_a_change_of_quality_is_an_event(prefix: Path, tmp_path: Path) -> None:
    change = QualityChange(2, "forwards 1, each frame shown for 2", 1.25)
    with live_in_process(idle=False, paced=False) as live:

        def opener(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
            return live, (8, 8)

        engine = Engine(opener, fps=25)
        threading.Thread(target=engine.serve, args=(listen(tmp_path / "e.sock"),), daemon=True).start()
        with EngineClient(tmp_path / "e.sock", prefix=prefix) as client, client.open_live("toy", idle=False, paced=False) as session:
            session.push_audio(TONE)
            assert isinstance(read_for(session, 20, VideoFrame)[-1], VideoFrame)
            with live._changed:
                live._out.put(change)
                live._changed.notify_all()
            assert read_for(session, 20, QualityChange)[-1] == change
        engine.stop(0.0)
