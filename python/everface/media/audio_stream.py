"""Reads audio from a pipe while it comes: WAV and raw PCM sample by sample, other containers as their decoders give it. Memory is bounded."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.core.log import log
from everface.media.audio import MIN_S, AudioInfo, with_channels
from everface.media.container import FORMATS, demux
from everface.media.decoding.decoder import check_frame
from everface.media.decoding.downmix import MonoMixer
from everface.media.decoding.losses import AudioChunk
from everface.media.decoding.samples import samples_of
from everface.media.resampler import Resampler
from everface.media.wav_stream import PCM, read_pcm, read_wav_header

QUEUED_S = 5.0  # most decoded audio that waits
SILENT_S = 10.0  # without a byte before the log says so
MOST_PLACES = 100  # that cannot be read before the rest is left out
BAD_PACKETS = 100  # that may fail before anything is said, if not more fail than are decoded
# libav shall not collect seconds of audio before it gives out the first.
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "", "analyzeduration": "1", "fpsprobesize": "0"}
PROBE_BYTES = 1 << 20  # most that libav reads to find out what it is


class AudioPart(NamedTuple):
    """The same audio twice: for the video, [S, C] at the stream's rate, and for the model, [S] at 16 kHz, of several voices [voices, S].
    Either may be empty."""

    track_SC: np.ndarray
    mono_S: np.ndarray


class AudioStream:
    """The audio that comes from a descriptor, which stays open. A thread reads it; the methods belong to one other thread.

    pcm: what the bytes are, if they are no file but raw samples of 16 bits. Everything raises BadInput for a stream that is no audio.
    """

    def __init__(self, descriptor: int, pcm: PCM | None = None, name: str = "stdin") -> None:
        self.name, self._pcm = name, pcm
        self._bytes = _Bytes(descriptor, name)
        self._parts: deque[AudioPart] = deque()
        self._queued_s = self._decoded_s = 0.0
        self._info: AudioInfo | None = None
        self._error: Exception | None = None
        self._over = self._closed = False
        self._lock = threading.Lock()  # taken itself, not through the condition, into which Ctrl-C can come
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="everface audio", daemon=True)
        self._thread.start()

    def info(self) -> AudioInfo:
        """What it is; waits until as much as one video frame of it is there."""
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._decoded_s >= MIN_S or self._over, 0.2)
                if self._info and self._decoded_s >= MIN_S:
                    return self._info
                if self._over:
                    raise self._error or self._too_short()

    def check(self) -> None:
        """Raise what `info` would, if that is known by now."""
        with self._lock:
            if self._over and self._decoded_s < MIN_S:
                raise self._error or self._too_short()

    def take(self, timeout_s: float) -> AudioPart | None:
        """The next part; None if none came in time."""
        with self._lock:
            self._changed.wait_for(lambda: self._parts or self._over, timeout_s)
            if self._parts:
                part = self._parts.popleft()
                self._queued_s -= self._seconds(part)
                self._changed.notify_all()
                return part
            if self._error:
                raise self._error
            return None

    @property
    def ended(self) -> bool:
        """The producer has closed it, and every part was taken."""
        with self._lock:
            return self._over and not self._parts and not self._error

    def close(self) -> None:
        """End the thread, which reads no further. May be called twice."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._bytes.stop()
        self._thread.join(5.0)

    def _too_short(self) -> BadInput:
        if not self._decoded_s:
            return BadInput(f"{self.name} ended before any audio came: check the program that writes to it")
        return BadInput(f"{self.name} lasts {self._decoded_s * 1e3:.0f} ms, less than one video frame: send at least {MIN_S * 1e3:.0f} ms")

    def _seconds(self, part: AudioPart) -> float:
        return len(part.track_SC) / self._info.rate_hz if self._info else 0.0

    # on the thread

    def _run(self) -> None:
        try:
            for part in self._convert(_decode(self._bytes, self._pcm, self.name)):
                with self._lock:
                    self._parts.append(part)
                    self._queued_s += self._seconds(part)
                    self._decoded_s += self._seconds(part)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._queued_s < QUEUED_S or self._closed)
                    if self._closed:
                        return
        except BadInput as error:
            self._error = error
        except Exception as error:
            log.exception("%s cannot be read", self.name)
            self._error = BadInput(f"{self.name} cannot be decoded ({type(error).__name__}: {error}): convert it to WAV first")
        finally:
            with self._lock:
                self._over = True
                self._changed.notify_all()

    def _convert(self, chunks: Iterator[AudioChunk]) -> Iterator[AudioPart]:
        """The rate and channels of the first chunk are those of the track; later ones are brought to them."""
        mixer: MonoMixer | None = None
        to_track: Resampler | None = None
        to_model = Resampler(SAMPLE_RATE, 1)
        for chunk in chunks:
            chunk = chunk._replace(samples_SC=np.clip(chunk.samples_SC, -1.0, 1.0))
            if self._info is None or to_track is None:
                self._info = AudioInfo(None, chunk.rate_hz, len(chunk.channels), "stream")
                to_track = Resampler(self._info.rate_hz, self._info.track_channels)
            if mixer is None or (mixer.channels, mixer.rate_hz) != (chunk.channels, chunk.rate_hz):
                mixer = MonoMixer(chunk.channels, chunk.rate_hz)
            track_SC = with_channels(chunk, self._info.track_channels)
            yield AudioPart(to_track.run(track_SC, chunk.rate_hz), to_model.run(mixer.mix(chunk.samples_SC), chunk.rate_hz))
        if to_track is not None:
            yield AudioPart(to_track.rest(), to_model.rest())


