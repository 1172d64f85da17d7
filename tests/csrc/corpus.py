"""The inputs that the protocol's two ends are held to in tests, and that a fuzzer begins with: `python -m tests.csrc.corpus` writes the first of them.

csrc/tests/protocol_ends.h says how a file is read. Every kind of message is in one; what a fuzzer found is kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from everface.engine import protocol as p

FOLDER = Path(__file__).parent / "corpus"
TO_LIBRARY, TO_ENGINE = 0, 1  # the first byte of a file: which end receives the rest
GREETING = p.ClientHello(p.MAGIC, p.MAJOR, p.MINOR)
OPENING = p.OpenRequest("i", 7, False, False, 24_000, 2_000, 2, 8, 8)
REPLIES = (p.EngineHello(p.MAJOR, p.MINOR, "x", 1), p.OpenReply(8, 8, 4, 4096, 16_000, 25, 1_000, b"", "unlike any", True))
AUDIO = p.AudioPush(0, 16_000, 1, p.INT16, bytes(2_560))
FRAME, SOUND = p.FrameNotice(0, 0, 0, 0.0, False, False), p.AudioNotice(0, 0, 0.0, 16_000, 1, p.INT16, bytes(1_280))
NOTICES: tuple[p.Notice, ...] = (
    FRAME, SOUND, p.AudioNotice(0, 0, 0.0, 48_000, 2, p.FLOAT32, bytes(64)), p.SegmentNotice(1, 0.5, 0.5, False), p.UnderrunNotice(3, 1.0),
    p.RecoveringNotice("a stage ended"), p.RecoveredNotice(1.5, 4), p.QualityNotice(1, "fewer steps", 2.0), p.ErrorNotice(p.UNAVAILABLE, "no memory"),
    p.ClosedNotice(), p.AudioAck(0, 64), p.StatsReply(1, 2, 3, 4, 5, 6, 0.5, 20.0, 0.3, 640, 0, 0, 0), p.ChangeReply(1, p.OK, "", "unlike any"),
    p.ChangeReply(1, p.BAD_INPUT, "no image"),
)  # fmt: skip
REQUESTS: tuple[p.Request, ...] = (
    AUDIO, p.AudioPush(0, 48_000, 2, p.FLOAT32, bytes(64)), p.EndSegmentRequest(), p.InterruptRequest(1), p.SlotRelease(0), p.StatsRequest(1),
    p.CloseRequest(0), p.CloseRequest(100), p.ChangeRequest(1, "j", "a hat", True, "cut"), p.UserAudioPush(16_000, 1, p.INT16, bytes(640)),
)  # fmt: skip


def name_of(message: p.Request | p.Notice) -> str:
    return type(message).__name__


def file_of(end: int, *messages: p.Request | p.Notice) -> bytes:
    return bytes([end, 0]) + b"".join(map(p.encode, messages))


def inputs() -> Iterator[tuple[str, bytes]]:
    """(name, content): each message in a session of its own, and all in one."""
    for at, notice in enumerate(NOTICES):
        yield f"library-{at:02}-{name_of(notice)}", file_of(TO_LIBRARY, *REPLIES, notice)
    for at, request in enumerate(REQUESTS):
        yield f"engine-{at:02}-{name_of(request)}", file_of(TO_ENGINE, GREETING, OPENING, request)
    last = [n for n in NOTICES if not isinstance(n, p.ErrorNotice | p.ClosedNotice)]
    yield "library-session", file_of(TO_LIBRARY, *REPLIES, *last, p.FrameNotice(0, 1, 640, 0.04, True, True), p.ClosedNotice())
    yield "engine-session", file_of(TO_ENGINE, GREETING, OPENING, *[AUDIO] * 8, p.SlotRelease(0), p.EndSegmentRequest(), p.InterruptRequest(1), p.CloseRequest(100))
    yield "library-no-descriptor", bytes([TO_LIBRARY | 2]) + file_of(TO_LIBRARY, *REPLIES)[1:]
    yield "library-empty-memory", bytes([TO_LIBRARY | 4]) + file_of(TO_LIBRARY, *REPLIES, FRAME)[1:]
    yield "library-other-version", file_of(TO_LIBRARY, p.EngineHello(9, 0, "x", 1))
    yield "engine-other-version", file_of(TO_ENGINE, p.ClientHello(p.MAGIC, 9, 0))
    yield "engine-gpu", file_of(TO_ENGINE, GREETING, p.OpenRequest("i", 7, False, False, gpu="0000:04:00.0"))
    yield "library-gpu", bytes([TO_LIBRARY | 16]) + file_of(TO_LIBRARY, REPLIES[0], p.OpenReply(8, 8, 4, 4096, 16_000, 25, 1_000, bytes(64)))[1:]
    yield "engine-no-greeting", bytes([TO_ENGINE, 0]) + b"GET / HTTP/1.1\r\n\r\n"


def streams(end: int) -> list[bytes]:
    """What the files say to one end, in a fixed order."""
    contents = [path.read_bytes() for path in sorted(FOLDER.iterdir())]
    return [content[2:] for content in contents if len(content) > 2 and content[0] & 1 == end]


def kinds(end: int) -> set[str]:
    """The kinds of messages in the files of one end."""
    decode = p.decode_request if end == TO_ENGINE else p.decode_notice
    found = set()
    for stream in streams(end):
        while len(stream) >= p.LENGTH.size:
            [size] = p.LENGTH.unpack(stream[: p.LENGTH.size])
            try:
                found.add(name_of(decode(stream[p.LENGTH.size :][:size])))
            except ValueError:
                break
            stream = stream[p.LENGTH.size + size :]
    return found


def all_kinds(end: int) -> set[str]:
    return {kind.__name__ for kind in get_args(p.Request if end == TO_ENGINE else p.Notice)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in inputs():
        (FOLDER / name).write_bytes(content)
