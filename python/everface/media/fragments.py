"""Reads the sample tables of a fragmented MP4 from the headers of its fragments.

Boxes are those of ISO/IEC 14496-12: a length (uint32, big-endian, itself included), a name of four letters, the content. Memory is four
bytes per sample, 10 MB for ten hours.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from everface.core.errors import BadInput

MOST_HEADER_BYTES = 16 << 20  # of a moov or moof
MOST_SAMPLES = 1 << 16  # of one track in a fragment
NOT_SYNC = 0x10000  # flag of a sample that is not a keyframe


@dataclass
class Track:
    """The samples of one track. Durations are in its own time scale, offsets count from the first sample of the file."""

    defaults: tuple[int, int, int]  # duration, size and flags of a sample, where a fragment does not give them
    samples: int = 0
    duration: int = 0
    sizes: bytearray = field(default_factory=bytearray)  # uint32 each, big-endian, as a table holds them
    durations: list[list[int]] = field(default_factory=list[list[int]])  # [samples, duration of each], one after the other
    keyframes: array[int] = field(default_factory=lambda: array("I"))  # sample numbers from 1, beyond `leading_keyframes`
    leading_keyframes: int = 0  # samples at the start that are all keyframes: in audio, all
    chunks: array[int] = field(default_factory=lambda: array("Q"))  # offsets
    chunk_samples: array[int] = field(default_factory=lambda: array("I"))


@dataclass
class FragmentedFile:
    """`moov`: its content. `pieces`: start and length of every mdat, alternately."""

    moov: bytes
    tracks: dict[int, Track]
    pieces: array[int]


@dataclass
class _Run:
    """Consecutive samples of one track: a trun box. Offsets are those in the file."""

    track: Track
    start: int  # in the track's time scale
    offset: int
    durations: tuple[int, ...]
    sizes: tuple[int, ...]
    flags: tuple[int, ...]


def read_fragments(file: BinaryIO) -> FragmentedFile:
    """Read the headers of all fragments that are complete.

    Raises BadInput for a file that VideoWriter would not write, struct.error and LookupError for one that is damaged, OSError.
    """
    read, copied, runs = FragmentedFile(b"", {}, array("Q")), 0, list[_Run]()
    for name, begin, start, end in file_boxes(file):
        if name in (b"moov", b"moof"):
            _check(end - start <= MOST_HEADER_BYTES, f"a header of {end - start} bytes")
            file.seek(start)
            content = file.read(end - start)
            if name == b"moov":
                read.moov, read.tracks = content, _tracks(content)
            else:
                runs = _runs(content, read.tracks, begin)
        elif name == b"mdat" and runs:
            for run in runs:
                _check(start <= run.offset and run.offset + sum(run.sizes) <= end, "samples outside their fragment")
                _add(run, copied + run.offset - start)
            read.pieces.extend((start, end - start))
            copied += end - start
            runs = []
    _check(bool(read.tracks) and all(track.samples for track in read.tracks.values()), "a track without samples")
    return read


def file_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """(name, begin, begin of the content, end) of every complete box of a file."""
    size, begin = os.fstat(file.fileno()).st_size, 0
    while begin + 8 <= size:
        file.seek(begin)
        length, name = struct.unpack(">I4s", file.read(8))
        start = begin + 8
        if length == 1:
            (length,), start = struct.unpack(">Q", file.read(8)), begin + 16
        if length < start - begin or begin + length > size:
            return
        yield name, begin, start, begin + length
        begin += length


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of every box in the content of another."""
    at = 0
    while at < len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        _check(8 <= length <= len(content) - at, f"a box {name!r} of {length} bytes")
        yield name, content[at + 8 : at + length]
        at += length


def _check(good: bool, what: str) -> None:
    if not good:
        raise BadInput(f"the fragments contain {what}: write the video again")


def _tracks(moov: bytes) -> dict[int, Track]:
    tracks: dict[int, Track] = {}
    for name, content in boxes(dict(boxes(moov))[b"mvex"]):
        if name == b"trex":
            number, _, duration, size, flags = struct.unpack_from(">5I", content, 4)
            tracks[number] = Track((duration, size, flags))
    return tracks


def _runs(moof: bytes, tracks: dict[int, Track], begin: int) -> list[_Run]:
    """The runs of a moof box that begins at `begin` in the file."""
    runs: list[_Run] = []
    for traf in (content for name, content in boxes(moof) if name == b"traf"):
        parts = list(boxes(traf))
        header, time = dict(parts)[b"tfhd"], dict(parts)[b"tfdt"]
        flags, number = struct.unpack_from(">II", header)
        _check(flags & 0x20003 == 0x20000, "offsets that are not counted from the fragment")
        track, at = tracks[number], 8
        defaults = list(track.defaults)
        for i, flag in enumerate((0x8, 0x10, 0x20)):
            if flags & flag:
                (defaults[i],) = struct.unpack_from(">I", header, at)
                at += 4
        (start,) = struct.unpack_from(">Q" if time[0] else ">I", time, 4)  # the first byte is the box's version
        for run in (content for name, content in parts if name == b"trun"):
            runs.append(_run(run, track, defaults, start, begin))
            start += sum(runs[-1].durations)
    return runs


def _run(trun: bytes, track: Track, defaults: list[int], start: int, begin: int) -> _Run:
    flags, count, offset = struct.unpack_from(">IIi", trun)
    _check(flags & 0x801 == 0x1, "frames in another order than they are shown in")
    _check(count <= MOST_SAMPLES, f"a run of {count} samples")
    given = [bool(flags & flag) for flag in (0x100, 0x200, 0x400)]  # for each sample: duration, size, flags
    at, width = 16 if flags & 0x4 else 12, sum(given)
    values = struct.unpack_from(f">{width * count}I", trun, at)
    columns = [values[sum(given[:i]) :: width] if given[i] else (defaults[i],) * count for i in range(3)]
    if flags & 0x4:  # the first sample's flags
        columns[2] = (*struct.unpack_from(">I", trun, 12), *columns[2][1:])
    return _Run(track, start, begin + offset, *columns)


def _add(run: _Run, offset: int) -> None:
    """Append a run, which starts at `offset` among the samples of all fragments, to its track."""
    track, count = run.track, len(run.sizes)
    _check(run.start == track.duration, f"a start at {run.start} instead of {track.duration}")
    for duration in run.durations:
        if track.durations and track.durations[-1][1] == duration:
            track.durations[-1][0] += 1
        else:
            track.durations.append([1, duration])
    keyframes = [track.samples + number for number, flags in enumerate(run.flags, 1) if not flags & NOT_SYNC]
    if len(keyframes) == count and track.leading_keyframes == track.samples:
        track.leading_keyframes += count
    else:
        track.keyframes.extend(keyframes)
    track.sizes += struct.pack(f">{count}I", *run.sizes)
    track.samples += count
    track.duration += sum(run.durations)
    track.chunks.append(offset)
    track.chunk_samples.append(count)
