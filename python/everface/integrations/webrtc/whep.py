"""WHEP (WebRTC-HTTP egress): a player posts its offer and gets an answer; DELETE ends the session."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from aiortc import RTCPeerConnection, RTCSessionDescription

from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.integrations.webrtc.tracks import SessionFeed
from everface.live.session import LiveSession

SDP = "application/sdp"
MOST_BYTES = 64 * 1024  # of an offer
CONNECT_S = 30.0  # for a player to connect: behind a firewall, or with its tab closed, it may never do or fail


class WhepEndpoint:
    """Each player gets a live session of its own from `open_session`, which is closed when the player leaves.

    open_session: called in a thread. opened: called with the id of a player and its session, for instance to push audio into it. most:
    players at once. For one event loop.
    """

    def __init__(
        self, open_session: Callable[[], LiveSession], opened: Callable[[str, LiveSession], None] | None = None, most: int = 8
    ) -> None:
        self._open_session, self._opened, self._most = open_session, opened, most
        self._players: dict[str, tuple[RTCPeerConnection | None, SessionFeed | None, asyncio.Task[None] | None]] = {}
        self._ending = set[asyncio.Task[bool]]()

    async def answer(self, offer: str) -> tuple[str, str]:
        """The id of a new player and the SDP that answers its offer. Raises BadInput for an SDP that cannot be used, Unavailable."""
        if len(self._players) >= self._most:
            raise Unavailable(f"{self._most} players are connected, and no more are allowed: try again later")
        player = secrets.token_urlsafe(16)
        self._players[player] = (None, None, None)
        try:
            return player, await self._connect(player, offer)
        except BaseException:
            await self.end(player)
            raise

    async def _connect(self, player: str, offer: str) -> str:
        peer = RTCPeerConnection()
        self._players[player] = (peer, None, None)
        try:
            await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        except Exception as error:
            raise BadInput(f"the offer is no SDP that can be answered ({error}): send a WHEP offer") from None
        offered = {transceiver.kind for transceiver in peer.getTransceivers()}
        if "video" not in offered:
            raise BadInput("the offer has no video, so there is nothing to show: offer to receive video, and audio to hear it")
        feed = SessionFeed(await asyncio.to_thread(self._open_session))
        self._players[player] = (peer, feed, None)
        peer.addTrack(feed.video)
        if "audio" in offered:
            peer.addTrack(feed.audio)
        await peer.setLocalDescription(await peer.createAnswer())

        @peer.on("connectionstatechange")
        async def changed() -> None:
            if peer.connectionState in ("failed", "closed"):
                await self.end(player)

        def check() -> None:
            if player in self._players and peer.connectionState != "connected":
                self._end_later(player)

        asyncio.get_running_loop().call_later(CONNECT_S, check)
        self._players[player] = (peer, feed, asyncio.create_task(self._play(player, feed)))
        if self._opened is not None:
            self._opened(player, feed.session)
        return peer.localDescription.sdp

    async def _play(self, player: str, feed: SessionFeed) -> None:
        try:
            await feed.run()
        except EverfaceError as error:
            log.error("a player lost its session: %s", error)
        self._end_later(player)

    def _end_later(self, player: str) -> None:
        ending = asyncio.create_task(self.end(player))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def end(self, player: str) -> bool:
        """Close a player's connection and session. False where there is no such player."""
        if player not in self._players:
            return False
        peer, feed, task = self._players.pop(player)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if feed is not None:
            await asyncio.to_thread(feed.session.close)
        if peer is not None:
            await peer.close()
        return True

    async def close(self) -> None:
        """End all players."""
        await asyncio.gather(*(self.end(player) for player in list(self._players)))

    def mount(self, app: Any, path: str = "/whep") -> None:
        """Add POST `path` and DELETE `path`/ID to a FastAPI or Starlette app. Access control is the app's."""
        from starlette.requests import Request
        from starlette.responses import Response

        async def post(request: Request) -> Response:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    return Response("the offer is too long", 413)
            if request.headers.get("content-type", "").split(";")[0] != SDP:
                return Response(f"the offer has to be {SDP}", 415)
            try:
                player, sdp = await self.answer(body.decode(errors="replace"))
            except BadInput as error:
                return Response(str(error), 400)
            except Unavailable as error:
                return Response(str(error), 503)
            return Response(sdp, 201, {"Location": f"{request.url.path.rstrip('/')}/{player}"}, SDP)

        async def delete(request: Request) -> Response:
            return Response(status_code=200 if await self.end(request.path_params["player"]) else 404)

        app.router.add_route(path, post, methods=["POST"])
        app.router.add_route(path + "/{player}", delete, methods=["DELETE"])
