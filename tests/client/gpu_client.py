"""A program with frames on a GPU, by the C functions: `python -m tests.client.gpu_client MODE PREFIX DEVICE ENGINE`.

frames: the SHA-256 of a second's frames. hold: keeps one frame until a line comes, longer than its session. lose: an engine that it starts
with the command ENGINE, and that is killed. refused: what opening says. ENGINE is the path of a socket else; "fake": the fake engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from everface.client.library import load_library
from everface.core.native import find_cudart

TONE = (8000 * np.sin(np.arange(16_000) * 0.05)).astype(np.int16)
POLL_MS = 60_000
DEVICE_TO_HOST = 2


class Program:
    def __init__(self, prefix: Path, device: int, engine: str, **config: int) -> None:
        self.ffi, self.lib = load_library(prefix)
        options = self.ffi.new("ef_engine_config *")
        self.lib.ef_engine_config_defaults(options)
        where = self.ffi.new("char[]", engine.encode())
        if engine == "fake":
            options.fake = 1
        elif engine.startswith("/") and " " not in engine:
            options.socket_path = where
        else:
            options.command = where
        self.engine, self.session = self.ffi.new("ef_engine **"), self.ffi.new("ef_session **")
        self.check(self.lib.ef_engine_open(options, self.engine))
        session = self.ffi.new("ef_session_config *")
        self.lib.ef_session_config_defaults(session)
        session.image = image = self.ffi.new("char[]", b"toy")
        session.idle, session.paced, session.cuda_device = 0, 0, device
        for name, value in config.items():
            setattr(session, name, value)
        self.check(self.lib.ef_session_open(self.engine[0], session, self.session))
        assert image
        self.device = device

    def check(self, status: int) -> None:
        if status:
            raise SystemExit(f"{self.ffi.string(self.lib.ef_status_name(status)).decode()}: {self.ffi.string(self.lib.ef_last_error()).decode()}")

    def speak(self) -> None:
        data = self.ffi.from_buffer(TONE.view(np.uint8))
        self.check(self.lib.ef_session_push_audio(self.session[0], data, len(TONE), self.lib.EF_INT16, 16_000, 1, POLL_MS, self.ffi.NULL))
        self.check(self.lib.ef_session_end_segment(self.session[0]))

    def poll(self, wanted: int, each: Callable[[Any], None] = lambda _: None) -> Any:
        """The next event of this type. `each` sees it and the ones before."""
        event = self.ffi.new("const ef_event **")
        while True:
            self.check(self.lib.ef_session_poll(self.session[0], POLL_MS, event))
            each(event[0])
            if event[0].type == wanted:
                return event[0]
            self.lib.ef_event_release(event[0])

    def pixels(self, e: Any) -> bytes:
        """Copied from where it is."""
        if self.device < 0:
            assert e.cuda_data == self.ffi.NULL and e.cuda_device == -1
            return bytes(self.ffi.buffer(e.plane[0], e.stride[0] * e.height))
        assert e.plane[0] == self.ffi.NULL and e.cuda_device == self.device and e.cuda_pitch == 3 * e.width
        image = self.ffi.new("ef_image *")
        assert self.lib.ef_event_copy_image(e, image) == self.lib.EF_BAD_INPUT
        cuda, out = ctypes.CDLL(find_cudart()), ctypes.create_string_buffer(e.cuda_pitch * e.height)
        source = ctypes.c_void_p(int(self.ffi.cast("uintptr_t", e.cuda_data)))
        assert cuda.cudaSetDevice(self.device) == 0
        assert cuda.cudaMemcpyAsync(out, source, ctypes.c_size_t(len(out)), DEVICE_TO_HOST, None) == 0 and cuda.cudaStreamSynchronize(None) == 0
        return out.raw

    def free(self) -> None:
        self.lib.ef_session_free(self.session[0])
        self.lib.ef_engine_free(self.engine[0])


def frames(program: Program) -> None:
    digest = hashlib.sha256()
    program.speak()

    def take(e: Any) -> None:
        if e.type == program.lib.EF_EVENT_VIDEO:
            digest.update(program.pixels(e))

    program.lib.ef_event_release(program.poll(program.lib.EF_EVENT_SEGMENT_END, take))
    print(digest.hexdigest())
    program.free()


def hold(program: Program) -> None:
    program.speak()
    event = program.poll(program.lib.EF_EVENT_VIDEO)
    before = program.pixels(event)
    program.free()
    print("held", flush=True)
    sys.stdin.readline()
    assert program.pixels(event) == before
    program.lib.ef_event_release(event)
    print("released", flush=True)
    sys.stdin.readline()


def lose(program: Program) -> None:
    [child] = psutil.Process().children()
    program.speak()
    program.lib.ef_event_release(program.poll(program.lib.EF_EVENT_VIDEO))
    child.kill()
    program.lib.ef_event_release(program.poll(program.lib.EF_EVENT_RECOVERED))
    frames(program)


if __name__ == "__main__":
    mode, prefix, device, engine = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    settings = dict(part.split("=") for part in sys.argv[5:])
    the_program = Program(prefix, device, engine, **{name: int(value) for name, value in settings.items()})
    {"frames": frames, "hold": hold, "lose": lose, "refused": Program.free}[mode](the_program)
