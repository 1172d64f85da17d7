"""The MP4 of a live session, the example of docs/serve.md, another image, and what a client hears of its session."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.runtime.toy import ToySession
from tests.serve.hosting import Host, next_event
from tests.serve.test_videos import png, wav

from everface.live.events import AudioFrame, LiveSegmentEnd, QualityChange, Underrun, VideoFrame
from everface.media.fragments import boxes
from everface.runtime.events import Recovered, Recovering
from everface.serve.stream.encoders import Mp4Encoder
from everface.serve.stream.reader import describe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2), (11_025, 1)])
def test_the_mp4_has_no_hole_and_no_frame_without_a_length(rate_hz: int, channels: int) -> None:
    encoder, pieces = Mp4Encoder(rate_hz, channels, 25), []
    assert encoder.open(128, 192).startswith('video/mp4; codecs="avc1.64')
    for n in range(60):
        image = np.full((128, 192, 3), n * 4, np.uint8)
        pieces.append(encoder.encode(VideoFrame(image, 640 * n, 0.0, False, held=n % 10 == 9)))
        if n % 10 != 9:  # a held frame has no audio
            samples = np.zeros((rate_hz // 25, channels), np.int16)
            pieces.append(encoder.encode(AudioFrame(samples, rate_hz, 640 * n, 0.0)))
            received = encoder._audio._received
            assert encoder.encode(AudioFrame(samples, rate_hz, 640 * n, 0.0)) == []  # its video frame was dropped
            assert encoder._audio._received == received
    early = sum(len(piece) for part in pieces[:40] for piece in part)
    assert early > 1000 and encoder.media_s == pytest.approx(2.4)  # it comes as it is made
    pieces.append(encoder.close())
    assert encoder.close() == []
    data = b"".join(piece for part in pieces for piece in part)
    ends: dict[int, int] = defaultdict(int)
    for moof in (content for name, content in boxes(data) if name == b"moof"):
        for traf in (content for name, content in boxes(moof) if name == b"traf"):
            parts = dict(boxes(traf))
            number, duration = struct.unpack_from(">I", parts[b"tfhd"], 4)[0], struct.unpack_from(">I", parts[b"tfhd"], 8)[0]
            start = struct.unpack_from(">Q", parts[b"tfdt"], 4)[0]
            assert duration > 0 and start == ends[number]
            ends[number] = start + duration * struct.unpack_from(">I", parts[b"trun"], 4)[0]
    assert ends[1] == 60 * 512 and len(ends) == 2
    with av.open(io.BytesIO(data), "r") as file:
        assert sum(1 for _ in file.decode(video=0)) == 60


def test_the_example_of_the_documentation_runs(host: Host, tmp_path: Path) -> None:
    text = (ROOT / "docs/serve.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace("localhost:8000", f"localhost:{host.port}")
    (tmp_path / "speech.wav").write_bytes(wav(1.0))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert '"segment_end", "segment": 1, "pushed_s": 1.0, "shown_s": 1.0, "interrupted": false' in done.stdout
    with av.open(str(tmp_path / "talk.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 25


def test_another_image_within_a_session(small_host: Host) -> None:
    socket = small_host.started(idle=True, paced=True)
    for change, more in (({"image": "ben"}, None), ({"image": "upload"}, png()), ({"prompt": "a smile"}, None), ({"transition": "cut"}, None)):
        socket.send(json.dumps({"type": "change"} | change))
        if more:
            socket.send(more)
        assert next_event(socket, "changed", "error")["type"] == "changed"
    socket.send(json.dumps({"type": "change", "image": "upload"}))
    socket.send(b"no image")
    error = next_event(socket, "error")
    assert "not a JPEG" in error["message"] and "/tmp" not in error["message"] and not error["fatal"]
    socket.close()


def test_a_remark_about_the_image_reaches_the_client(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySession, "remark", "the image is unlike any")
    socket = host.asking()
    assert next_event(socket, "started")["remark"] == "the image is unlike any"
    socket.close()
    opened = host.http.post("/v1/videos/sessions", files={"image": ("i.png", png())}).json()
    assert opened["remark"] == "the image is unlike any"
    assert host.http.delete(f"/v1/videos/sessions/{opened['id']}").status_code == 200
    video = host.http.post("/v1/videos", files={"audio": ("a.wav", wav(0.5)), "image": ("i.png", png())}).json()
    host.wait(lambda: host.http.get(f"/v1/videos/{video['id']}").json()["status"] == "completed", 60)
    assert host.http.get(f"/v1/videos/{video['id']}").json()["remark"] == "the image is unlike any"


def test_weights_that_cannot_listen_say_so_and_speak_on(small_host: Host) -> None:
    socket = small_host.started(idle=False, paced=False, format="jpeg")
    socket.send(json.dumps({"type": "user_audio"}))
    socket.send(np.zeros(1600, np.int16).tobytes())
    error = next_event(socket, "error")
    assert "not trained to listen" in error["message"] and not error["fatal"]
    socket.send(json.dumps({"type": "user_audio", "on": False}))
    socket.send(np.zeros(8_000, np.int16).tobytes())
    socket.send(json.dumps({"type": "end_segment"}))
    assert next_event(socket, "segment_end")["shown_s"] == 0.5
    socket.close()


def test_speech_and_blocks_are_reported(small_host: Host) -> None:
    socket = small_host.started(idle=True, paced=True, format="fmp4")
    socket.send(np.zeros(16_000, np.int16).tobytes())
    socket.send(json.dumps({"type": "end_segment"}))
    on: dict[str, Any] = next_event(socket, "speech")
    off = next_event(socket, "speech")
    assert on["on"] and not off["on"] and 0.9 < off["media_s"] - on["media_s"] < 8
    while not (blocks := next_event(socket, "stats")["blocks"]):
        pass
    assert all(block["sent_s"] <= block["made_s"] <= block["shown_s"] for block in blocks)
    assert small_host.http.get("/metrics").text.partition("everface_block_seconds_count ")[2][0] != "0"
    socket.close()


def test_every_event_has_a_message_of_its_own() -> None:
    events = (LiveSegmentEnd(1, 1.0, 1.0, False), Underrun(1, 0.0), QualityChange(1, "fewer steps", 0.0), Recovering("x"), Recovered(1.0, 2))
    assert [describe(event)["type"] for event in events] == ["segment_end", "underrun", "quality", "recovering", "recovered"]
