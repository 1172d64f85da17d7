"""Audio files that lack something: bytes overwritten, packets dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from everface.core.config import SAMPLE_RATE


def overwrite(path: Path, data: bytes, at: float = 0.5) -> Path:
    """Replace bytes from a share of the file on."""
    whole = bytearray(path.read_bytes())
    begin = int(at * len(whole))
    whole[begin : begin + len(data)] = data
    path.write_bytes(whole)
    return path


def drop_packets(path: Path, to: Path, dropped: Callable[[float], bool]) -> Path:
    """Copy a file without the packets that begin at such times, in seconds, as a recorder with gaps writes it."""
    with av.open(str(path)) as source, av.open(str(to), "w") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None and not dropped(float(packet.pts * packet.time_base)):
                packet.stream = copy
                target.mux(packet)
    return to


def bursts(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """[1, S]: noise that any codec keeps, another one every moment, so that every moment can be found again."""
    noise_S = np.random.default_rng(seed).normal(0, 0.3, round(seconds * rate))
    return np.convolve(noise_S, np.ones(8) / 4, "same")[None].astype(np.float32)


def shift_ms(found_S: np.ndarray, true_S: np.ndarray, at_s: float) -> tuple[float, float]:
    """(how much later than in `true_S` the audio from `at_s` on comes, how much it is alike), over 1.5 s at 16 kHz."""
    part = slice(round(at_s * SAMPLE_RATE), round((at_s + 1.5) * SAMPLE_RATE))
    x, y = true_S[part], found_S[part]
    spectrum = np.fft.rfft(y, 4 * len(x)) * np.conj(np.fft.rfft(x, 4 * len(x)))
    agreement = np.fft.irfft(spectrum)
    peak = int(np.argmax(agreement))
    shift = peak if peak < len(agreement) // 2 else peak - len(agreement)
    return 1e3 * shift / SAMPLE_RATE, float(agreement[peak] / np.sqrt(x @ x * (y @ y) + 1e-12))
