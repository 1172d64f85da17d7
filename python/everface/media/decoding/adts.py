"""Reads the packets of a raw AAC file (ADTS). Other than ffmpeg's reader it says how many bytes between them are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 16  # bytes read at once, more than eight of the longest packets
HEADER = 7  # bytes


def read_adts(path: Path) -> Iterator[tuple[bytes, int]]:
    """(a packet with its header, the bytes skipped before it), in order."""
    with open(path, "rb") as file:
        buffer, at, skipped, kind = file.read(PIECE), 0, 0, b""
        if buffer[:3] == b"ID3" and len(buffer) >= 10:
            file.seek(10 + sum(byte << shift for byte, shift in zip(buffer[6:10], (21, 14, 7, 0))))
            buffer = file.read(PIECE)
        while True:
            if len(buffer) - at < PIECE // 2 and (piece := file.read(PIECE)):
                buffer, at = buffer[at:] + piece, 0
            length = _packet_length(buffer, at, kind) or _run_length(buffer, at)
            if length:
                kind = _kind(buffer, at)
                yield buffer[at : at + length], skipped
                at, skipped = at + length, 0
                continue
            if len(buffer) - at <= HEADER:
                return
            found = buffer.find(b"\xff", at + 1)
            found = len(buffer) if found < 0 else found
            at, skipped = found, skipped + found - at


def _kind(buffer: bytes, at: int) -> bytes:
    """What is the same in every header of a file: the sync word, profile and rate."""
    return bytes((buffer[at], buffer[at + 1], buffer[at + 2] & 0xFC))


def _packet_length(buffer: bytes, at: int, kind: bytes) -> int:
    """Bytes of the packet that begins there, if it is of this kind; 0 if none does."""
    if len(buffer) - at < HEADER or buffer[at] != 0xFF or buffer[at + 1] & 0xF6 != 0xF0:
        return 0
    length = (buffer[at + 3] & 3) << 11 | buffer[at + 4] << 3 | buffer[at + 5] >> 5
    if length < HEADER or at + length > len(buffer):
        return 0
    return length if _kind(buffer, at) == kind else 0


def _run_length(buffer: bytes, at: int) -> int:
    """The same of a packet of any kind, but two more of its kind must follow, or the end of the file."""
    kind, end, first = _kind(buffer, at) if len(buffer) - at >= HEADER else b"", at, 0
    for _ in range(3):
        length = _packet_length(buffer, end, kind)
        first, end = first or length, end + length
        if not length or end == len(buffer):
            break
    return first if length else 0
