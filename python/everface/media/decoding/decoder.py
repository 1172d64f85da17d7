"""Decodes the audio stream of an open container. Time never closes up: what is damaged or missing becomes silence of the same length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from everface.core.errors import BadInput
from everface.media.container import demux
from everface.media.decoding.adts import read_adts
from everface.media.decoding.losses import AudioChunk, Losses
from everface.media.decoding.samples import samples_of

RATES = (1_000, 768_000)  # Hz
MOST_CHANNELS = 64  # that libav can mix
JITTER_S = 0.015  # of the times in a file: audio that is not later than that is in time
BACK_S = 0.5  # times that go back further than that begin again
MAX_GAP_S = 3600.0  # a longer one is a wrong time
MAX_READ_ERRORS = 100  # in a row
COUNTED = ("mp3", "aac")  # files without times: packets are counted, so only bytes say how much is lost
DAMAGED_SHARE = 0.5  # of the bytes that a gap should have: with more it is damage, with fewer nothing was recorded there
MOST_BYTES = 4.0  # of a packet, as a multiple of the usual for its length
STRANGE_FRAMES = 3  # of another rate or layout behind damage, which are taken for a part of it


def decode_audio(container: InputContainer, path: Path, report: bool = False) -> Iterator[AudioChunk]:
    """Chunks of the first audio stream; rate and channels may change. With `report`, what was lost is logged once, at the end.

    Packets that cannot be decoded, bytes that are no packets, missing time and samples that are not finite become silence. Raises BadInput
    if more is damaged than can be decoded.
    """
    counted = container.format.name in COUNTED
    losses, clock = Losses(path), _Clock(None if counted else stated_s(container))
    good_bytes = lost_bytes = strange = skipped = 0
    last: AudioChunk | None = None
    for packet, skipped in _packets(container, path):
        try:
            frames = packet.decode()
        except (FFmpegError, OSError):
            losses.packets += 1
            lost_bytes += packet.size + (skipped if counted else 0)
            clock.fail(packet)
            continue
        decoded_s = 0.0
        for frame in frames:
            chunk = _convert(frame, losses)
            lost_s = (lost_bytes + skipped) * losses.decoded_s / max(good_bytes, 1)
            if last is not None and chunk[1:] != last[1:] and lost_s and strange < STRANGE_FRAMES:
                strange += 1
                continue
            gap_s = clock.advance(frame)
            if counted and lost_s:  # none before the first packet
                frame_s = frame.samples / frame.sample_rate
                gap_s = frame_s * max(1, round(lost_s / frame_s))
            if gap_s:
                if lost_s > DAMAGED_SHARE * gap_s or last is None:
                    losses.add_damage(gap_s)
                yield from losses.fill(gap_s, chunk)
            yield chunk
            losses.decoded_s += len(chunk.samples_SC) / chunk.rate_hz
            last, lost_bytes, skipped, strange, decoded_s = chunk, 0, 0, 0, decoded_s + len(chunk.samples_SC) / chunk.rate_hz
        usual_bytes = MOST_BYTES * decoded_s * good_bytes / max(losses.decoded_s - decoded_s, 1e-3)
        if good_bytes and not counted and packet.size > usual_bytes:  # flac's damage comes in the packet before it
            lost_bytes += int(packet.size - usual_bytes)
            good_bytes += int(usual_bytes)
        else:
            good_bytes += packet.size
    if last is not None and not counted:
        lost_s = (lost_bytes + skipped) * losses.decoded_s / max(good_bytes, 1)
        gap_s = clock.missing_s(lost_s / DAMAGED_SHARE)
        if gap_s:
            losses.add_damage(gap_s)
            yield from losses.fill(gap_s, last)
    losses.finish(report)


def check_frame(frame: av.AudioFrame, name: str) -> None:
    """Raises BadInput for a rate or a number of channels that cannot be used."""
    if not RATES[0] <= frame.sample_rate <= RATES[1]:
        raise BadInput(f"{name} has a sample rate of {frame.sample_rate} Hz, outside {RATES[0]} to {RATES[1]} Hz: convert it first")
    if frame.layout.nb_channels > MOST_CHANNELS:
        raise BadInput(f"{name} has {frame.layout.nb_channels} channels, more than {MOST_CHANNELS}: mix it down first")


def stated_s(container: InputContainer) -> float | None:
    """Length of the first audio stream as the file states it: for some mp3 an estimate. None where it states none, or less than nothing."""
    stream = container.streams.audio[0]
    if stream.duration is not None and stream.time_base is not None:
        stated_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        stated_s = container.duration / av.time_base
    else:
        return None
    return stated_s if stated_s >= 0 else None


class _Clock:
    """Compares the times of frames with the audio before them."""

    def __init__(self, stated_s: float | None) -> None:
        self._stated_s = stated_s
        self._begin_s = 0.0
        self._end_s: float | None = None  # of the frames so far
        self._late_s = 0.0  # audio that is missing so far
        self._failed_end_s = 0.0

    def missing_s(self, most_lost_s: float) -> float:
        """Length of what failed behind the last frame, or is stated to be there and may be, by the bytes lost there."""
        end_s = self._end_s or 0.0
        stated_s = (self._stated_s or 0.0) + self._begin_s - end_s
        return max(0.0, self._failed_end_s - end_s, stated_s if JITTER_S < stated_s < most_lost_s else 0.0)

    def fail(self, packet: av.Packet) -> None:
        """A packet has no frames."""
        if packet.pts is None or packet.time_base is None or packet.pts < 0:
            return
        start_s = float(packet.pts * packet.time_base)
        if self._end_s is None:
            self._begin_s = self._end_s = start_s
        end_s = start_s + float((packet.duration or 0) * packet.time_base)
        if start_s - self._end_s <= MAX_GAP_S and not self._is_wrong(start_s):
            self._failed_end_s = max(self._failed_end_s, end_s)

    def advance(self, frame: av.AudioFrame) -> float:
        """Seconds of audio that are missing before a frame."""
        known = frame.pts is not None and frame.time_base is not None
        start_s = float(frame.pts * frame.time_base) if known else self._end_s or 0.0  # type: ignore[operator]  # both are known
        if self._end_s is None:
            self._begin_s = self._end_s = start_s
        step_s = start_s - self._end_s
        if step_s < -BACK_S or step_s > MAX_GAP_S or self._is_wrong(start_s):
            self._begin_s, self._late_s, self._failed_end_s, step_s = self._begin_s + step_s, 0.0, 0.0, 0.0
        self._end_s = start_s + frame.samples / frame.sample_rate
        self._late_s += step_s
        if self._late_s < -BACK_S:
            self._late_s = 0.0
        if self._late_s <= JITTER_S:
            return 0.0
        gap_s, self._late_s = self._late_s, 0.0
        return gap_s

    def _is_wrong(self, start_s: float) -> bool:
        return self._stated_s is not None and start_s - self._begin_s > self._stated_s + 1.0


def _packets(container: InputContainer, path: Path) -> Iterator[tuple[av.Packet, int]]:
    """The packets, and the bytes before each that are in none; at the end an empty one, which flushes the decoder.

    In a container these are the bytes before the place that the packet shares with others, as in a page of ogg. The empty one has those up
    to the end of the file.
    """
    stream = container.streams.audio[0]
    if container.format.name == "aac":
        for data, skipped in read_adts(path):
            packet = av.Packet(data)
            packet.stream = stream
            yield packet, skipped
        packet = av.Packet()
        packet.stream = stream
        yield packet, 0
        return
    packets, errors, at, size, skipped = demux(container, stream), 0, -1, 0, 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError):
            errors += 1
            if errors > MAX_READ_ERRORS:
                return
            packets = demux(container, stream)  # an error ends the iteration, not the file
            continue
        errors = 0
        if packet.pos is not None and packet.pos > at:
            skipped = max(0, packet.pos - at - size) if at >= 0 else 0
            at, size = packet.pos, 0
        size += packet.size
        yield packet, skipped if packet.size else skipped + max(0, path.stat().st_size - at - size)


def _convert(frame: av.AudioFrame, losses: Losses) -> AudioChunk:
    """Samples of any ffmpeg format as float32 [S, C]. Raises BadInput for a rate or channels that cannot be used."""
    check_frame(frame, str(losses.path))
    rate, channels = frame.sample_rate, tuple(channel.name for channel in frame.layout.channels)
    x_SC = samples_of(frame)
    if x_SC.dtype == np.uint8:
        return AudioChunk((x_SC.astype(np.float32) - 128) / 128, rate, channels)
    if np.issubdtype(x_SC.dtype, np.integer):
        return AudioChunk(x_SC.astype(np.float32) / 2.0 ** (x_SC.dtype.itemsize * 8 - 1), rate, channels)
    x_SC = x_SC.astype(np.float32)
    if not np.isfinite(x_SC).all():
        bad_S = ~np.isfinite(x_SC).all(axis=1)
        losses.add_unusable(int(bad_S.sum()), rate, losses.end_s + int(bad_S.argmax()) / rate)
        x_SC[~np.isfinite(x_SC)] = 0.0
    return AudioChunk(x_SC, rate, channels)
