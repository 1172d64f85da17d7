"""One harness a parser: bytes in, and either a result or one of everface's own errors out. Anything else is a fault.

A target is a class with `run(data)`; it is made once a process, as that may be slow.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from everface.core.config import ModelConfig, StreamConfig
from everface.core.errors import BadInput, EverfaceError, Unavailable

MOST_S = 60.0  # of decoded audio that one input is followed for
CHUNK = 16_000
END_S = 20.0  # until threads that an input has started must have ended


class Target(Protocol):
    """One parser."""

    def run(self, data: bytes) -> object:
        """What came out: its text without digits has few values, as it guides the mutations. Raises anything but an EverfaceError for a fault."""
        ...

    def close(self) -> None:
        """End what would keep the process from ending."""


class FileTarget(Target):
    """A parser of files: writes the data to one in memory, and reads that."""

    suffix = ""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(prefix="everface-fuzz-", dir=memory if memory.is_dir() else None)
        self.path = Path(self._folder.name) / f"input{self.suffix}"

    def run(self, data: bytes) -> object:
        self.path.write_bytes(data)
        try:
            return self.read(self.path)
        except EverfaceError as error:
            return error

    def read(self, path: Path) -> object:
        raise NotImplementedError


class ImageTarget(FileTarget):
    """A portrait, as the server takes it and as the command line does."""

    def read(self, path: Path) -> object:
        from everface.media.image import read_image
        from everface.serve.settings import Limits
        from everface.serve.uploads import check_upload

        check_upload(path, Limits(image_pixels=1_000_000))
        image_HW3 = read_image(path)
        assert image_HW3.dtype == np.uint8 and image_HW3.ndim == 3 and image_HW3.shape[2] == 3
        return path.read_bytes()[:4]


class AudioTarget(FileTarget):
    """An audio file: its facts, then both of its readings."""

    def read(self, path: Path) -> object:
        from everface.media.audio import probe_audio, read_audio, read_track

        info = probe_audio(path)
        assert info.rate_hz > 0 and info.channels > 0 and (info.duration_s is None or info.duration_s >= 0)
        for chunks in (read_audio(path, CHUNK), read_track(path, CHUNK)):
            for chunk in itertools.islice(chunks, int(MOST_S * 48_000 / CHUNK)):
                assert 0 < len(chunk) <= CHUNK and np.isfinite(chunk).all() and np.abs(chunk).max() < 8
        return "abcd"[: info.channels], info.duration_s is None


class VideoTarget(FileTarget):
    """A video file: its facts, and its first frames."""

    def read(self, path: Path) -> None:
        from everface.media.video import probe_video, read_frames

        info = probe_video(path)
        assert info.frames >= 0 and info.duration_s >= 0
        if info.width * info.height <= 1 << 20:
            for frame in itertools.islice(read_frames(path), 5):
                assert frame.dtype == np.uint8 and frame.shape[2] == 3


class StreamTarget(Target):
    """Audio from a pipe."""

    def run(self, data: bytes) -> None:
        from everface.media.audio_stream import AudioStream

        data = data[: 1 << 16]  # what a pipe holds
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        stream = AudioStream(read)
        try:
            with Faults():
                info, seconds = stream.info(), 0.0
                while not stream.ended and seconds < MOST_S:
                    if (part := stream.take(1.0)) is not None:
                        seconds += len(part.track_SC) / info.rate_hz
                        assert np.isfinite(part.track_SC).all() and np.isfinite(part.mono_S).all()
        except EverfaceError:
            pass
        finally:
            stream.close()
            os.close(read)


class SafetensorsTarget(FileTarget):
    """A checkpoint's file: its header, and every tensor."""

    suffix = ".safetensors"

    def read(self, path: Path) -> None:
        from everface.weights.files import open_file, read_metadata

        read_metadata(path)
        weights = open_file(path)
        for name in list(weights)[:64]:
            weights.dtype(name)
            assert tuple(weights[name].shape) == weights.shape(name)


class LoraTarget(FileTarget):
    """An adapter, held against a small base and merged where it fits."""

    suffix = ".safetensors"
    SHAPES = {"blocks.0.self_attn.q.weight": (4, 4), "blocks.0.ffn.0.weight": (8, 4)}  # noqa: RUF012 read only

    def read(self, path: Path) -> None:
        import torch

        from everface.weights.lora import check_targets, read_lora

        lora = read_lora(path)
        check_targets(lora, self.SHAPES, self.SHAPES)
        for name, shape in self.SHAPES.items():
            assert lora.merge(name, torch.zeros(shape)).shape == shape


class ConfigTarget(FileTarget):
    """The config.json of a checkpoint."""

    def read(self, path: Path) -> None:
        ModelConfig.from_dict(ModelConfig.read(path).to_dict())


class ManifestTarget(FileTarget):
    """A benchmark's set."""

    suffix = ".jsonl"

    def read(self, path: Path) -> None:
        from everface.genbench.manifest import read_manifest

        assert read_manifest(path).samples


class JobsTarget(FileTarget):
    """A batch's table, as CSV and as JSON lines."""

    def read(self, path: Path) -> None:
        from everface.avatar.jobs import read_jobs

        for suffix in (".csv", ".jsonl"):
            table = path.with_suffix(suffix)
            table.write_bytes(path.read_bytes())
            try:
                for job in read_jobs(table, StreamConfig()):
                    assert Path(job.out).name == job.out
            except EverfaceError:
                pass


