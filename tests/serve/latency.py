"""`python -m tests.serve.latency`: from the first sample of speech to the first moving mouth at the viewer, over MSE and over WebRTC.

One server has both. The page in headless Chromium is the viewer of the one, a WHEP peer of aiortc that of the other, one after the other,
on this machine. Both look at the mouth in every frame that they show or decode: it moves when it changes more than it did in silence.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.serve.test_page import ARGUMENTS, CHROMIUM, SPEECH

SPEECH_S, SEEN_S, REST_S = 1.0, 10.0, 2.0
MOUTH = (0.40, 0.58, 0.22, 0.20)  # left, top, width and height in the bundled images of rendered people
ABOVE = 1.5  # times what the mouth changes in silence, at most
LOOK = """(mouth_box) => {
  const video = document.getElementById("video"), canvas = document.createElement("canvas");
  canvas.width = canvas.height = 128;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let before = null;
  window.looks = [];
  const look = (now) => {
    pen.drawImage(video, 0, 0, 128, 128);
    const mouth = pen.getImageData(...mouth_box.map((share) => Math.round(128 * share))).data;
    if (before) window.looks.push([now, mouth.reduce((sum, value, i) => sum + Math.abs(value - before[i]), 0) / mouth.length]);
    before = mouth;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}"""
NOW = "performance.now() / 1000"
KEEP_SOCKET = """const Native = WebSocket;
window.WebSocket = class extends Native { constructor(...args) { super(...args); window.socket = this; } };"""
SAY = """(samples) => {
  window.looks = window.looks.slice(-100);
  const at = performance.now();
  window.socket.send(new Int16Array(samples));
  window.socket.send(JSON.stringify({ type: "end_segment" }));
  return at;
}"""

Looks = list[tuple[float, float]]  # when, in seconds, and how much the mouth changed


@dataclass
class Onsets:
    """Milliseconds from speech to motion, and how many were not seen."""

    seen_ms: list[float]
    missed: int = 0

    def add(self, spoken_s: float, looks: Looks, now_s: float) -> bool:
        """False: it was not seen yet, and may still be."""
        quiet = max((change for at, change in looks if spoken_s - REST_S < at <= spoken_s), default=0.0)
        moved_s = next((at for at, change in looks if at > spoken_s and change > ABOVE * quiet + 0.1), None)
        if moved_s is not None:
            self.seen_ms.append(1e3 * (moved_s - spoken_s))
        elif now_s < spoken_s + SEEN_S:
            return False
        else:
            self.missed += 1
        return True

    def row(self, name: str) -> str:
        p50, p95 = np.percentile(self.seen_ms, [50, 95]) if self.seen_ms else (float("nan"),) * 2
        return f"| {name} | {p50:.0f} | {p95:.0f} | {len(self.seen_ms)} of {len(self.seen_ms) + self.missed} |"


def speech(rate_hz: int) -> np.ndarray:
    """The bundled voice from its first word on, int16."""
    with wave.open(str(SPEECH)) as file:
        own_hz = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())[:, 0]
    begin = int(np.argmax(np.abs(samples.astype(np.int32)) > 0.1 * np.abs(samples.astype(np.int32)).max()))
    at = np.arange(int(SPEECH_S * rate_hz)) * own_hz / rate_hz + begin
    return np.interp(at, np.arange(len(samples)), samples).astype(np.int16)


def rest() -> float:
    """From an onset that was seen, while it is spoken and after, to the next, at any place within a block."""
    return 2 * SPEECH_S + REST_S + random.random() * 0.48


# the page


def over_mse(address: str, count: int) -> Onsets:
    from playwright.sync_api import sync_playwright

    onsets = Onsets([])
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        page = browser.new_page()
        page.add_init_script(KEEP_SOCKET)
        page.goto(address)
        _wait(lambda: page.evaluate("document.body.dataset.state === 'live' && document.getElementById('video').currentTime > 3"))
        page.evaluate(LOOK, list(MOUTH))
        samples = speech(page.evaluate("new AudioContext().sampleRate")).tolist()
        for _ in range(count):
            page.wait_for_timeout(1e3 * rest())
            spoken_ms = page.evaluate(SAY, samples)
            while not onsets.add(spoken_ms / 1e3, [(at / 1e3, change) for at, change in page.evaluate("window.looks")], page.evaluate(NOW)):
                page.wait_for_timeout(200)
        browser.close()
    return onsets


def _wait(done: Callable[[], Any], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.1)


# the WHEP peer


async def over_webrtc(address: str, count: int) -> Onsets:
    import httpx
    from aiortc import RTCPeerConnection, RTCSessionDescription

    onsets, looks, peer = Onsets([]), list[tuple[float, float]](), RTCPeerConnection()
    tracks: dict[str, Any] = {}
    peer.on("track", lambda track: tracks.setdefault(track.kind, track))
    for kind in ("video", "audio"):
        peer.addTransceiver(kind, direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        answer = await client.post("whep", content=peer.localDescription.sdp, headers={"content-type": "application/sdp"})
        assert answer.status_code == 201, answer.text
        await peer.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        work = [asyncio.create_task(_look(tracks["video"].recv, looks)), asyncio.create_task(_drain(tracks["audio"].recv))]
        while len(looks) < 75:
            await asyncio.sleep(0.1)
        content = speech(16_000).tobytes()
        for _ in range(count):
            await asyncio.sleep(rest())
            spoken_s = time.monotonic()
            assert (await client.post(f"{answer.headers['location']}/audio", content=content)).status_code == 200
            while not onsets.add(spoken_s, looks, time.monotonic()):
                await asyncio.sleep(0.2)
        for task in work:
            task.cancel()
        await client.delete(answer.headers["location"])
    await peer.close()
    return onsets


async def _look(recv: Callable[[], Awaitable[Any]], looks: Looks) -> None:
    before = None
    while True:
        image = (await recv()).to_ndarray(format="rgb24")
        (rows, columns, _), (left, top, width, height) = image.shape, MOUTH
        mouth = image[int(top * rows) : int((top + height) * rows), int(left * columns) : int((left + width) * columns)].astype(np.int16)
        if before is not None:
            looks.append((time.monotonic(), float(np.abs(mouth - before).mean())))
        before = mouth


async def _drain(recv: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await recv()


# the server of both


def serve_both() -> None:
    from starlette.requests import Request
    from starlette.responses import Response

    from everface.cli import flags
    from everface.cli.parser import build_parser
    from everface.core.config import StreamConfig
    from everface.integrations.webrtc import WhepEndpoint
    from everface.live.session import LiveSession
    from everface.serve.backend import IMAGES, Backend
    from everface.serve.server import Server, listen, run
    from everface.serve.settings import ServeSettings

    args = build_parser().parse_args(["serve"])
    deployment = dataclasses.replace(flags.deployment(args, live=True), sessions=3)
    settings = ServeSettings(port=0, stream=StreamConfig(sampler=flags.sampler(args, live=True)), deployment=deployment)
    backend, players = Backend(settings), dict[str, LiveSession]()
    server = Server(settings, backend)
    endpoint = WhepEndpoint(lambda: backend.open_live(IMAGES["ada"], settings.stream), players.__setitem__)
    endpoint.mount(server.app, "/whep")

    async def speak(request: Request) -> Response:
        session = players[request.path_params["player"]]
        session.push_audio(await request.body(), 16_000)
        session.end_segment()
        return Response()

    server.app.router.add_route("/whep/{player}/audio", speak, methods=["POST"])
    listening = listen(settings.host, 0)
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.service.drain(), setattr(server, "should_exit", True)), daemon=True).start()
    run(server, listening)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of speech at the viewer, over MSE and over WebRTC.")
    parser.add_argument("--onsets", type=int, default=20, help="of speech, for each (%(default)s)")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server:
        return serve_both()
    command = [sys.executable, "-m", "tests.serve.latency", "--server"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        address = f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}/"
        print("| viewer | p50, ms | p95, ms | onsets seen |\n|---|---|---|---|")
        print(over_mse(address, args.onsets).row("page, MSE"))
        print(asyncio.run(over_webrtc(address, args.onsets)).row("aiortc, WebRTC"))
    finally:
        server.communicate("", timeout=60)


if __name__ == "__main__":
    main()
