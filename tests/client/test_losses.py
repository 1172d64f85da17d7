"""Engines that do not come back, texts that are not UTF-8, and threads that wait beside each other."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.client.kills import TONE, read_for
from tests.engine.processes import engine_process

from everface.client.engine_client import EngineClient, EngineSession
from everface.core.errors import BadInput, Unavailable
from everface.live.events import VideoFrame
from everface.runtime.events import Recovering

pytest.importorskip("cffi")
GIVE_UP_S = 1.0


def events_to_the_end(session: EngineSession, within_s: float) -> list[object]:
    """All that comes until the session is closed, its error last."""
    events: list[object] = []
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            event = session.read(0.2)
        except Unavailable as error:
            return [*events, error]
        if event is not None and not isinstance(event, VideoFrame):
            events.append(event)
    pytest.fail(f"the session did not end in {within_s} s: {events[:5]}")


@pytest.mark.parametrize("after", ["nothing", "a socket that takes connections and says nothing"])
def test_a_session_ends_when_its_engine_does_not_come_back(prefix: Path, tmp_path: Path, after: str) -> None:
    path = tmp_path / "e.sock"
    with engine_process(path) as process, EngineClient(path, prefix=prefix, timeout_s=GIVE_UP_S) as engine, engine.open_live("toy", idle=False, paced=False) as session:
        session.push_audio(TONE)
        read_for(session, 10, VideoFrame)
        process.kill()
        process.wait(10)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as silent:
            if after != "nothing":
                silent.bind(str(path))
                silent.listen(4)
            *events, error = events_to_the_end(session, 20 * GIVE_UP_S)
    assert sum(isinstance(event, Recovering) for event in events) == 1
    assert "did not come back in 1000 ms" in str(error)


def test_two_threads_that_wait_do_not_wake_each_other(prefix: Path) -> None:
    with EngineClient(fake=True, prefix=prefix) as engine, engine.open_live("toy", idle=False, paced=True) as session:
        threads = [threading.Thread(target=session.read, args=(1.5,)) for _ in range(2)]
        before_s = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.process_time() - before_s < 0.75  # once they took a core


def test_a_text_that_is_not_utf8_is_refused_and_the_session_goes_on(prefix: Path, tmp_path: Path) -> None:
    with EngineClient(fake=True, prefix=prefix) as engine, engine.open_live("toy", idle=False, paced=False) as session:
        for name in (b"caf\xe9.png", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"):
            with pytest.raises(BadInput, match="is not UTF-8"):
                session.change(image=os.fsdecode(name))
            with pytest.raises(BadInput, match="is not UTF-8"):
                session.change(prompt=os.fsdecode(name))
            with pytest.raises(BadInput, match="is not UTF-8"):
                engine.open_live(os.fsdecode(name))
            with pytest.raises(BadInput, match="is not UTF-8"):
                engine.open_live("toy", prompt=os.fsdecode(name))
        image = tmp_path / "caf\u00e9 \u20ac \U0001f600.png"
        image.touch()
        session.change(image=image)
        session.push_audio(TONE)
        read_for(session, 10, VideoFrame)