class _Bytes:
    """What libav reads from: it has no seek. `stop` ends a read that waits, as if the stream were over."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self.name = descriptor, name
        self._woken, self._wake = os.pipe()
        self._before = bytearray()
        self._stopped = False

    def read(self, size: int) -> bytes:
        """At least one byte, as many as are there; none at the end. Raises BadInput."""
        if self._before:
            data = bytes(self._before[:size])
            del self._before[:size]
            return data
        return self._wait(size)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer if the stream has not as many; they are read again."""
        while len(self._before) < size and (data := self._wait(size)):
            self._before += data
        return bytes(self._before[:size])

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.write(self._wake, b"x")

    def _wait(self, size: int) -> bytes:
        began_s = time.monotonic()
        while not self._stopped:
            try:
                ready, _, _ = select.select([self._descriptor, self._woken], [], [], SILENT_S)
                if not ready:
                    waited_s = time.monotonic() - began_s
                    log.warning("nothing has come from %s for %.0f s: waiting on; end it with Ctrl-C", self.name, waited_s)
                elif self._descriptor in ready and not self._stopped:
                    return os.read(self._descriptor, size)
            except OSError as error:
                raise BadInput(f"{self.name} cannot be read ({error.strerror}): pipe audio into it") from None
        return b""

    def __del__(self) -> None:
        for descriptor in (self._woken, self._wake):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _decode(stream: _Bytes, pcm: PCM | None, name: str) -> Iterator[AudioChunk]:
    if pcm is not None:
        yield from read_pcm(stream.read, pcm)
        return
    if stream.peek(4) in (b"RIFF", b"RF64"):  # libav would wait for 64 KB of samples
        head = read_wav_header(stream.peek)
        if head is not None:
            found, begin = head
            while begin and (skipped := stream.read(begin)):
                begin -= len(skipped)
            yield from read_pcm(stream.read, found)
            return
    if stream.peek(1):
        yield from _decode_container(stream, name)


def _decode_container(stream: _Bytes, name: str) -> Iterator[AudioChunk]:
    refusal = BadInput(
        f"what comes from {name} is no audio that can be decoded as it comes: pipe wav, flac, mp3, aac, ogg, webm or a fragmented mp4, or name "
        "raw samples with --pcm RATE:CHANNELS"
    )
    try:
        container = av.open(stream, "r", options={**OPTIONS, "probesize": str(PROBE_BYTES)}, buffer_size=4096)
    except (FFmpegError, OSError, UnicodeError):
        raise refusal from None
    with container:
        if not container.streams.audio or container.streams.audio[0].codec_context is None:  # no decoder for it
            raise refusal
        yield from _decode_packets(_packets(container), name, refusal)


def _packets(container: InputContainer) -> Iterator[av.Packet | None]:
    """All packets; None for a place that cannot be read, behind which they go on."""
    for _ in range(MOST_PLACES):
        try:
            with contextlib.closing(demux(container, container.streams.audio[0])) as packets:
                yield from packets
            return
        except (FFmpegError, OSError):
            yield None
    log.warning("the audio is cut off, because it is damaged in %d places", MOST_PLACES)


def _decode_packets(packets: Iterator[av.Packet | None], name: str, refusal: BadInput) -> Iterator[AudioChunk]:
    good = bad = 0
    resampler = av.AudioResampler(format="flt")
    shape: tuple[int, str] | None = None
    for packet in packets:
        try:
            frames = packet.decode() if packet else None
        except (FFmpegError, OSError):
            frames = None
        if frames is None:
            bad += 1
            if bad > BAD_PACKETS and bad > good:
                raise refusal
            continue
        good += bool(frames)
        for frame in frames:
            check_frame(frame, name)
            if shape != (frame.sample_rate, frame.layout.name):
                shape, resampler = (frame.sample_rate, frame.layout.name), av.AudioResampler(format="flt")
            channels = tuple(channel.name for channel in frame.layout.channels)
            for plain in resampler.resample(frame):
                x_SC = np.ascontiguousarray(samples_of(plain))
                yield AudioChunk(np.nan_to_num(x_SC, posinf=0.0, neginf=0.0), frame.sample_rate, channels)
    if bad:
        log.warning("%d packets from %s could not be decoded and were left out", bad, name)
    if not good:
        raise refusal
