"""Raw samples and WAV that come through a pipe: a program that writes as it speaks does not know the length that the header should state."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from everface.core.errors import BadInput
from everface.media.decoding.decoder import MOST_CHANNELS, RATES
from everface.media.decoding.losses import AudioChunk

UNKNOWN = 0x7FFF_0000  # a length from here on, or 0, means that the writer did not know it
MOST_HEADER_BYTES = 1 << 16
PIECE_S = 0.1  # most audio in a chunk
EXTENSIBLE = 0xFFFE
USUAL = {1: ("FC",), 2: ("FL", "FR")}  # ffmpeg's names, as for files
# Of fmt, (format tag, bits): numpy's name of a sample.
SAMPLES = {(1, 8): "u1", (1, 16): "<i2", (1, 24): "i3", (1, 32): "<i4", (3, 32): "<f4", (3, 64): "<f8"}


@dataclass(frozen=True)
class PCM:
    """Interleaved samples. `samples`: one of SAMPLES. `length`: bytes of them, None: up to the end. Raises BadInput."""

    rate_hz: int
    channels: int = 1
    samples: str = "<i2"
    length: int | None = None

    def __post_init__(self) -> None:
        if not RATES[0] <= self.rate_hz <= RATES[1]:
            raise BadInput(f"a sample rate of {self.rate_hz} Hz cannot be used: choose {RATES[0]} to {RATES[1]} Hz")
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise BadInput(f"{self.channels} channels cannot be used: choose 1 to {MOST_CHANNELS}")

    @property
    def width(self) -> int:
        """Bytes of one sample of all channels."""
        return int(self.samples[-1]) * self.channels


def read_wav_header(peek: Callable[[int], bytes]) -> tuple[PCM, int] | None:
    """What follows a WAV header and where it begins; None where the header is not one of plain samples. `peek(n)`: the first n bytes."""
    at, found = 12, None
    if peek(12)[8:12] != b"WAVE":
        return None
    while at + 8 <= MOST_HEADER_BYTES:
        head = peek(at + 8)[at:]
        if len(head) < 8:
            return None
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            length = None if size == 0 or size >= UNKNOWN else size
            return None if found is None else (PCM(*found, length), at + 8)
        if name == b"fmt " and size >= 16:
            found = _read_format(peek(at + 8 + min(size, 40))[at + 8 :])
            if found is None:
                return None
        at += 8 + size + size % 2
    return None


def _read_format(content: bytes) -> tuple[int, int, str] | None:
    if len(content) < 16:
        return None
    tag, channels, rate_hz, _, block, bits = struct.unpack_from("<HHIIHH", content)
    if tag == EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack_from("<H", content, 24)
    samples = SAMPLES.get((tag, bits))
    if samples is None or channels > MOST_CHANNELS or block != channels * bits // 8:
        return None
    return rate_hz, channels, samples


def read_pcm(read: Callable[[int], bytes], pcm: PCM) -> Iterator[AudioChunk]:
    """Chunks as they come, PIECE_S at most. A sample that is not complete at the end is dropped."""
    left, held = pcm.length, b""
    piece = max(1, int(PIECE_S * pcm.rate_hz)) * pcm.width
    names = USUAL.get(pcm.channels, ("NONE",) * pcm.channels)
    while left is None or left > 0:
        data = read(piece if left is None else min(piece, left))
        if not data:
            return
        left = None if left is None else left - len(data)
        held += data
        whole = len(held) - len(held) % pcm.width
        if whole:
            yield AudioChunk(_to_float(held[:whole], pcm), pcm.rate_hz, names)
            held = held[whole:]


def _to_float(data: bytes, pcm: PCM) -> np.ndarray:
    if pcm.samples == "i3":
        bytes_N3 = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_N3), 4), np.uint8)
        wide[:, 1:] = bytes_N3
        x = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    elif pcm.samples == "u1":
        x = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    else:
        raw = np.frombuffer(data, pcm.samples)
        x = raw.astype(np.float32) if raw.dtype.kind == "f" else raw.astype(np.float32) / 2.0 ** (raw.itemsize * 8 - 1)
    return np.nan_to_num(x, posinf=0.0, neginf=0.0).reshape(-1, pcm.channels)
