"""A LiveKit room in this process: participants, tracks, byte streams and remote calls as the classes of livekit-agents use them. No media."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from livekit import rtc


class Room(rtc.EventEmitter[str]):
    """One participant's view. Rooms that share `others` see each other once connected."""

    name = "room"

    def __init__(self, identity: str, others: dict[str, Room]) -> None:
        super().__init__()
        self.identity, self.others = identity, others
        self.local_participant: Any = Participant(self)
        self.streams: dict[str, Any] = {}

    def isconnected(self) -> bool:
        return self.identity in self.others

    async def connect(self, url: str, token: str) -> None:
        self.others[self.identity] = self
        for room in self.remote():
            room.emit("participant_active", self.local_participant)

    async def disconnect(self) -> None:
        if self.others.pop(self.identity, None):
            for room in self.remote():
                room.emit("participant_disconnected", self.local_participant)

    def remote(self) -> list[Room]:
        return [room for identity, room in self.others.items() if identity != self.identity]

    @property
    def remote_participants(self) -> dict[str, Any]:
        return {room.identity: room.local_participant for room in self.remote()}

    def register_byte_stream_handler(self, topic: str, handler: Any) -> None:
        self.streams[topic] = handler


class Participant:
    """Local to its own room and remote to all others."""

    def __init__(self, room: Room) -> None:
        self.room, self.identity, self.kind = room, room.identity, rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        self.state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
        self.track_publications: dict[str, Any] = {}
        self.calls: dict[str, int] = defaultdict(int)  # made, by method
        self._rpc_handlers: dict[str, Any] = {}

    async def publish_track(self, track: rtc.LocalTrack, options: Any) -> Any:
        publication = SimpleNamespace(sid=track.sid, kind=track.kind, track=track, wait_for_subscription=lambda: asyncio.sleep(0.05))
        self.track_publications[track.name] = publication
        for room in self.room.remote():
            room.emit("track_published", publication, self)
        return publication

    def register_rpc_method(self, method: str, handler: Any) -> None:
        self._rpc_handlers[method] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        await asyncio.sleep(0.005)
        self.calls[method] += 1
        handler = self.room.others[destination_identity].local_participant._rpc_handlers[method]
        return handler(SimpleNamespace(caller_identity=self.identity, payload=payload))

    async def stream_bytes(self, *, name: str, topic: str, destination_identities: list[str], attributes: dict[str, str]) -> Any:
        stream = Stream(name, attributes)
        for identity in destination_identities:
            self.room.others[identity].streams[topic](stream, self.identity)
        return stream


class Stream:
    """Writer and reader of one byte stream."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(stream_id=name, attributes=attributes)
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        await self.queue.put(data)

    async def aclose(self) -> None:
        await self.queue.put(None)

    async def __anext__(self) -> bytes:
        data = await self.queue.get()
        if data is None:
            raise StopAsyncIteration
        return data