class ControlTarget(Target):
    """A control message of the WebSocket."""

    def run(self, data: bytes) -> object:
        from everface.serve.stream.messages import Change, Close, EndSegment, Interrupt, Start, UserAudioSwitch, read_control

        try:
            control = read_control(data.decode("utf-8", "replace"))
        except BadInput as error:
            assert len(str(error)) < 1000
            return error
        assert isinstance(control, Start | EndSegment | Interrupt | Change | UserAudioSwitch | Close)
        return type(control), control.model_fields_set


class EngineTarget(Target):
    """What a client sends to an engine's socket. An input that begins with an even byte comes after a good greeting and an opened session."""

    def run(self, data: bytes) -> None:
        from everface.engine import protocol
        from everface.engine.connection import Connection

        hello = protocol.encode(protocol.ClientHello(protocol.MAGIC, protocol.MAJOR, protocol.MINOR))
        opened = hello + protocol.encode(protocol.OpenRequest("face.png", 1, False, False))
        client, served = socket.socketpair()
        with Faults(), client:
            connection = Connection(served, _open_nothing, 25)
            thread = threading.Thread(target=connection.run, daemon=True)
            thread.start()
            client.settimeout(END_S)
            try:
                client.sendall((opened if data and data[0] % 2 == 0 else b"") + data[1:4096])
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
            thread.join(END_S)
            assert not thread.is_alive(), "the connection did not end"


class UploadTarget(Target):
    """The body of the page's upload form, with a boundary of `x`."""

    HEADERS = ((b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x"))

    def __init__(self) -> None:
        from everface.serve.app import build_app
        from everface.serve.settings import Limits, ServeSettings

        backend: Any = SimpleNamespace(state="ready", in_flight=0, load=lambda: None, close=lambda: None, open_live=_refuse)
        self.app = build_app(ServeSettings(limits=Limits(requests_per_s=1e6)), backend)  # else most inputs are refused unread
        self.jobs = self.app.state.service.jobs
        self.loop = asyncio.new_event_loop()
        self.data, self.answer = b"", (0, b"")
        self.task = self.loop.create_task(self._post_all())

    def run(self, data: bytes) -> object:
        self.data, self.answer = data, (0, b"")
        self.loop.run_forever()
        if self.task.done():
            self.task.result()
        status, body = self.answer
        assert status in (200, 400, 413, 415, 422), (status, body)
        json.loads(body)
        for job in self.jobs.all():
            self.jobs.delete(job.id)
        return body if status != 200 else "taken"

    async def _post_all(self) -> None:
        """One task for all inputs: the threads that read forms end with the task that started them, and starting one takes longer than an input."""
        try:
            while True:
                async with asyncio.timeout(END_S):
                    self.answer = await self._post(self.data)
                self.loop.stop()
                await asyncio.sleep(0)
        except Exception:  # which `run` raises
            self.loop.stop()
            raise

    def close(self) -> None:
        self.task.cancel()
        self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))

    async def _post(self, data: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/videos",
            "raw_path": b"/v1/videos", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "headers": [*self.HEADERS, (b"content-length", str(len(data)).encode())],
        }  # fmt: skip
        waiting = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Any:
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


class Faults(logging.Handler):
    """Raises what everface logged as a bug of its own: such an error is caught where it must not end the process."""

    def __enter__(self) -> None:
        self._found: list[str] = []
        logging.getLogger("everface").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._found.append(logging.Formatter().format(record))

    def __exit__(self, *_: object) -> None:
        logging.getLogger("everface").removeHandler(self)
        assert not self._found, self._found[0]


class _NoFrames:
    """A live session that checks what it gets and shows nothing."""

    format = SimpleNamespace(sample_rate=16_000, samples_per_frame=640, fps=25, user_audio=True)
    position = turn_begin = 0
    remark = ""

    def __init__(self) -> None:
        self._closed = threading.Event()

    @property
    def finished(self) -> bool:
        return self._closed.is_set()

    def push_audio(self, samples: Any, rate_hz: int) -> int:
        from everface.live.audio_input import StreamResampler, as_array

        array = as_array(samples)
        StreamResampler(rate_hz, 16_000).push(array)
        return len(array)

    def push_user_audio(self, samples: Any, rate_hz: int) -> None:
        self.push_audio(samples, rate_hz)

    def change(self, **what: Any) -> None: ...
    def end_segment(self) -> None: ...
    def interrupt(self) -> int:
        return 1

    def read(self, timeout_s: float) -> None:
        self._closed.wait(timeout_s)

    def stats(self) -> Any:
        from everface.live.stats import LiveStats

        return LiveStats(0, 0, 0, 0, 0, 0.0, None, None, 0, 0, 0)

    def close(self, drain: bool = False, timeout_s: float = 30.0) -> None:
        self._closed.set()


def _open_nothing(request: Any, outbox_s: float) -> tuple[Any, tuple[int, int]]:
    return _NoFrames(), (64, 64)


def _refuse(*_: Any, **__: Any) -> Any:
    raise Unavailable("nothing is rendered here")


TARGETS: dict[str, Callable[[], Target]] = {
    "image": ImageTarget, "audio": AudioTarget, "video": VideoTarget, "stream": StreamTarget, "safetensors": SafetensorsTarget, "lora": LoraTarget,
    "config": ConfigTarget, "control": ControlTarget, "engine": EngineTarget, "manifest": ManifestTarget, "jobs": JobsTarget,
    "upload": UploadTarget,
}  # fmt: skip
