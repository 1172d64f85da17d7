"""Rewrites a fragmented MP4 as an ordinary one: first the index (moov), then the samples (mdat), so that players can seek and show its length.

Samples are copied as they are, and of the fragments only the headers are interpreted. libav's muxer, which could do it too, keeps a record
of every packet: 320 MB for ten hours.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from everface.core.errors import BadInput
from everface.media.fragments import FragmentedFile, Track, boxes, read_fragments

COPY_BYTES = 1 << 20  # at once
SYNC_BYTES = 64 << 20  # copied before the disk must have stored them: so the last wait for it is short
UINT32_MAX = 0xFFFFFFFF
BRANDS = b"isom" + struct.pack(">I", 512) + b"isomiso2avc1mp41"
# To decode an AAC packet, the one before it is needed too.
PREROLL_GROUP = b"\x01\0\0\0roll" + struct.pack(">IIh", 2, 1, -1)

Parts = list[bytes | bytearray]  # a box in pieces, so that long tables are not copied


def rewrite(source: Path, target: Path, give_up: Callable[[], bool] = lambda: False) -> None:
    """Write the fragmented `source` as `target` and wait until the disk has it. A last fragment that is not complete is left out.

    After an error `target` is incomplete. Raises OSError, InterruptedError when `give_up` returns True, and BadInput for a file that
    VideoWriter would not write.
    """
    with open(source, "rb") as file, open(target, "wb") as new:
        try:
            fragmented = read_fragments(file)
            header = _header(fragmented)
        except (struct.error, LookupError) as error:
            raise BadInput(f"the boxes of {source} are damaged ({error!r}): write the video again") from None
        new.writelines(header)
        unsynced = 0
        for start, length in zip(fragmented.pieces[::2], fragmented.pieces[1::2]):
            file.seek(start)
            while length:
                if give_up():
                    raise InterruptedError(errno.EINTR, "interrupted")
                data = file.read(min(length, COPY_BYTES))
                if not data:
                    raise BadInput(f"{source} became shorter while it was read: write the video again")
                new.write(data)
                length, unsynced = length - len(data), unsynced + len(data)
            if unsynced >= SYNC_BYTES:
                _sync(new)
                unsynced = 0
        _sync(new)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(fragmented: FragmentedFile) -> Parts:
    """Everything before the samples."""
    length = sum(fragmented.pieces[1::2])
    ftyp = _box(b"ftyp", [BRANDS])
    large = length + _size(ftyp) + _size(_moov(fragmented, 0, True)) + 16 > UINT32_MAX
    mdat = struct.pack(">I4sQ", 1, b"mdat", length + 16) if large else struct.pack(">I4s", length + 8, b"mdat")
    shift = _size(ftyp) + _size(_moov(fragmented, 0, large)) + len(mdat)
    return [*ftyp, *_moov(fragmented, shift, large), mdat]


def _moov(fragmented: FragmentedFile, shift: int, large: bool) -> Parts:
    """The index. `shift`: where the samples begin; `large`: offsets need 64 bits."""
    parts, scale, longest = list[Parts](), _time_scale(dict(boxes(fragmented.moov))[b"mvhd"]), 0
    for name, content in boxes(fragmented.moov):
        if name == b"trak":
            track = fragmented.tracks[_track_number(content)]
            part, duration = _trak(content, track, scale, shift, large)
            parts.append(part)
            longest = max(longest, duration)
        elif name not in (b"mvhd", b"mvex"):
            parts.append(_box(name, [content]))
    mvhd = _with_duration(dict(boxes(fragmented.moov))[b"mvhd"], 16, longest)
    next_track = struct.pack(">I", max(fragmented.tracks) + 1)
    return _box(b"moov", [*_box(b"mvhd", [mvhd[:-4], next_track]), *_joined(parts)])


def _trak(trak: bytes, track: Track, movie_scale: int, shift: int, large: bool) -> tuple[Parts, int]:
    """The track's box, and how long it is shown, in the movie's time scale."""
    inside = dict(boxes(trak))
    scale = _time_scale(dict(boxes(inside[b"mdia"]))[b"mdhd"])

    def shown(skipped: int) -> int:
        return -(-(track.duration - skipped) * movie_scale // scale)  # rounded up, so that nothing is cut off

    edits, duration = b"", shown(0)
    if b"edts" in inside:
        edits, duration = _edits(dict(boxes(inside[b"edts"]))[b"elst"], shown)
    parts: list[Parts] = []
    for name, content in boxes(trak):
        if name == b"tkhd":
            parts.append(_box(name, [_with_duration(content, 20, duration)]))
        elif name == b"edts":
            parts.append(_box(name, _box(b"elst", [edits])))
        elif name == b"mdia":
            parts.append(_box(name, _mdia(content, track, shift, large)))
        else:
            parts.append(_box(name, [content]))
    return _box(b"trak", _joined(parts)), duration


def _mdia(mdia: bytes, track: Track, shift: int, large: bool) -> Parts:
    parts: list[Parts] = []
    for name, content in boxes(mdia):
        if name == b"mdhd":
            parts.append(_box(name, [_with_duration(content, 16, track.duration)]))
        elif name == b"minf":
            minf = [_stbl(c, track, shift, large) if n == b"stbl" else _box(n, [c]) for n, c in boxes(content)]
            parts.append(_box(name, _joined(minf)))
        else:
            parts.append(_box(name, [content]))
    return _joined(parts)


def _stbl(stbl: bytes, track: Track, shift: int, large: bool) -> Parts:
    """The sample tables."""
    description = dict(boxes(stbl))[b"stsd"]
    keyframes = [*range(1, track.leading_keyframes + 1), *track.keyframes] if track.leading_keyframes < track.samples else None
    runs, first = list[int](), 1
    for samples, chunks in groupby(track.chunk_samples):
        runs += first, samples, 1  # the description that all samples have
        first += sum(1 for _ in chunks)
    durations = [value for pair in track.durations for value in pair]
    offsets = _packed("Q" if large else "I", array("Q", (shift + offset for offset in track.chunks)))
    tables: list[tuple[bytes, Parts]] = [
        (b"stsd", [description]),
        (b"stts", [_full(len(durations) // 2), _packed("I", durations)]),
        *([(b"stss", [_full(len(keyframes)), _packed("I", keyframes)])] if keyframes is not None else []),
        (b"stsc", [_full(len(runs) // 3), _packed("I", runs)]),
        (b"stsz", [_full(0, track.samples), track.sizes]),
        (b"co64" if large else b"stco", [_full(len(track.chunks)), offsets]),
    ]
    if b"mp4a" in description[:20]:
        tables.append((b"sgpd", [PREROLL_GROUP]))
        tables.append((b"sbgp", [b"\0\0\0\0roll", struct.pack(">3I", 1, track.samples, 1)]))
    return _box(b"stbl", _joined([_box(name, content) for name, content in tables]))


def _edits(elst: bytes, shown: Callable[[int], int]) -> tuple[bytes, int]:
    """The edit list with its last edit until the end, and the length of all edits. `shown(skipped)`: length without a start that is skipped."""
    version, (count,) = elst[0], struct.unpack_from(">I", elst, 4)
    edits = [struct.unpack_from(">Qqi" if version else ">Iii", elst, 8 + i * (20 if version else 12)) for i in range(count)]
    last = (shown(edits[-1][1]), *edits[-1][1:])
    edits = [*edits[:-1], last]
    long = max(edit[0] for edit in edits) > UINT32_MAX
    packed = b"".join(struct.pack(">Qqi" if long else ">Iii", *edit) for edit in edits)
    return struct.pack(">BxxxI", long, count) + packed, sum(edit[0] for edit in edits)


def _with_duration(header: bytes, at: int, duration: int) -> bytes:
    """A mvhd, tkhd or mdhd with another duration, which in version 0 is at `at`, and with 64-bit times if it needs them."""
    if header[0]:  # version 1: creation and modification time have eight bytes each
        return header[: at + 8] + struct.pack(">Q", duration) + header[at + 16 :]
    if duration < UINT32_MAX:
        return header[:at] + struct.pack(">I", duration) + header[at + 4 :]
    times = struct.pack(">QQ", *struct.unpack_from(">II", header, 4))
    return b"\x01" + header[1:4] + times + header[12:at] + struct.pack(">Q", duration) + header[at + 4 :]


def _time_scale(header: bytes) -> int:
    """Of a mvhd or mdhd: ticks in a second."""
    return struct.unpack_from(">I", header, 20 if header[0] else 12)[0]


def _track_number(trak: bytes) -> int:
    header = dict(boxes(trak))[b"tkhd"]
    return struct.unpack_from(">I", header, 20 if header[0] else 12)[0]


def _full(*values: int) -> bytes:
    """The start of a table: version and flags, which are 0, and numbers of 32 bits."""
    return struct.pack(f">{len(values) + 1}I", 0, *values)


def _packed(kind: str, values: Sequence[int]) -> bytes:
    return struct.pack(f">{len(values)}{kind}", *values)


def _box(name: bytes, content: Parts) -> Parts:
    return [struct.pack(">I4s", 8 + _size(content), name), *content]


def _joined(parts: list[Parts]) -> Parts:
    return [piece for part in parts for piece in part]


def _size(parts: Parts) -> int:
    return sum(map(len, parts))
