"""The agent's side: invites the avatar into the agent's room and sends the agent's voice to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from livekit import api, rtc
from livekit.agents import AgentSession
from livekit.agents.voice.avatar import AvatarSession as LiveKitAvatarSession
from livekit.agents.voice.avatar import DataStreamAudioOutput

from everface.core.errors import BadInput
from everface.core.log import log
from everface.integrations.livekit.worker import AvatarWorker
from everface.live.session import LiveSession

Launch = Callable[[str, str], Awaitable[None]]
JOIN_S = 60.0
CLEAR_S = 2.0  # an interruption waits so long for the avatar, then the agent goes on without it; without a limit it could wait for ever


class AvatarSession(LiveKitAvatarSession[str]):
    """Gives an AgentSession a face. `await avatar.start(agent_session, room=..., livekit_url=...)` before `agent_session.start`.

    session: a live session, which this process animates and this object closes. Or launch: called with the room's URL and a token, it has
    an AvatarWorker run on another machine. Emits "metrics_collected" with AvatarMetrics, as LiveKit's own avatars do.
    """

    def __init__(
        self, session: LiveSession | None = None, *, launch: Launch | None = None, audio_hz: int = 24_000, identity: str = "everface"
    ) -> None:
        super().__init__()
        if (session is None) == (launch is None):
            raise BadInput("an AvatarSession needs a live session to animate here, or launch= to start a worker elsewhere: give one of them")
        self._session, self._launch, self._hz, self._identity = session, launch, audio_hz, identity
        self._worker: asyncio.Task[None] | None = None

    @property
    def avatar_identity(self) -> str:
        return self._identity

    @property
    def provider(self) -> str:
        return "everface"

    async def start(
        self,
        agent_session: AgentSession,
        room: rtc.Room,
        *,
        livekit_url: str = "",
        api_key: str | None = None,
        api_secret: str | None = None,
    ) -> None:
        """Returns when the avatar has joined. Key and secret are LIVEKIT_API_KEY and LIVEKIT_API_SECRET of the environment by default.

        Raises BadInput for a room that is not connected, and whatever prevented the avatar from joining.
        """
        if not room.isconnected() or not livekit_url:
            raise BadInput("the avatar joins a room that the agent is in: await ctx.connect() first, and give livekit_url")
        try:
            await self._join(agent_session, room, livekit_url, api_key, api_secret)
        except BaseException:
            await self.aclose()
            raise
        agent_session.output.replace_audio_tail(
            DataStreamAudioOutput(
                room, destination_identity=self._identity, sample_rate=self._hz, wait_remote_track=rtc.TrackKind.KIND_VIDEO,
                clear_buffer_timeout=CLEAR_S, wait_playback_start=True,
            )
        )

    async def _join(self, agent_session: AgentSession, room: rtc.Room, livekit_url: str, api_key: str | None, api_secret: str | None) -> None:
        await super().start(agent_session, room)
        grants = api.VideoGrants(room_join=True, room=room.name)
        token = api.AccessToken(api_key, api_secret).with_kind("agent").with_identity(self._identity).with_name(self._identity)
        token = token.with_grants(grants).with_attributes({"lk.publish_on_behalf": room.local_participant.identity})
        if self._session is not None:
            await self._run(AvatarWorker(self._session, audio_hz=self._hz), livekit_url, token.to_jwt())
        elif self._launch is not None:
            await self._launch(livekit_url, token.to_jwt())

    async def _run(self, worker: AvatarWorker, url: str, token: str) -> None:
        self._worker = asyncio.create_task(worker.run(url, token))
        joined = asyncio.create_task(worker.joined.wait())
        await asyncio.wait([self._worker, joined], timeout=JOIN_S, return_when=asyncio.FIRST_COMPLETED)
        joined.cancel()
        if self._worker.done():
            self._worker.result()
        if not worker.joined.is_set():
            self._worker.cancel()
            raise TimeoutError(f"the avatar did not join the room within {JOIN_S:g} s: look at the URL {url} and at the log")
        self._worker.add_done_callback(_log_failure)

    async def aclose(self) -> None:
        """Remove the avatar from the room, and end the worker that runs here and the live session."""
        await super().aclose()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        if self._session is not None:
            await asyncio.to_thread(self._session.close)


def _log_failure(worker: asyncio.Task[None]) -> None:
    if not worker.cancelled() and (error := worker.exception()) is not None:
        log.error("the avatar left its room, because its worker failed: %s", error)
