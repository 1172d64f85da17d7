"""The avatar as a participant of its own: joins a room, listens to the agent's audio stream, publishes the face and its voice."""

from __future__ import annotations

import asyncio

from livekit import rtc
from livekit.agents.voice.avatar import AvatarRunner, DataStreamAudioReceiver

from everface.core.log import log
from everface.integrations.livekit.video_generator import AvatarVideoGenerator
from everface.live.session import LiveSession


class AvatarWorker:
    """One live session in one room. `run` it once; the session, which it owns, is closed at its end."""

    def __init__(self, session: LiveSession, *, audio_hz: int = 24_000, room: rtc.Room | None = None) -> None:
        self._session, self._generator = session, AvatarVideoGenerator(session, audio_hz=audio_hz)
        self._room = room or rtc.Room()
        self._gone, self._tasks = asyncio.Event(), set[asyncio.Task[None]]()
        self.joined = asyncio.Event()

    async def run(self, url: str, token: str) -> None:
        """Join, and stay until the room ends, the agent removes the avatar, or `run` is cancelled.

        token: a LiveKit access token of kind agent with the grant room_join, and the agent's identity in lk.publish_on_behalf. Raises what
        LiveKit raises for a room that cannot be joined, and what ended the live session.
        """
        runner = None
        try:
            options = await self._generator.wait_ready()
            self._room.on("disconnected", self._leave)
            await self._room.connect(url, token)
            self.joined.set()
            receiver = DataStreamAudioReceiver(self._room)
            runner = AvatarRunner(self._room, audio_recv=receiver, video_gen=self._generator, options=options)
            receiver.on("clear_buffer", lambda: self._drop_queued(runner))
            await self._until_gone(runner)
        finally:
            if runner is not None:
                await runner.aclose()
            await self._room.disconnect()
            await asyncio.to_thread(self._session.close)

    async def _until_gone(self, runner: AvatarRunner) -> None:
        async def work() -> None:
            await runner.start()  # waits for the agent
            await runner.wait_for_complete()

        tasks = [asyncio.create_task(work()), asyncio.create_task(self._gone.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _drop_queued(self, runner: AvatarRunner) -> None:
        """An interruption: LiveKit's runner would play out what its tracks have queued."""
        task = asyncio.create_task(runner.av_sync.clear_queue())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _leave(self, *_: object) -> None:
        log.info("the avatar left its room")
        self._gone.set()
