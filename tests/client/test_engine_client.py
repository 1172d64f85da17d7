"""The client with an engine of its own, with the fake one, and with engines that stop, die or lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.client.kills import COMMAND, TONE, descriptors, read_for
from tests.engine.processes import engine_process

from everface.client.engine_client import EngineClient
from everface.client.library import load_library
from everface.core.errors import BadInput, Unavailable
from everface.live.events import AudioFrame, LiveSegmentEnd, VideoFrame

pytest.importorskip("cffi")


@pytest.fixture
def fake(prefix: Path) -> Iterator[EngineClient]:
    with EngineClient(fake=True, prefix=prefix) as engine:
        yield engine


def test_a_stopped_engine_blocks_nobody(prefix: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    with engine_process(path) as process, EngineClient(path, prefix=prefix) as engine, engine.open_live("toy", idle=False, paced=False) as session:
        session.push_audio(TONE)
        read_for(session, 10, VideoFrame)
        process.send_signal(signal.SIGSTOP)
        calls = [
            (lambda: session.read(0.1), 0.1), (lambda: session.push_audio(TONE), 0.0), (lambda: session.push_audio(np.tile(TONE, 60), timeout_s=0.2), 0.2),
            (session.interrupt, 0.0), (session.end_segment, 0.0), (lambda: session.push_audio(TONE), 0.0),
        ]  # fmt: skip
        for call, allowed_s in calls:
            began_s = time.monotonic()
            call()
            assert time.monotonic() - began_s < allowed_s + 0.5
        with pytest.raises(Unavailable, match="in 300 ms"):
            EngineClient(path, prefix=prefix).open_live("toy", timeout_s=0.3)
        process.send_signal(signal.SIGCONT)
        session.end_segment()
        assert isinstance(read_for(session, 20, LiveSegmentEnd)[-1], LiveSegmentEnd)


def test_an_engine_of_ones_own_ends_with_its_last_session(prefix: Path) -> None:
    before = descriptors()
    engine = EngineClient(command=COMMAND, prefix=prefix)
    session = engine.open_live("toy", idle=False, paced=False)
    [child] = psutil.Process().children()
    engine.close()
    session.push_audio(TONE)
    session.end_segment()
    assert sum(isinstance(e, VideoFrame) for e in read_for(session, 20, LiveSegmentEnd)) == 25
    session.close()
    del session
    assert not child.is_running() and descriptors() == before


def test_a_frame_that_is_held_keeps_no_engine(prefix: Path) -> None:
    ffi, lib = load_library(prefix)
    engine = EngineClient(command=COMMAND, prefix=prefix)
    session = engine.open_live("toy", paced=False)
    [child] = psutil.Process().children()
    out = ffi.new("const ef_event **")
    while lib.ef_session_poll(session._handle, 1000, out) or out[0].type != lib.EF_EVENT_VIDEO:
        lib.ef_event_release(out[0])
    engine.close()
    session.close()
    del session
    assert not child.is_running()
    assert len(bytes(ffi.buffer(out[0].plane[0], 3 * out[0].width * out[0].height))) == 192  # the frame is still there
    lib.ef_event_release(out[0])


FORK = """
import os, sys
from pathlib import Path
import numpy as np, psutil
from everface.client.engine_client import EngineClient
from everface.core.errors import Unavailable
from everface.live.events import LiveSegmentEnd
engine = EngineClient(command=sys.argv[2], prefix=Path(sys.argv[1]))
session = engine.open_live("toy", idle=False, paced=False)
child = os.fork()
if child == 0:
    try:
        said = str(engine.open_live("toy"))
    except Unavailable as error:
        said = str(error)
    session.close()
    del session
    engine.close()
    os._exit("before fork()" not in said)
