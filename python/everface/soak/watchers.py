"""Watch what a session gives out: every frame in its place, audio as long as video, one end for each segment."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from everface.core.config import FPS, SAMPLE_RATE
from everface.live.events import AudioFrame, LiveEvent, LiveSegmentEnd, Underrun, VideoFrame
from everface.media.fragments import boxes
from everface.runtime.events import Recovering


@dataclass
class Watched:
    """Counts until now. `gaps`: frames that were not where they belong. `disorder`: events in a wrong order, or twice."""

    fps: int = FPS  # of the model; a connection says it before its first frame
    frames: int = 0
    gaps: int = 0
    disorder: int = 0
    underruns: int = 0
    segments: int = 0
    recoveries: int = 0
    av_ms: float = 0.0  # by how much the audio is longer than the video it belongs to; in MP4 it is so by up to half a packet either way
    av_sum_ms: float = 0.0  # of so many values of it, since the mean was asked for
    av_values: int = 0

    @property
    def media_s(self) -> float:
        return self.frames / self.fps

    def at_av(self, ms: float) -> None:
        self.av_ms = ms
        self.av_sum_ms += ms
        self.av_values += 1

    def mean_av_ms(self) -> float:
        """Since it was asked last."""
        mean_ms = self.av_sum_ms / self.av_values if self.av_values else self.av_ms
        self.av_sum_ms, self.av_values = 0.0, 0
        return mean_ms


class EventWatcher:
    """Of the events of a LiveSession with so many frames per second. Not thread-safe."""

    def __init__(self, fps: int) -> None:
        self.seen = Watched(fps)
        self._next: int | None = None  # pts of the frame to come
        self._least = False  # after an interruption a frame may be at `_next` or behind it
        self._audio_of: int | None = None  # the frame that waits for its audio
        self._repeated = False  # it is the frame before once more, which has audio only where the ladder asked for it

    def jump(self) -> None:
        """The session was interrupted: frames go on at the same position or a later one."""
        self._least, self._audio_of = True, None

    def add(self, event: LiveEvent) -> None:
        seen = self.seen
        match event:
            case VideoFrame():
                seen.disorder += self._audio_of is not None and not self._repeated
                self._audio_of, self._repeated = event.pts, event.held
                if not event.held:
                    self._place(event.pts)
            case AudioFrame():
                seen.disorder += event.pts != self._audio_of
                if self._repeated:
                    self._place(event.pts)
                self._audio_of = None
                seen.at_av(seen.av_ms + 1e3 * (len(event.samples_SC) / event.rate_hz - 1 / seen.fps))
            case LiveSegmentEnd():
                seen.segments += 1
                seen.disorder += event.segment != seen.segments
            case Underrun():
                seen.underruns += 1
            case Recovering():
                seen.recoveries += 1
            case _:
                pass

    def _place(self, pts: int) -> None:
        """A frame of the stream, and not one that is held until the next is ready."""
        if self._next is not None and (pts < self._next or (pts > self._next and not self._least)):
            self.seen.gaps += 1
        self.seen.frames += 1
        self._next, self._least = pts + SAMPLE_RATE // self.seen.fps, False


class FragmentWatcher:
    """Of the pieces of a server's fragmented MP4 and of its JSON messages. Keeps no more than a box. Not thread-safe."""

    def __init__(self) -> None:
        self.seen = Watched()
        self._bytes = bytearray()
        self._scales: dict[int, int] = {}
        self._video = 0
        self._ends: dict[int, int] = {}  # of each track, in its time scale

    def add(self, message: bytes | dict[str, object]) -> None:
        if isinstance(message, bytes):
            self._bytes += message
            while len(self._bytes) >= 8 and len(self._bytes) >= (size := struct.unpack_from(">I", self._bytes)[0]):
                name, content = bytes(self._bytes[4:8]), bytes(self._bytes[8:size])
                del self._bytes[: max(size, 8)]
                self._box(name, content)
            return
        seen = self.seen
        if message["type"] == "media":
            assert isinstance(message["fps"], int)
            seen.fps = message["fps"]
        if message["type"] == "segment_end":
            seen.segments += 1
            seen.disorder += message["segment"] != seen.segments
        seen.underruns += message["type"] == "underrun"
        seen.recoveries += message["type"] == "recovering"

    def _box(self, name: bytes, content: bytes) -> None:
        if name == b"moov":
            for trak in (content for name, content in boxes(content) if name == b"trak"):
                mdia = dict(boxes(dict(boxes(trak))[b"mdia"]))
                header, media = dict(boxes(trak))[b"tkhd"], mdia[b"mdhd"]
                number = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
                self._scales[number] = struct.unpack_from(">I", media, 20 if media[0] else 12)[0]
                if mdia[b"hdlr"][8:12] == b"vide":
                    self._video = number
        elif name == b"moof":
            for traf in (content for name, content in boxes(content) if name == b"traf"):
                self._fragment(dict(boxes(traf)))

    def _fragment(self, traf: dict[bytes, bytes]) -> None:
        header, time, run = traf[b"tfhd"], traf[b"tfdt"], traf[b"trun"]
        flags, number = struct.unpack_from(">II", header)
        at = 8 + 8 * bool(flags & 1) + 4 * bool(flags & 2)
        usual = struct.unpack_from(">I", header, at)[0] if flags & 8 else 0
        begin = struct.unpack_from(">Q" if time[0] else ">I", time, 4)[0]
        flags, count = struct.unpack_from(">II", run)
        at = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
        width = 4 * sum(bool(flags & flag) for flag in (0x100, 0x200, 0x400, 0x800))
        durations = [struct.unpack_from(">I", run, at + n * width)[0] for n in range(count)] if flags & 0x100 else [usual] * count
        self.seen.gaps += begin != self._ends.get(number, begin)
        self._ends[number] = begin + sum(durations)
        if number == self._video:
            self.seen.frames += count
        if len(self._ends) == len(self._scales):
            ends_s = {track: end / self._scales[track] for track, end in self._ends.items()}
            self.seen.at_av(1e3 * (sum(s for track, s in ends_s.items() if track != self._video) - ends_s[self._video]))


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares: y a 1,000 of x."""
    if len(points) < 3 or points[-1][0] <= points[0][0]:
        return 0.0
    x, y = np.array(points, np.float64).T
    return float(1000 * np.polyfit(x, y, 1)[0])
