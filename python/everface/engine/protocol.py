"""The messages between an engine and its clients. csrc/client/protocol.h holds the same list.

    message = [uint32 length, little-endian][msgpack array: tag, fields ...]

Fields are only added at the end, with a default: an older reader ignores what it does not know, and a newer one fills in what is missing.
Any other change raises MAJOR.
"""

from __future__ import annotations

import struct

import msgspec

MAGIC = "everface"
MAJOR, MINOR = 1, 3
LENGTH = struct.Struct("<I")
MOST_BYTES = 1 << 20  # of one message
MOST_NAME = 4096  # characters of a path or a prompt
INT16, FLOAT32 = 0, 1
SAMPLE_BYTES = {INT16: 2, FLOAT32: 4}


class ClientHello(msgspec.Struct, array_like=True, tag=1):
    magic: str
    major: int
    minor: int


class OpenRequest(msgspec.Struct, array_like=True, tag=2):
    """Ask for a session. Zero stands for the engine's own choice where a size or count is asked for."""

    image: str  # a path that the engine can read
    seed: int
    idle: bool
    paced: bool
    playback_hz: int = 24_000
    outbox_ms: int = 2_000
    slots: int = 0
    width: int = 0
    height: int = 0
    prompt: str = ""
    gpu: str = ""  # since 1.2: PCI bus id of the GPU that holds the frames; empty: host memory


class AudioPush(msgspec.Struct, array_like=True, tag=3):
    """Audio of turn `turn`, interleaved."""

    turn: int
    rate_hz: int
    channels: int
    format: int
    data: bytes


class EndSegmentRequest(msgspec.Struct, array_like=True, tag=4):
    pass


class InterruptRequest(msgspec.Struct, array_like=True, tag=5):
    """Begins turn `turn`, which is one more than the turn before."""

    turn: int


class SlotRelease(msgspec.Struct, array_like=True, tag=6):
    slot: int


class StatsRequest(msgspec.Struct, array_like=True, tag=7):
    number: int


class CloseRequest(msgspec.Struct, array_like=True, tag=8):
    """End the session. `drain_ms`: first give out what was pushed, for so long at most."""

    drain_ms: int


class ChangeRequest(msgspec.Struct, array_like=True, tag=9):
    """Since 1.3. Another image, where it is not empty, or prompt, where `has_prompt`. `transition`: empty, or as `Session.cut` takes it."""

    number: int
    image: str = ""
    prompt: str = ""
    has_prompt: bool = False
    transition: str = ""


class UserAudioPush(msgspec.Struct, array_like=True, tag=10):
    """Since 1.3. What the person hears, interleaved; only where the OpenReply says that it listens."""

    rate_hz: int
    channels: int
    format: int
    data: bytes


class EngineHello(msgspec.Struct, array_like=True, tag=16):
    major: int
    minor: int
    version: str
    pid: int


class OpenReply(msgspec.Struct, array_like=True, tag=17):
    """The session is open. The descriptor of the frames' memory comes with it; of a GPU's, one that the client closes after that memory."""

    width: int
    height: int
    slots: int
    slot_bytes: int
    sample_rate: int
    fps: int
    window_ms: int  # of audio that may be sent without an AudioAck
    handle: bytes = b""  # since 1.2: the cudaIpcMemHandle_t of a GPU's memory
    remark: str = ""  # since 1.3: `LiveSession.remark`
    listens: bool = False  # since 1.3: UserAudioPush may come


class FrameNotice(msgspec.Struct, array_like=True, tag=18):
    """A video frame, RGB24 without gaps, in a slot that is the client's until its SlotRelease."""

    turn: int
    slot: int
    pts: int
    time_s: float
    idle: bool
    held: bool


class AudioNotice(msgspec.Struct, array_like=True, tag=19):
    turn: int
    pts: int
    time_s: float
    rate_hz: int
    channels: int
    format: int
    data: bytes


class SegmentNotice(msgspec.Struct, array_like=True, tag=20):
    segment: int
    pushed_s: float
    shown_s: float
    interrupted: bool


class UnderrunNotice(msgspec.Struct, array_like=True, tag=21):
    frames: int
    time_s: float


class RecoveringNotice(msgspec.Struct, array_like=True, tag=22):
    reason: str


class RecoveredNotice(msgspec.Struct, array_like=True, tag=23):
    seconds: float
    recomputed: int


class ErrorNotice(msgspec.Struct, array_like=True, tag=24):
    """The end of the session, or of the connection. `status`: a value of ef_status in everface.h."""

    status: int
    text: str


class ClosedNotice(msgspec.Struct, array_like=True, tag=25):
    pass


class AudioAck(msgspec.Struct, array_like=True, tag=26):
    """So many more samples (per channel) of a turn no longer wait in the engine's queue."""

    turn: int
    samples: int


class StatsReply(msgspec.Struct, array_like=True, tag=27):
    number: int
    frames: int
    idle_frames: int
    held_frames: int
    underruns: int
    dropped_frames: int
    queued_s: float
    block_ms: float  # -1: not known yet
    first_frame_s: float  # -1: not known yet
    position: int
    level: int
    level_changes: int
    repeated_frames: int
    refill_frames: int = 0  # since 1.2


class QualityNotice(msgspec.Struct, array_like=True, tag=28):
    """Since 1.1. `level` 0 is full quality; `what` says how frames are made at this one."""

    level: int
    what: str
    time_s: float


class ChangeReply(msgspec.Struct, array_like=True, tag=29):
    """Since 1.3. `status`: a value of ef_status; with another than OK, `text` is a sentence and nothing has changed."""

    number: int
    status: int
    text: str = ""
    remark: str = ""


Request = (
    ClientHello | OpenRequest | AudioPush | EndSegmentRequest | InterruptRequest | SlotRelease | StatsRequest | CloseRequest | ChangeRequest
    | UserAudioPush
)  # fmt: skip
Notice = (
    EngineHello | OpenReply | FrameNotice | AudioNotice | SegmentNotice | UnderrunNotice | RecoveringNotice | RecoveredNotice
    | ErrorNotice | ClosedNotice | AudioAck | StatsReply | QualityNotice | ChangeReply
)  # fmt: skip

OK, BAD_INPUT, UNAVAILABLE, VERSION, LOST = 0, 1, 2, 3, 4  # the part of ef_status that travels

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_notices = msgspec.msgpack.Decoder(Notice)


def encode(message: Request | Notice) -> bytes:
    """With its length in front."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_request(body: bytes | bytearray) -> Request:
    """Raises ValueError for what is no request."""
    return _requests.decode(body)


def decode_notice(body: bytes | bytearray) -> Notice:
    """Raises ValueError for what is no notice."""
    return _notices.decode(body)
