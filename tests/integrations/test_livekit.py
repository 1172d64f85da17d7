"""LiveKit's own AgentSession, streams and AvatarRunner with our avatar in a room; the room alone is a fake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from tests.live.faces import live_in_process

pytest.importorskip("livekit.agents")

from livekit import api, rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.avatar import AudioSegmentEnd
from tests.integrations.room import Room

from everface.core.errors import BadInput, Unavailable
from everface.integrations.livekit import AvatarSession, AvatarVideoGenerator
from everface.live.session import LiveSession

HZ = 24_000
KEY = {"livekit_url": "ws://nowhere", "api_key": "key", "api_secret": "a secret of at least thirty-two characters"}


def speech(seconds: float) -> np.ndarray:
    return (8000 * np.sin(np.arange(int(HZ * seconds)) * 0.05) + 9000).astype(np.int16)


async def voice(samples: np.ndarray) -> AsyncIterator[rtc.AudioFrame]:
    for piece in np.array_split(samples, max(1, len(samples) * 50 // HZ)):
        yield rtc.AudioFrame(piece.tobytes(), HZ, 1, len(piece))


class Stage:
    """An agent with a face in a room, and what its tracks were given."""

    def __init__(self, session: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
        self.face, self.rooms = session, {}
        self.video: list[bytes] = []
        self.audio: list[bytes] = []
        self.metrics: list[Any] = []
        self.finished: list[Any] = []
        show, play = rtc.VideoSource.capture_frame, rtc.AudioSource.capture_frame

        def capture_video(source: Any, frame: rtc.VideoFrame, **options: Any) -> None:
            self.video.append(bytes(frame.data))
            show(source, frame, **options)

        async def capture_audio(source: Any, frame: rtc.AudioFrame) -> None:
            self.audio.append(bytes(frame.data))
            await play(source, frame)

        monkeypatch.setattr(rtc.VideoSource, "capture_frame", capture_video)
        monkeypatch.setattr(rtc.AudioSource, "capture_frame", capture_audio)
        self.cleared = 0

        def clear_queue(source: Any, clear: Any = rtc.AudioSource.clear_queue) -> None:
            self.cleared += 1
            clear(source)

        monkeypatch.setattr(rtc.AudioSource, "clear_queue", clear_queue)
        monkeypatch.setattr(rtc, "Room", lambda: Room("everface", self.rooms))

    async def __aenter__(self) -> Stage:
        self.room = Room("agent", self.rooms)
        await self.room.connect("", "")
        self.agent, self.avatar = AgentSession(), AvatarSession(self.face)
        self.agent.on("metrics_collected", self.metrics.append)
        await self.avatar.start(self.agent, self.room, **KEY)  # pyright: ignore[reportArgumentType]  the room is a fake
        assert self.agent.output.audio is not None
        self.agent.output.audio.on("playback_finished", self.finished.append)
        await self.agent.start(Agent(instructions=""))
        await self.avatar.wait_for_join()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.aclose()
        await self.avatar.aclose()

    def played(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.audio), np.int16)


def on_stage(monkeypatch: pytest.MonkeyPatch, play: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), Stage(session, monkeypatch) as stage:
            await play(stage)

    with live_in_process() as session:
        asyncio.run(run())


def test_the_agent_speaks_through_the_avatar(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        assert len(stage.video) > 5 and not stage.audio  # alive, and silent
        await stage.agent.say("hello", audio=voice(speech(1.3)), add_to_chat_ctx=False).wait_for_playout()
        played = stage.played()
        assert np.array_equal(played[played != 0], speech(1.3))
        (finished,) = stage.finished
        assert not finished.interrupted and finished.playback_position == pytest.approx(1.3, abs=0.041)
        frames = len(stage.video)
        await asyncio.sleep(0.6)
        assert len(set(stage.video[frames:])) > 4  # moves on in silence; the toy repeats its four frames a block
        assert [m.metrics.type for m in stage.metrics] == ["avatar_metrics"] and stage.metrics[0].metrics.avatar_joined_time

    on_stage(monkeypatch, play)


def test_an_interruption_is_quick_and_what_follows_is_whole(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def play(stage: Stage) -> None:
        handle = stage.agent.say("a long story", audio=voice(speech(6.0)), add_to_chat_ctx=False)
        while len(stage.played()) < 1.0 * HZ:
            await asyncio.sleep(0.01)
        handle.interrupt()
        await asyncio.sleep(0.1)
        stopped = len(stage.played())
        await handle.wait_for_playout()
        await asyncio.sleep(0.3)
        assert len(stage.played()) == stopped <= 2.5 * HZ and stage.cleared == 1
        (first,) = stage.finished
        assert first.interrupted and 0.9 < first.playback_position < 2.5
        await stage.agent.say("and then", audio=voice(speech(0.6)), add_to_chat_ctx=False).wait_for_playout()
        played = stage.played()[stopped:]
        assert np.array_equal(played[played != 0], speech(0.6))
        assert len(stage.finished) == 2 and not stage.finished[1].interrupted
        assert stage.finished[1].playback_position == pytest.approx(0.6, abs=0.041)
        calls = stage.rooms["everface"].local_participant.calls
        assert calls == {"lk.playback_started": 2, "lk.playback_finished": 2}

    with caplog.at_level(logging.WARNING):
        on_stage(monkeypatch, play)
    assert "arbitrarily" not in caplog.text


def test_the_worker_leaves_with_its_session_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        await stage.avatar.aclose()
        assert stage.face.closed and "everface" not in stage.rooms

    on_stage(monkeypatch, play)


def test_an_avatar_that_cannot_start_raises() -> None:
    with pytest.raises(BadInput, match="give one of them"):
        AvatarSession()

    async def start(connected: bool) -> None:
        room = Room("agent", {})
        if connected:
            await room.connect("", "")
        await AvatarSession(session).start(AgentSession(), room, **KEY)  # pyright: ignore[reportArgumentType]  the room is a fake

    async def close() -> None:
        await AvatarSession(session).aclose()

    with live_in_process() as session:
        with pytest.raises(BadInput, match=r"ctx\.connect"):
            asyncio.run(start(False))
        assert not session.closed
        asyncio.run(close())  # it has a session, though no worker was started
        assert session.closed
        with pytest.raises(Unavailable, match="no frame"):
            asyncio.run(start(True))


def test_a_worker_elsewhere_is_launched_with_a_token_for_this_room_alone() -> None:
    launched: list[tuple[str, str]] = []

    async def launch(url: str, token: str) -> None:
        launched.append((url, token))

    async def run() -> None:
        room = Room("agent", {})
        await room.connect("", "")
        await AvatarSession(launch=launch, identity="ada").start(AgentSession(), room, **KEY)  # pyright: ignore[reportArgumentType]  the room is a fake

    asyncio.run(run())
    ((url, token),) = launched
    claims = api.TokenVerifier(KEY["api_key"], KEY["api_secret"]).verify(token)
    assert url == KEY["livekit_url"] and claims.identity == "ada" and claims.kind == "agent"
    assert claims.video and claims.video.room_join and claims.video.room == "room"
    assert claims.attributes == {"lk.publish_on_behalf": "agent"}


def test_ends_without_audio_come_at_once_and_another_rate_is_refused() -> None:
    async def run() -> None:
        generator = AvatarVideoGenerator(session)
        for _ in range(3):
            await generator.push_audio(AudioSegmentEnd())
        with pytest.raises(BadInput, match="audio_hz"):
            await generator.push_audio(rtc.AudioFrame.create(16_000, 1, 160))
        out = aiter(generator)
        assert [type(await anext(out)) for _ in range(3)] == [AudioSegmentEnd] * 3

    with live_in_process() as session:
        asyncio.run(run())
