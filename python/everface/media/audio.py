"""Sound in: any wav, flac, mp3, m4a, ogg ... becomes bounded chunks of float32, so a file of ten hours takes no memory.

Two readings of one file: `read_audio`, 16 kHz mono for the model, and `read_track`, the original sound for the finished video.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import soxr
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput
from everface.core.log import log

# Demuxers that may be used: none that opens further files or addresses (playlists), none that reads text as pictures.
FORMATS = "wav,w64,aiff,caf,au,flac,mp3,aac,mov,ogg,amr,matroska,avi,mpegts,mpeg,flv,asf"
MIN_S = 1 / FPS  # one video frame
MAX_GAP_S = 0.1  # a longer hole between two decoded frames is lost sound
RATES = (1_000, 768_000)  # Hz


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file holds. The duration is the container's word, an estimate for some mp3; None where it has none."""

    duration_s: float | None
    rate_hz: int
    channels: int
    codec: str


def open_media(path: str | Path, what: str) -> InputContainer:
    """Open a local file for reading, whatever its name looks like. `what` names the expected kind in BadInput."""
    path = Path(path)
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder: pass a {what} file")
        if not path.exists():
            raise BadInput(f"there is no {what} file at {path}")
        if not path.is_file():
            raise BadInput(f"{path} is not a regular file: pass a {what} file")
        if path.stat().st_size == 0:
            raise BadInput(f"the {what} file {path} is empty: it has 0 bytes")
        return av.open(f"file:{path.resolve()}", options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except (FFmpegError, OSError, UnicodeError) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.EACCES, errno.ENAMETOOLONG):
            raise BadInput(f"cannot read the {what} file {path}: {error}") from None
        raise BadInput(f"{path} is not a {what} file that can be read, or it is damaged at its start") from None


def probe_audio(path: str | Path) -> AudioInfo:
    """Look at the head of a sound file. BadInput unless at least one video frame (40 ms) of it can be decoded."""
    with open_media(path, "sound") as container:
        if any(not s.disposition & Disposition.attached_pic for s in container.streams.video):
            raise BadInput(f"{path} is a video: pass a sound file")
        if not container.streams.audio:
            raise BadInput(f"{path} holds no sound: pass a sound file")
        stream = container.streams.audio[0]
        duration_s = None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        codec, seen, rate, channels = stream.codec_context.name, 0, 0, 0
        for x_SC, rate in _decode(container, Path(path)):
            seen, channels = seen + len(x_SC), x_SC.shape[1]
            if seen >= MIN_S * rate:
                return AudioInfo(duration_s, rate, channels, codec)
    if seen == 0:
        raise BadInput(f"{path} holds no sound that can be decoded")
    raise BadInput(f"{path} lasts {seen / rate * 1e3:.0f} ms: at least {MIN_S * 1e3:.0f} ms, one video frame, are needed")


def read_audio(path: str | Path, chunk_samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """16 kHz mono float32 [chunk_samples] chunks, the last one shorter. Channels are averaged; 16 kHz files pass untouched.

    Unusable files raise BadInput at the call, damage further in when the iteration comes to it.
    """
    info = probe_audio(path)
    mono = (x_SC.mean(axis=1, dtype=np.float32) if x_SC.shape[1] > 1 else x_SC[:, 0] for x_SC in _track(path, info))
    return _regroup(resample(mono, info.rate_hz, SAMPLE_RATE), chunk_samples)


def read_track(path: str | Path, chunk_samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """The sound as it is: float32 [chunk_samples, channels] at `AudioInfo.rate_hz`, the last chunk shorter."""
    info = probe_audio(path)
    return _regroup(_track(path, info), chunk_samples)


def resample(chunks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """Mono float32 at another rate, delay removed: S samples in, round(S * to / from) out. Equal rates pass untouched."""
    if from_hz == to_hz:
        yield from chunks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for x_S in chunks:
        yield stream.resample_chunk(x_S)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _track(path: str | Path, info: AudioInfo) -> Iterator[np.ndarray]:
    """Decoded frames [S, C] of a file that keeps one rate and one number of channels, clipped to -1..1 as players do."""
    done = 0
    with open_media(path, "sound") as container:
        for x_SC, rate in _decode(container, Path(path)):
            if (rate, x_SC.shape[1]) != (info.rate_hz, info.channels):
                raise BadInput(f"{path} changes its rate or channels at {done / info.rate_hz:.2f} s: convert it to wav first")
            finite_S = np.isfinite(x_SC).all(axis=1)
            if not finite_S.all():
                at_s = (done + int(np.argmin(finite_S))) / rate
                raise BadInput(f"{path} holds a sample that is not a number at {at_s:.3f} s: export it again")
            done += len(x_SC)
            yield np.clip(x_SC, -1.0, 1.0)


def _decode(container: InputContainer, path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Frames of the first sound stream as (float32 [S, C], rate).

    A packet that cannot be decoded, or a hole in time, is damage, and BadInput says where. Only the very last packet may fail:
    a file cut short ends where it ends.
    """
    stream = container.streams.audio[0]
    end_s, failed = 0.0, False  # end of what was decoded; a packet after it failed

    def refuse() -> NoReturn:
        raise BadInput(f"the sound file {path} is damaged at {end_s:.2f} s: repair or convert it first") from None

    packets = container.demux(stream)
    first_s: float | None = None
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except (FFmpegError, OSError):
            if failed:
                refuse()
            failed = True
            continue
        for frame in frames:
            if failed or frame.pts is None or frame.time_base is None:
                refuse()
            rate = frame.sample_rate
            if not RATES[0] <= rate <= RATES[1]:
                raise BadInput(f"{path} has a rate of {rate} Hz, outside {RATES[0]} to {RATES[1]} Hz: convert it first")
            start_s = float(frame.pts * frame.time_base)
            first_s = start_s if first_s is None else first_s
            if start_s - first_s - end_s > MAX_GAP_S:
                refuse()
            end_s = start_s - first_s + frame.samples / rate
            yield _to_float(frame), rate
    if failed:
        log.warning("%s is cut short: it ends at %.2f s", path, end_s)


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Samples of any ffmpeg format as float32 [S, C]; full scale is 1."""
    x = frame.to_ndarray()  # planar [C, S]; packed [1, S * C]
    x_SC = x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels)
    if x_SC.dtype == np.uint8:
        return (x_SC.astype(np.float32) - 128) / 128
    if np.issubdtype(x_SC.dtype, np.integer):
        return x_SC.astype(np.float32) / 2.0 ** (x_SC.dtype.itemsize * 8 - 1)
    return x_SC.astype(np.float32)


def _regroup(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in arrays of `size` rows; only the last one is shorter, none is empty."""
    if size < 1:
        raise BadInput(f"a chunk of {size} samples is too small: at least 1 is needed")
    return _regrouped(chunks, size)


def _regrouped(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    count = 0
    for x in chunks:
        held.append(x)
        count += len(x)
        if count >= size:
            whole = np.concatenate(held)
            cut = count - count % size
            yield from (whole[i : i + size].copy() for i in range(0, cut, size))
            held, count = [whole[cut:].copy()], count - cut
    if count:
        yield np.concatenate(held)
