"""Where a render's audio comes from: a file, or stdin. Both give parts, the track of the video and the same audio for the model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.audio import AudioInfo, probe_audio, read_audio, read_track
from everface.media.audio_stream import AudioPart, AudioStream
from everface.media.wav_stream import PCM


class AudioFile:
    """Half a second at a time. Raises BadInput for a file that cannot be used. Its methods are those of AudioStream."""

    def __init__(self, path: Path) -> None:
        self._info = probe_audio(path)
        self._track, self._mono = read_track(path, self._info.rate_hz // 2), read_audio(path, SAMPLE_RATE // 2)
        self.ended = False

    def info(self) -> AudioInfo:
        return self._info

    def check(self) -> None:
        """Nothing to do: the file was probed."""

    def take(self, timeout_s: float) -> AudioPart | None:
        track_SC, mono_S = next(self._track, None), next(self._mono, None)
        if track_SC is None and mono_S is None:
            self.ended = True
            return None
        nothing_SC, nothing_S = np.zeros((0, self._info.track_channels), np.float32), np.zeros(0, np.float32)
        return AudioPart(nothing_SC if track_SC is None else track_SC, nothing_S if mono_S is None else mono_S)

    def close(self) -> None:
        """Nothing to do: the file is closed when it is read."""


def open_stdin(pcm: PCM | None) -> AudioStream:
    """Raises BadInput if it is a terminal."""
    if os.isatty(0):
        raise BadInput("AUDIO is -, and stdin is this terminal: pipe audio into it, as in espeak-ng --stdout HELLO | everface render ...")
    return AudioStream(0, pcm)
