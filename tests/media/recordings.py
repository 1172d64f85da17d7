"""Audio files for the tests: tones and noise, encoded by PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from everface.core.config import SAMPLE_RATE
from everface.media.audio import read_audio

CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "m4a": "aac",
    "ogg": "libopus",
    "aac": "aac",
    "webm": "libopus",
}
LOSSLESS = ("wav", "flac")


def encode(path: Path, pcm_CS: np.ndarray, rate: int, codec: str | None = None, layout: str | None = None) -> Path:
    """Write float32 [C, S] with PyAV in the container that the name asks for."""
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1"}[len(pcm_CS)]
    with av.open(str(path), "w", format={"m4a": "ipod", "aac": "adts"}.get(path.suffix[1:])) as container:
        stream = container.add_stream(codec or CODECS[path.suffix[1:]], rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        formats = {f.name for f in stream.codec_context.codec.audio_formats or []}
        for i in range(0, pcm_CS.shape[1], 4096):
            piece_CS = pcm_CS[:, i : i + 4096]
            if "fltp" in formats or "flt" in formats:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece_CS, np.float32), "fltp", layout)
            else:
                s16 = np.round(piece_CS * 32768).clip(-32768, 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(s16.T).reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, rate: int, channels: int = 1, hz: float = 440.0) -> np.ndarray:
    t_S = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hz * t_S)[None], channels, 0).astype(np.float32)


def whole(path: Path, chunk: int = SAMPLE_RATE) -> np.ndarray:
    chunks = list(read_audio(path, chunk))
    assert all(c.dtype == np.float32 and c.ndim == 1 for c in chunks)
    assert all(len(c) == chunk for c in chunks[:-1]) and 0 < len(chunks[-1]) <= chunk
    return np.concatenate(chunks)
