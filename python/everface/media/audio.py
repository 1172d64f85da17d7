"""Reads audio files (wav, flac, mp3, m4a, ogg ...) as a stream of float32 chunks. Memory does not grow with the file's length.

`read_audio` gives 16 kHz mono for the model, `read_track` the original audio for the finished video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from av.stream import Disposition

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.audio_decoder import decode_audio
from everface.media.container import open_media

MIN_S = 1 / FPS  # one video frame


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file contains. `duration_s` is what the container states: for some mp3 an estimate, None if nothing."""

    duration_s: float | None
    rate_hz: int
    channels: int
    codec: str


def probe_audio(path: str | Path) -> AudioInfo:
    """Decode the start of an audio file. Raises BadInput unless at least one video frame (40 ms) of it can be decoded."""
    with open_media(path, "audio") as container:
        if any(not s.disposition & Disposition.attached_pic for s in container.streams.video):
            raise BadInput(f"{path} is a video: pass an audio file, for example its extracted audio track")
        if not container.streams.audio:
            raise BadInput(f"{path} contains no audio: pass an audio file")
        stream = container.streams.audio[0]
        duration_s = None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        codec, seen, rate, channels = stream.codec_context.name, 0, 0, 0
        for x_SC, rate in decode_audio(container, Path(path)):
            seen, channels = seen + len(x_SC), x_SC.shape[1]
            if seen >= MIN_S * rate:
                return AudioInfo(duration_s, rate, channels, codec)
    if seen == 0:
        raise BadInput(f"{path} contains no audio that can be decoded: convert or export it again")
    raise BadInput(f"{path} lasts {seen / rate * 1e3:.0f} ms, less than one video frame: pass at least {MIN_S * 1e3:.0f} ms")


def read_audio(path: str | Path, chunk_samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Read an audio file as mono float32 at 16 kHz, full scale 1, in arrays [chunk_samples]; the last one may be shorter.

    Channels are averaged; samples of 16 kHz files are not changed. Raises BadInput: for a file that cannot be used, at the call;
    for damage further in, when the iteration reaches it.
    """
    info = probe_audio(path)
    mono = (x_SC.mean(axis=1, dtype=np.float32) if x_SC.shape[1] > 1 else x_SC[:, 0] for x_SC in _track(path, info))
    return _regroup(resample(mono, info.rate_hz, SAMPLE_RATE), chunk_samples)


def read_track(path: str | Path, chunk_samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Read an audio file at its own rate, `AudioInfo.rate_hz`: float32 [chunk_samples, channels]; the last chunk may be shorter.

    Raises BadInput as `read_audio` does.
    """
    info = probe_audio(path)
    return _regroup(_track(path, info), chunk_samples)


def resample(chunks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """Resample mono float32 chunks without delay: S samples in, round(S * to_hz / from_hz) out. Equal rates change nothing."""
    if from_hz == to_hz:
        yield from chunks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for x_S in chunks:
        yield stream.resample_chunk(x_S)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _track(path: str | Path, info: AudioInfo) -> Iterator[np.ndarray]:
    """Decoded chunks [S, C], clipped to -1..1 as players do. Raises BadInput if the rate or the number of channels changes."""
    done = 0
    with open_media(path, "audio") as container:
        for x_SC, rate in decode_audio(container, Path(path)):
            if (rate, x_SC.shape[1]) != (info.rate_hz, info.channels):
                raise BadInput(f"{path} changes its rate or channels at {done / info.rate_hz:.2f} s: convert it to wav first")
            finite_S = np.isfinite(x_SC).all(axis=1)
            if not finite_S.all():
                at_s = (done + int(np.argmin(finite_S))) / rate
                raise BadInput(f"{path} has a sample that is not finite at {at_s:.3f} s: export it again")
            done += len(x_SC)
            yield np.clip(x_SC, -1.0, 1.0)


def _regroup(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in arrays of `size` rows. Only the last array may be shorter; none is empty."""
    if size < 1:
        raise BadInput(f"a chunk of {size} samples is too small: ask for at least 1")
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
