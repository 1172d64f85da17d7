"""The boxes of an MP4 file, read independently of the package."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

CONTAINERS = {"moov", "trak", "mdia", "minf", "stbl", "edts", "mvex", "moof", "traf"}


def names(path: Path) -> list[str]:
    """Of the outermost boxes, in order."""
    return [name for name, _ in _split(path.read_bytes())]


def tables(path: Path) -> list[dict[str, bytes]]:
    """The contents of the boxes of the index, as "mdia/mdhd": those of the movie first, then those of each track."""
    movie = next(content for name, content in _split(path.read_bytes()) if name == "moov")
    found: list[dict[str, bytes]] = [{}]
    for name, content in _split(movie):
        if name == "trak":
            found.append(_flat(content))
        else:
            found[0][name] = content
    return found


def uint32s(content: bytes) -> list[int]:
    """Of a table, after its version and flags."""
    return list(struct.unpack(f">{(len(content) - 4) // 4}I", content[4 : 4 + (len(content) - 4) // 4 * 4]))


def _flat(content: bytes, above: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, inside in _split(content):
        found |= _flat(inside, f"{above}{name}/") if name in CONTAINERS else {above + name: inside}
    return found


def _split(content: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        start = 8
        if length == 1:
            (length,), start = struct.unpack_from(">Q", content, at + 8), 16
        assert start <= length <= len(content) - at, f"{name!r} of {length} bytes at {at}"
        yield name.decode(), content[at + start : at + length]
        at += length
