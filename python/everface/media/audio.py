"""Reads audio files (wav, flac, mp3, m4a, ogg ...) as a stream of float32 chunks. Memory does not grow with the file's length.

`read_audio` gives 16 kHz mono for the model, `read_track` the original audio, in at most two channels, for the finished video. What of a
file is damaged or missing is silence in both, of the right length; `read_audio` logs it, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.stream import Disposition

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.container import check_codec, open_media
from everface.media.decoding.decoder import decode_audio, stated_s
from everface.media.decoding.downmix import MonoMixer, mix_stereo
from everface.media.decoding.losses import AudioChunk
from everface.media.resampler import Resampler

MIN_S = 0.04


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file contains. `duration_s` is what the container states: for some mp3 an estimate, None if nothing."""

    duration_s: float | None
    rate_hz: int
    channels: int
    codec: str

    @property
    def track_channels(self) -> int:
        """Channels that `read_track` gives: 1 or 2."""
        return min(self.channels, 2)


def probe_audio(path: str | Path) -> AudioInfo:
    """Decode the start of an audio file. Raises BadInput unless at least one video frame (40 ms) of it can be decoded."""
    with open_media(path, "audio") as container:
        if any(not s.disposition & Disposition.attached_pic for s in container.streams.video):
            raise BadInput(f"{path} is a video: pass an audio file, for example its extracted audio track")
        if not container.streams.audio:
            raise BadInput(f"{path} contains no audio: pass an audio file")
        check_codec(container.streams.audio[0], path)
        codec, seen, rate, channels = container.streams.audio[0].codec_context.name, 0, 0, 0
        for chunk in decode_audio(container, Path(path)):
            seen, rate, channels = seen + len(chunk.samples_SC), chunk.rate_hz, len(chunk.channels)
            if seen >= MIN_S * rate:
                return AudioInfo(stated_s(container), rate, channels, codec)
    if seen == 0:
        raise BadInput(f"{path} contains no audio that can be decoded: convert or export it again")
    raise BadInput(f"{path} lasts {seen / rate * 1e3:.0f} ms, less than one video frame: pass at least {MIN_S * 1e3:.0f} ms")


def read_audio(path: str | Path, chunk_samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Read an audio file as mono float32 at 16 kHz, full scale 1, in arrays [chunk_samples]; the last one may be shorter.

    Channels are mixed by their places, stereo is averaged (`decoding.downmix`); samples of mono files at 16 kHz are not changed. Raises
    BadInput: for a file that cannot be used, at the call; for one that is mostly damaged, when the iteration finds that.
    """
    probe_audio(path)
    return _regroup(mono_16khz(_decode(path, report=True)), chunk_samples)


def mono_16khz(chunks: Iterable[AudioChunk]) -> Iterator[np.ndarray]:
    """Decoded chunks as mono float32 [S] at 16 kHz, as `read_audio` makes them."""
    return _resample(_mono(chunks), SAMPLE_RATE, 1)


def read_track(path: str | Path, chunk_samples: int = SAMPLE_RATE, form: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Read an audio file at its own rate, `AudioInfo.rate_hz`: float32 [chunk_samples, track_channels]; the last chunk may be shorter.

    More than two channels are mixed to stereo. `form`: at this rate and with so many channels, 1 or 2, instead. Raises BadInput as `read_audio` does.
    """
    info = probe_audio(path)
    rate_hz, channels = form or (info.rate_hz, info.track_channels)
    parts = ((with_channels(chunk, channels), chunk.rate_hz) for chunk in _decode(path))
    return _regroup(_resample(parts, rate_hz, channels), chunk_samples)


def _decode(path: str | Path, report: bool = False) -> Iterator[AudioChunk]:
    """Decoded chunks, clipped to -1..1 as players do."""
    with open_media(path, "audio") as container:
        for chunk in decode_audio(container, Path(path), report):
            yield chunk._replace(samples_SC=np.clip(chunk.samples_SC, -1.0, 1.0))


def _mono(chunks: Iterable[AudioChunk]) -> Iterator[tuple[np.ndarray, int]]:
    """(float32 [S], rate)."""
    mixer: MonoMixer | None = None
    for samples_SC, rate_hz, channels in chunks:
        if mixer is None or (mixer.channels, mixer.rate_hz) != (channels, rate_hz):
            mixer = MonoMixer(channels, rate_hz)
        yield mixer.mix(samples_SC), rate_hz


def with_channels(chunk: AudioChunk, channels: int) -> np.ndarray:
    """[S, channels], one or two of them."""
    if len(chunk.channels) == channels:
        return chunk.samples_SC
    stereo_S2 = mix_stereo(chunk.samples_SC, chunk.channels)
    return stereo_S2 if channels == 2 else stereo_S2.mean(axis=1, keepdims=True)


def _resample(parts: Iterable[tuple[np.ndarray, int]], to_hz: int, channels: int) -> Iterator[np.ndarray]:
    """Chunks [S] or [S, channels] of any rate at one."""
    resampler = Resampler(to_hz, channels)
    for x, rate_hz in parts:
        yield resampler.run(x, rate_hz)
    yield resampler.rest()


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
