"""A WHEP player in this process: aiortc against our endpoint, by way of a FastAPI app."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.live.faces import live_in_process

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx
from aiortc import RTCPeerConnection, RTCSessionDescription
from fastapi import FastAPI

from everface.integrations.webrtc import WhepEndpoint, whep
from everface.live.session import LiveSession

HZ = 24_000


async def offer(peer: RTCPeerConnection) -> str:
    for kind in ("video", "audio"):
        peer.addTransceiver(kind, direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    return peer.localDescription.sdp


def with_endpoint(play: Any, most: int = 8) -> None:
    async def run(session: LiveSession) -> None:
        endpoint = WhepEndpoint(lambda: session, lambda *_: None, most)
        app = FastAPI()
        endpoint.mount(app, "/whep")
        async with asyncio.timeout(60), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            await play(client, session)
        await endpoint.close()
        assert session.closed or most == 0

    with live_in_process() as session:
        asyncio.run(run(session))


def test_a_player_sees_and_hears_the_session_until_it_leaves() -> None:
    async def play(client: httpx.AsyncClient, session: LiveSession) -> None:
        peer = RTCPeerConnection()
        tracks: dict[str, Any] = {}
        peer.on("track", lambda track: tracks.setdefault(track.kind, track))
        answer = await client.post("/whep", content=await offer(peer), headers={"content-type": "application/sdp"})
        assert answer.status_code == 201 and answer.headers["content-type"] == "application/sdp"
        await peer.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        session.push_audio((8000 * np.sin(np.arange(3 * HZ) * 0.2)).astype(np.int16), HZ)
        session.end_segment()
        first = await tracks["video"].recv()
        times = [first.time] + [(await tracks["video"].recv()).time for _ in range(24)]
        assert (first.width, first.height) == (8, 8) and 0.9 < times[-1] - times[0] < 1.5
        loudest = 0.0
        while loudest < 2000:  # silence comes first
            loudest = float(np.abs((await tracks["audio"].recv()).to_ndarray()).max())
        assert (await client.delete(answer.headers["location"])).status_code == 200
        assert session.closed
        assert (await client.delete(answer.headers["location"])).status_code == 404
        await peer.close()

    with_endpoint(play)


def test_a_session_that_ends_ends_its_player() -> None:
    async def play(client: httpx.AsyncClient, session: LiveSession) -> None:
        peer = RTCPeerConnection()
        answer = await client.post("/whep", content=await offer(peer), headers={"content-type": "application/sdp"})
        session.close()
        await asyncio.sleep(0.5)
        assert (await client.delete(answer.headers["location"])).status_code == 404
        await peer.close()

    with_endpoint(play)


def test_a_player_that_never_connects_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whep, "CONNECT_S", 0.5)

    async def play(client: httpx.AsyncClient, session: LiveSession) -> None:
        peer = RTCPeerConnection()
        sdp = (await offer(peer)).replace("a=end-of-candidates\r\n", "")  # then aiortc waits for more of them, without an end
        await peer.close()  # a tab that was closed
        answer = await client.post("/whep", content=sdp, headers={"content-type": "application/sdp"})
        assert answer.status_code == 201 and not session.closed
        while not session.closed:
            await asyncio.sleep(0.05)
        assert (await client.delete(answer.headers["location"])).status_code == 404

    with_endpoint(play)


def test_offers_that_cannot_be_answered_are_refused() -> None:
    async def play(client: httpx.AsyncClient, session: LiveSession) -> None:
        sdp = {"content-type": "application/sdp"}
        peer = RTCPeerConnection()
        peer.addTransceiver("audio", direction="recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        for content in ("nonsense", "v=0\r\nm=video x", peer.localDescription.sdp, ""):
            assert (await client.post("/whep", content=content, headers=sdp)).status_code == 400
        await peer.close()
        assert (await client.post("/whep", content="x" * 100_000, headers=sdp)).status_code == 413
        assert (await client.post("/whep", json={})).status_code == 415
        session.close()

    with_endpoint(play)


def test_no_more_players_than_allowed() -> None:
    async def play(client: httpx.AsyncClient, _: LiveSession) -> None:
        answer = await client.post("/whep", content="v=0", headers={"content-type": "application/sdp"})
        assert answer.status_code == 503 and "0 players" in answer.text

    with_endpoint(play, most=0)
