"""Where a render's audio comes from: a file, two files, or stdin. All give parts, the track of the video and the same audio for the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import zip_longest
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


class TwoVoices:
    """Two files at once, in time: each voice a channel of the video's stereo track and of the session's audio. Behind the shorter file there is
    silence. Its methods are those of AudioFile."""

    def __init__(self, first: Path, second: Path) -> None:
        paths, infos = (first, second), [probe_audio(path) for path in (first, second)]
        rate_hz, seconds = max(info.rate_hz for info in infos), [info.duration_s for info in infos]
        self._info = AudioInfo(None if None in seconds else max(s for s in seconds if s is not None), rate_hz, 2, infos[0].codec)
        nothing_S = np.zeros(0, np.float32)
        self._tracks = zip_longest(*(read_track(path, rate_hz // 2, (rate_hz, 1)) for path in paths), fillvalue=nothing_S[:, None])
        self._voices = zip_longest(*(read_audio(path, SAMPLE_RATE // 2) for path in paths), fillvalue=nothing_S)
        self.ended = False

    def info(self) -> AudioInfo:
        return self._info

    def check(self) -> None:
        """Nothing to do: the files were probed."""

    def take(self, timeout_s: float) -> AudioPart | None:
        tracks, voices = next(self._tracks, None), next(self._voices, None)
        if tracks is None and voices is None:
            self.ended = True
            return None
        return AudioPart(_aligned(track_S1[:, 0] for track_S1 in tracks or ()).T, _aligned(voices or ()))

    def close(self) -> None:
        """Nothing to do: the files are closed when they are read."""


Source = AudioFile | TwoVoices | AudioStream


def _aligned(voices: Iterable[np.ndarray]) -> np.ndarray:
    """[2, S] of the longest."""
    first_S, second_S = list(voices) or [np.zeros(0, np.float32)] * 2
    length = max(len(first_S), len(second_S))
    return np.stack([np.pad(voice_S, (0, length - len(voice_S))) for voice_S in (first_S, second_S)])


def open_source(audio: Path | None, second: Path | None, pcm: PCM | None) -> Source:
    """That of `RenderJob`'s fields of these names. Raises BadInput."""
    if audio is None:
        if second is not None:
            raise BadInput(f"AUDIO is -, and {second} goes with a file only: write what stdin brings to a file")
        return open_stdin(pcm)
    return AudioFile(audio) if second is None else TwoVoices(audio, second)


def open_stdin(pcm: PCM | None) -> AudioStream:
    """Raises BadInput if it is a terminal."""
    if os.isatty(0):
        raise BadInput("AUDIO is -, and stdin is this terminal: pipe audio into it, as in espeak-ng --stdout HELLO | everface render ...")
    return AudioStream(0, pcm)
