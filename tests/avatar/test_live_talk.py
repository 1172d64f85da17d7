"""LiveTalk through everything that a user touches, none of which knows it: 16 frames a second in files, live sessions and the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.serve.hosting import hosted, next_event

from everface.avatar.avatar import Avatar
from everface.avatar.render import RenderJob, render
from everface.cli import main
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame
from everface.media.video import probe_video, read_frames
from everface.serve.backend import Backend
from everface.serve.settings import ServeSettings

ONE_THREAD = Deployment(threads=1)
SPEECH_S = (0.1 * np.random.default_rng(5).standard_normal(16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def avatar(small_live_talk: Path) -> Iterator[Avatar]:
    with Avatar(small_live_talk, deployment=ONE_THREAD) as avatar:
        yield avatar


def test_render_from_the_command_line(small_live_talk: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "talk.mp4"
    assert main(["render", str(face), str(voice), "-o", str(out), "--weights", str(small_live_talk), "--seed", "3"]) == 0
    assert "34" in capsys.readouterr().out
    info = probe_video(out)
    assert (info.fps, info.frames, info.width, info.height) == (16, 34, 64, 64)  # ceil(2.1 s * 16)
    assert info.audio_duration_s is not None and abs(info.duration_s - info.audio_duration_s) <= 1 / 16
    assert main(["render", str(face), str(voice), "-o", str(out), "--weights", str(small_live_talk), "--force", "--sampler", "skip-null"]) == 2
    assert "four steps" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8-attention"])
def test_every_dtype_renders_nearly_the_same(dtype: str, small_live_talk: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    stream, made = StreamConfig(seed=3), {}
    for of in ("float32", dtype):
        job = RenderJob(face, voice, tmp_path / f"{of}.mp4", small_live_talk, stream=stream, deployment=Deployment(dtype=of, threads=1))
        assert render(job).frames == 34
        made[of] = np.stack(list(read_frames(tmp_path / f"{of}.mp4"))).astype(np.float32)
    off = np.abs(made[dtype] - made["float32"]).mean()
    assert 0 < off < 12


def test_a_session_gives_whole_blocks_at_its_rate(avatar: Avatar, face: Path) -> None:
    assert avatar.format.fps == 16
    with avatar.open(face, StreamConfig(seed=1)) as session:
        assert session.format.fps == 16
        session.push_audio(torch.from_numpy(SPEECH_S))
        session.end_segment()
        blocks = list(session.frames())
    assert [len(b.frames_THW3) for b in blocks] == [9, 7] and [b.pts for b in blocks] == [0, 9000]
    with pytest.raises(BadInput, match="four steps"):
        avatar.open(face, StreamConfig(sampler="skip-null"))


def test_a_live_session_keeps_its_time(avatar: Avatar, face: Path) -> None:
    with avatar.open_live(face, idle=False, paced=False, playback_hz=16_000) as live:
        assert live.frame_s == 1 / 16
        live.push_audio(SPEECH_S, 16_000)
        live.end_segment()
        events = []
        while not any(isinstance(e, LiveSegmentEnd) for e in events):
            event = live.read(60.0)
            assert event is not None
            events.append(event)
    video, audio = [e for e in events if isinstance(e, VideoFrame)], [e for e in events if isinstance(e, AudioFrame)]
    assert [e.pts for e in video] == [1000 * n for n in range(16)]
    assert np.array_equal(np.concatenate([e.samples_SC for e in audio])[:, 0], SPEECH_S)


@pytest.mark.long
def test_the_server_says_and_keeps_the_rate(small_live_talk: Path, face: Path) -> None:
    settings = ServeSettings(port=0, weights=small_live_talk, stream=StreamConfig(), deployment=ONE_THREAD)
    with closing(Backend(settings)) as backend, hosted(backend) as host:
        host.wait(lambda: backend.state == "ready", timeout_s=60)
        assert host.http.get("/v1/avatar").json()["fps"] == 16
        socket = host.socket()
        socket.send(json.dumps({"type": "start", "format": "jpeg", "idle": False, "paced": False, "encoding": "f32le", "rate_hz": 16_000}))
        assert next_event(socket, timeout_s=60)["type"] == "started"
        socket.send(SPEECH_S.tobytes())
        socket.send(json.dumps({"type": "end_segment"}))
        assert next_event(socket, "media", timeout_s=60)["fps"] == 16
        assert next_event(socket, "segment_end", timeout_s=60)["shown_s"] == 1.0
        socket.close()


@pytest.mark.parametrize("fps", [16, 30])
def test_the_writers_take_any_rate(fps: int, tmp_path: Path) -> None:
    from everface.media.video_writer import VideoWriter
    from everface.serve.stream.encoders import Mp4Encoder

    frames = np.zeros((fps, 64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", 64, 64, 16_000, fps=fps) as writer:
        writer.write(frames)
        writer.write_audio(SPEECH_S)
    info = probe_video(tmp_path / "a.mp4")
    assert (info.fps, info.frames) == (fps, fps) and abs(info.duration_s - 1) < 1e-3
    encoder, pieces = Mp4Encoder(16_000, 1, fps), list[bytes]()
    encoder.open(64, 64)
    per_frame = 16_000 // fps
    for n in range(fps):
        pieces += encoder.encode(VideoFrame(frames[n], n * per_frame, n / fps, False))
        pieces += encoder.encode(AudioFrame(SPEECH_S[: per_frame, None], 16_000, n * per_frame, n / fps))
    assert abs(encoder.media_s - 1) < 1e-9
    encoder.close()
    (tmp_path / "b.mp4").write_bytes(b"".join(pieces) + b"".join(encoder._pieces.take()))
    assert probe_video(tmp_path / "b.mp4").fps == pytest.approx(Fraction(fps), rel=0.02)