assert os.waitpid(child, 0)[1] == 0
session.push_audio(np.ones(16_000, np.int16))
session.end_segment()
assert any(isinstance(event, LiveSegmentEnd) for event in session)
assert len(psutil.Process().children()) == 1
"""


def test_a_child_after_fork_frees_its_copies_and_the_parents_session_goes_on(prefix: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(prefix), COMMAND], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["/no/such/engine", "false"])
def test_an_engine_that_does_not_start_is_said(prefix: Path, command: str) -> None:
    with pytest.raises(Unavailable, match=r"cannot be started|while"), EngineClient(command=command, prefix=prefix) as engine:
        engine.open_live("toy")


def test_a_fake_engine_serves_an_embedders_tests(fake: EngineClient) -> None:
    with fake.open_live("face.png", idle=False, paced=False, size=(6, 10)) as session:
        audio = np.stack([TONE, -TONE], 1)
        assert session.push_audio(audio, 44_100) == len(audio)
        session.end_segment()
        events = read_for(session, 10, LiveSegmentEnd)
    back = np.concatenate([e.samples_SC for e in events if isinstance(e, AudioFrame)])
    assert np.array_equal(back[: len(audio)], audio) and not back[len(audio) :].any()
    frames = [e for e in events if isinstance(e, VideoFrame)]
    assert len(frames) == 10 and frames[3].image_HW3.shape == (6, 10, 3) and [e.pts for e in frames] == [640 * i for i in range(10)]
    with fake.open_live("face.png") as session:
        assert all(e.idle for e in read_for(session, 1.0) if isinstance(e, VideoFrame))
    with pytest.raises(BadInput, match="no image"):
        fake.open_live("")


def test_sessions_that_ended_leave_nothing_in_the_fake_engine(fake: EngineClient) -> None:
    fake.open_live("face.png").close()
    before = len(descriptors())
    for _ in range(20):
        fake.open_live("face.png").close()
    assert len(descriptors()) < before + 15  # the last ones may be about to end


def test_a_cancel_ends_a_wait(fake: EngineClient) -> None:
    with fake.open_live("face.png", idle=False) as session:
        threading.Timer(0.2, session.cancel).start()
        began_s = time.monotonic()
        assert session.read(60.0) is None and time.monotonic() - began_s < 30
        session.cancel()
        assert session.read(20.0) is None
        session.push_audio(TONE)
        assert read_for(session, 5, VideoFrame)


def test_a_drained_session_is_read_to_its_end(fake: EngineClient) -> None:
    session = fake.open_live("face.png", idle=False, paced=False)
    session.push_audio(TONE)
    session.close(drain_s=5.0)
    with pytest.raises(Unavailable, match="clos"):
        session.push_audio(TONE)
    assert sum(isinstance(e, VideoFrame) for e in session) == 25


def test_an_image_is_converted_into_memory_of_the_callers(prefix: Path, fake: EngineClient) -> None:
    ffi, lib = load_library(prefix)
    for height, width in ((6, 10), (5, 7), (1, 1), (96, 128), (7, 75)):
        with fake.open_live("face.png", size=(height, width), seed=3) as session:
            out = ffi.new("const ef_event **")
            while lib.ef_session_poll(session._handle, 1000, out) or out[0].type != lib.EF_EVENT_VIDEO:
                lib.ef_event_release(out[0])
            rgb = np.frombuffer(ffi.buffer(out[0].plane[0], 3 * height * width), np.uint8).reshape(height, width, 3).astype(float)
            planes = {name: copy(ffi, lib, out[0], getattr(lib, f"EF_{name}"), height, width) for name in ("RGB24", "BGRA", "NV12", "I420")}
            lib.ef_event_release(out[0])
        assert np.array_equal(planes["RGB24"][0].reshape(height, width, 3), rgb)
        assert np.array_equal(planes["BGRA"][0].reshape(height, width, 4)[..., :3], rgb[..., ::-1])
        luma = 16 + 219 / 255 * (rgb @ [0.2126, 0.7152, 0.0722])
        padded = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        mean = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, 3).mean((1, 3))
        y = mean @ [0.2126, 0.7152, 0.0722]
        u, v = (128 + 224 / 255 * (mean[..., c] - y) / d for c, d in ((2, 1.8556), (0, 1.5748)))
        assert np.abs(planes["I420"][0] - luma).max() <= 0.51 and np.array_equal(planes["NV12"][0], planes["I420"][0])
        assert np.abs(planes["I420"][1] - u).max() <= 0.51 and np.abs(planes["I420"][2] - v).max() <= 0.51
        assert np.array_equal(planes["NV12"][1][:, ::2], planes["I420"][1]) and np.array_equal(planes["NV12"][1][:, 1::2], planes["I420"][2])


def copy(ffi: Any, lib: Any, event: Any, kind: int, height: int, width: int) -> list[np.ndarray]:
    """Planes of an event in another format, with rows further apart than they are long."""
    half_h, half_w = (height + 1) // 2, (width + 1) // 2
    sizes = {
        lib.EF_RGB24: [(height, 3 * width)], lib.EF_BGRA: [(height, 4 * width)], lib.EF_NV12: [(height, width), (half_h, 2 * half_w)],
        lib.EF_I420: [(height, width), (half_h, half_w), (half_h, half_w)],
    }[kind]  # fmt: skip
    image = ffi.new("ef_image *")
    lib.ef_image_defaults(image)
    image.format, image.width, image.height = kind, width, height
    memory = [np.full((rows, columns + 5), 99, np.uint8) for rows, columns in sizes]
    for p, plane in enumerate(memory):
        image.plane[p], image.stride[p] = ffi.cast("uint8_t *", plane.ctypes.data), plane.shape[1]
    assert lib.ef_event_copy_image(event, image) == lib.EF_OK, ffi.string(lib.ef_last_error())
    assert all((plane[:, -5:] == 99).all() for plane in memory)
    return [plane[:, :-5].copy() for plane in memory]


def test_wrong_arguments_are_refused_in_a_sentence(prefix: Path, fake: EngineClient) -> None:
    ffi, lib = load_library(prefix)
    engine, session = ffi.new("ef_engine **"), ffi.new("ef_session **")
    zero = ffi.new("ef_session_config *")
    zero.image = kept = ffi.new("char[]", b"a")
    calls = [
        lib.ef_engine_open(ffi.NULL, ffi.NULL), lib.ef_session_open(ffi.NULL, ffi.NULL, session), lib.ef_session_open(fake._engine, zero, session),
        lib.ef_session_open(fake._engine, ffi.NULL, session), lib.ef_session_poll(ffi.NULL, 0, ffi.NULL), lib.ef_session_close(ffi.NULL, 0),
        lib.ef_session_push_audio(ffi.NULL, ffi.NULL, 0, 0, 16_000, 1, 0, ffi.NULL), lib.ef_event_copy_image(ffi.NULL, ffi.NULL),
    ]  # fmt: skip
    assert calls == [lib.EF_BAD_INPUT] * len(calls) and b": " in ffi.string(lib.ef_last_error()) and kept
    config = ffi.new("ef_engine_config *")
    lib.ef_engine_config_defaults(config)
    config.socket_path = where = ffi.new("char[]", b"/nowhere/e.sock")
    assert lib.ef_engine_open(config, engine) == lib.EF_LOST and where and b"start one" in ffi.string(lib.ef_last_error())
    for nothing in (lib.ef_engine_free, lib.ef_session_free, lib.ef_event_release, lib.ef_engine_cancel, lib.ef_session_cancel):
        nothing(ffi.NULL)
    assert lib.ef_session_fd(ffi.NULL) == -1 and ffi.string(lib.ef_status_name(5)) == b"EF_TIMEOUT" and lib.ef_status_name(99)


def test_a_client_that_dies_takes_its_own_engine_along(prefix: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from everface.client.engine_client import EngineClient\n"
        "e = EngineClient(command=sys.argv[2], prefix=Path(sys.argv[1])); s = e.open_live('toy')\n"
        "print(__import__('psutil').Process().children()[0].pid, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(prefix), COMMAND], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()
    end_s = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
