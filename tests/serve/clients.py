"""Clients of tests.serve.load: good ones, which measure, and five that misbehave. Nothing of everface is imported: they cost little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import connect

GOOD, BAD = "127.0.0.1", "127.0.0.2"
STREAM = "/v1/avatar/stream"
START = {"type": "start", "format": "jpeg"}
POLLED = ("/healthz", "/v1/videos", "/readyz", "/v1/avatar")
POLL_S = 0.2
OUTCOMES = ("slow readers", "half-open, closed by the server", "garbage", "refused uploads", "requests sent")  # of the kinds, in their order
FLOOD_PER_S, FLOOD_S, FLOOD_SOCKETS = 1000, 10.0, 20
SEEN_S = 60.0  # for what a bad client must come to, once
HELD = 2  # a flag of a JPEG
UPLOAD = 10 << 30
UPGRADE = (
    f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()

Samples = dict[str, list[tuple[float, float]]]


# good ones


async def good_clients(stop: asyncio.Event, port: int, live: int, pollers: int) -> Samples:
    """(when, how long) of the intervals between frames, of those that were held, and of responses."""
    samples: Samples = {"frame": [], "held": [], "response": []}
    await _until(stop, [*(_watch(port, samples) for _ in range(live)), *(_poll(port, i, samples) for i in range(pollers))])
    return samples


async def hold_session(stop: asyncio.Event, port: int) -> Counter[str]:
    await _until(stop, [_watch(port, {"frame": [], "held": []})])
    return Counter()


async def _watch(port: int, samples: Samples) -> None:
    """Hold a live session; it is a bug if it ends."""
    async with connect(f"ws://{GOOD}:{port}{STREAM}", max_size=None, compression=None) as websocket:
        await websocket.send(json.dumps(START))
        before_s = None
        async for message in websocket:
            if isinstance(message, bytes) and message[0] == 1:
                now_s = time.monotonic()
                if before_s is not None:
                    samples["frame"].append((now_s, now_s - before_s))
                if message[1] & HELD:
                    samples["held"].append((now_s, 0.0))
                before_s = now_s
            elif isinstance(message, str):
                assert json.loads(message)["type"] != "error", message
    raise AssertionError("a good client's session has ended")


async def _poll(port: int, number: int, samples: Samples) -> None:
    """A keep-alive connection, and a request on it now and then; it is a bug if one is refused."""
    reader, writer = await asyncio.open_connection(GOOD, port)
    await asyncio.sleep(POLL_S * number / 16)
    while True:
        path = POLLED[number % len(POLLED)]
        began_s = time.monotonic()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        assert b" 200 " in head.split(b"\r\n")[0], head
        samples["response"].append((time.monotonic(), time.monotonic() - began_s))
        await asyncio.sleep(POLL_S)


async def _until(stop: asyncio.Event, work: list[Awaitable[Any]]) -> None:
    """Work that does not end, until it is stopped. Raises what any of it raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    waiting = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, waiting):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


# bad ones


async def bad_clients(stop: asyncio.Event, port: int, count: int) -> Counter[str]:
    """The first `count` kinds at once, each again and again, and once at least. What the server did to them."""
    counts: Counter[str] = Counter()
    kinds = (slow_reader, half_open, garbage, upload, flood)
    seen = asyncio.Event()

    async def stop_when_seen() -> None:
        await stop.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEEN_S):
                while not all(counts[outcome] for outcome in OUTCOMES[:count]):
                    await asyncio.sleep(0.1)
        seen.set()
        await asyncio.sleep(60)

    await _until(seen, [stop_when_seen(), *(_again(kinds[i % len(kinds)], port, counts) for i in range(count))])
    return counts


async def _again(client: Callable[[int, Counter[str]], Awaitable[None]], port: int, counts: Counter[str]) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError):
            await client(port, counts)
        await asyncio.sleep(0.5)


async def _open(port: int, first: bytes = b"", window: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raw = socket.socket()
    if window:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    raw.setblocking(False)
    raw.bind((BAD, 0))
    await asyncio.get_running_loop().sock_connect(raw, (GOOD, port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=window or 65_536)
    writer.write(first)
    await writer.drain()
    return reader, writer


def _frame(kind: int, data: bytes) -> bytes:
    """A WebSocket frame, masked with zeros."""
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big") if size < 65_536 else bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | kind]) + length + bytes(4) + data


async def slow_reader(port: int, counts: Counter[str]) -> None:
    """Starts a session and reads nothing of it."""
    reader, writer = await _open(port, UPGRADE, 4096)
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  a transport of a socket has it
        writer.write(_frame(1, json.dumps(START).encode()))
        counts["slow readers"] += 1
        await asyncio.sleep(3600)
    finally:
        writer.transport.abort()


async def half_open(port: int, counts: Counter[str]) -> None:
    """A connection without a word, half a request, half an upload, and a WebSocket that never starts."""
    half = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x"
    opened = [await _open(port, first) for first in (b"", UPGRADE[:40], half, UPGRADE)]
    counts["half-open"] += len(opened)
    try:
        for closed in asyncio.as_completed([_to_end(reader) for reader, _ in opened]):
            await closed
            counts["half-open, closed by the server"] += 1
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def garbage(port: int, counts: Counter[str]) -> None:
    """What no client should send: before the start of a session, and within one."""
    start = _frame(1, json.dumps(START | {"idle": False}).encode())
    for bad in (_frame(2, bytes(3200)), _frame(1, b"{"), _frame(1, b"x" * 1_000_000), b"\xff" * 1000, start + _frame(1, b"[" * 9000) * 20):
        reader, writer = await _open(port, UPGRADE + bad)
        counts["garbage"] += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await _to_end(reader)
        writer.transport.abort()


async def upload(port: int, counts: Counter[str]) -> None:
    """10 GB of a file, in chunks without a length."""
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"--x\r\nContent-Disposition: form-data; name=audio; filename=a\r\n\r\n"
    reader, writer = await _open(port, head + b"%x\r\n%b\r\n" % (len(part), part))
    answer = asyncio.ensure_future(reader.read(100))  # read while it is sent: a reset would lose it
    piece, sent = b"40000\r\n" + bytes(1 << 18) + b"\r\n", 0
    try:
        with contextlib.suppress(OSError):
            while sent < UPLOAD and not answer.done():
                writer.write(piece)
                await writer.drain()
                sent += 1 << 18
                await asyncio.sleep(0.005)  # of a network of 50 MB/s
        counts["refused uploads"] += b" 413 " in await answer
        counts["MB sent"] += sent >> 20
    finally:
        answer.cancel()
        writer.transport.abort()


async def flood(port: int, counts: Counter[str]) -> None:
    """1,000 requests a second for ten seconds, whether they are answered or not."""
    request = b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sockets = [await _open(port) for _ in range(FLOOD_SOCKETS)]

    async def read(reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65_536):
            for status in (b"200", b"429", b"503"):
                counts[f"status {status.decode()}"] += data.count(b"HTTP/1.1 " + status)

    reading = [asyncio.ensure_future(read(reader)) for reader, _ in sockets]
    try:
        began_s, sent = time.monotonic(), 0
        while (now_s := time.monotonic() - began_s) < FLOOD_S:
            while sent < now_s * FLOOD_PER_S:
                sockets[sent % len(sockets)][1].write(request)
                sent += 1
            await asyncio.sleep(0.01)
        counts["requests sent"] += sent
        await asyncio.sleep(3600)  # once is enough
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for _, writer in sockets:
            writer.transport.abort()


async def _to_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65_536):
            pass
