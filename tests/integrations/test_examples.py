"""The examples are short, import, and put a face into a room and a pipeline; the voices and the network are left out."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.live.faces import live_in_process

from everface.core.errors import Unavailable
from everface.integrations.extras import require
from everface.live.session import LiveSession

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    source = EXAMPLES / f"{name}.py"
    assert len(source.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session() -> Iterator[LiveSession]:
    with live_in_process() as session:
        yield session


def test_the_livekit_agent_gets_its_face(session: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("livekit.agents")
    from livekit import rtc
    from livekit.agents import AgentSession
    from tests.integrations.room import Room

    for name, value in (("URL", "ws://nowhere"), ("API_KEY", "key"), ("API_SECRET", "a secret of at least thirty-two characters")):
        monkeypatch.setenv(f"LIVEKIT_{name}", value)
    module = example("livekit_agent")
    monkeypatch.setattr(module, "avatar", SimpleNamespace(open_live=lambda image: session))
    rooms: dict[str, Room] = {}
    monkeypatch.setattr(rtc, "Room", lambda: Room("everface", rooms))
    started: list[Any] = []

    async def start(voice: AgentSession, agent: Any, room: Any) -> None:
        started.append(voice)
        while len(room.remote_participants["everface"].track_publications) < 2:
            await asyncio.sleep(0.02)

    monkeypatch.setattr(AgentSession, "start", start)
    monkeypatch.setattr(AgentSession, "generate_reply", lambda *_, **__: None)

    async def run() -> None:
        room = Room("agent", rooms)
        async with asyncio.timeout(60):
            await module.talk(SimpleNamespace(room=room, connect=lambda: room.connect("", "")))
            await rooms["everface"].disconnect()
            rtc.EventEmitter.emit(rooms.get("everface", room), "disconnected")

    asyncio.run(run())
    assert started[0].output.audio is not None and isinstance(module.server, module.AgentServer)


def test_the_pipecat_bot_shows_its_face(session: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pipecat")
    from pipecat.frames.frames import OutputImageRawFrame
    from pipecat.processors.filters.identity_filter import IdentityFilter
    from tests.integrations.pipeline import Sink

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    module = example("pipecat_bot")
    monkeypatch.setattr(module, "avatar", SimpleNamespace(open_live=lambda image: session, live_size=lambda: (8, 8)))
    shown: list[np.ndarray] = []
    leave: list[Any] = []

    class Transport:
        def input(self) -> IdentityFilter:
            return IdentityFilter()

        def output(self) -> Sink:
            return Sink(self.take)

        def event_handler(self, event: str) -> Any:
            return leave.append

        def take(self, frame: Any) -> None:
            if isinstance(frame, OutputImageRawFrame):
                shown.append(np.frombuffer(frame.image, np.uint8))

    async def create_transport(arguments: Any, params: Any) -> Transport:
        assert params["webrtc"]().video_out_is_live
        return Transport()

    monkeypatch.setattr(module, "create_transport", create_transport)

    async def run() -> None:
        async with asyncio.timeout(60):
            running = asyncio.create_task(module.bot(SimpleNamespace(handle_sigint=False)))
            while len(shown) < 15 and not running.done():
                await asyncio.sleep(0.02)
            await leave[0](None, None)
            await running

    asyncio.run(run())
    assert len(shown) >= 15 and session.closed


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.agents"])
def test_a_missing_extra_is_one_sentence_with_the_command(module: str) -> None:
    with pytest.raises(Unavailable, match=rf"needs the package {module}, which is missing: pip install 'everface\[livekit\]'$"):
        require(module, "livekit")


def test_everface_imports_neither() -> None:
    code = "import sys, everface, everface.avatar.avatar, everface.integrations; sys.exit(any(m in sys.modules for m in ('livekit', 'pipecat')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
