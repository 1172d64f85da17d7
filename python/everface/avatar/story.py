"""A story: shots one after another in one video, each with its own image, prompt and span of audio. Audio of one file goes on without a seam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from everface.avatar.table import TableFormat, check_text
from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.media.audio import AudioInfo, probe_audio, read_audio, read_track
from everface.media.audio_stream import AudioPart

SHOTS = TableFormat(
    "shots", (), ("image", "audio", "begin", "end", "prompt", "transition"), '{"image": "face.png", "audio": "speech.wav", "begin": 0, "end": 3.5}'
)
MOST_SHOTS = 10_000
T = TypeVar("T")


@dataclass(frozen=True)
class StoryShot:
    """One line. Times are seconds of the audio file; `end_s` None: to its end."""

    where: str
    image: Path | None  # None: as in the shot before
    prompt: str | None
    transition: str | None  # None: the model's own
    audio: Path
    begin_s: float
    end_s: float | None

    @property
    def cut(self) -> dict[str, Any]:
        """What the session is told of it."""
        named = {"image": self.image, "prompt": self.prompt, "transition": self.transition}
        return {name: value for name, value in named.items() if value is not None}


def read_story(path: Path) -> list[StoryShot]:
    """The shots of a table, .csv or .jsonl. Paths are relative to its folder. What a line leaves out is as in the line before: the image, the
    prompt, and the audio, from where that line ended. Raises BadInput."""
    shots: list[StoryShot] = []
    for line, raw in SHOTS.rows(path):
        shots.append(_shot(f"line {line} of {path}", raw, path.parent, shots[-1] if shots else None))
        if len(shots) > MOST_SHOTS:
            raise BadInput(f"{path} has more than {MOST_SHOTS} shots: divide it")
    if not shots:
        raise BadInput(f"{path} has no shots: write lines such as {SHOTS.example}")
    return shots


def _shot(where: str, raw: dict[str, Any], folder: Path, before: StoryShot | None) -> StoryShot:
    text = {name: check_text(where, name, raw[name]) for name in ("image", "audio", "prompt", "transition") if name in raw}
    begin_s, end_s = (_seconds(where, name, raw[name]) if name in raw else None for name in ("begin", "end"))
    if before is None and not ("image" in text and "audio" in text):
        raise BadInput(f"{where} is the first shot, and needs an image and audio: write {SHOTS.example}")
    if before is None and "transition" in text:
        raise BadInput(f"{where} is the first shot, with none before it: leave its transition out")
    audio = folder / text["audio"] if "audio" in text else before.audio if before else folder
    goes_on = before is not None and before.audio == audio
    if begin_s is None and goes_on and before and before.end_s is None:
        raise BadInput(f"{where} goes on with {audio}, which the shot before has to its end: give that an end, or this a begin")
    begin_s = begin_s if begin_s is not None else before.end_s if before and goes_on else 0.0
    assert begin_s is not None
    if end_s is not None and end_s <= begin_s:
        raise BadInput(f"{where} ends at {end_s:g} s and begins at {begin_s:g} s of {audio}: give it an end behind its begin")
    image = folder / text["image"] if "image" in text else None
    return StoryShot(where, image, text.get("prompt"), text.get("transition"), audio, begin_s, end_s)


def _seconds(where: str, name: str, value: object) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e7:
        raise BadInput(f"{where} has {value!r:.40} as {name}: write seconds, for example 3.5")
    return seconds


class StoryAudio:
    """Half a second at a time of one shot after another. Its methods are those of AudioStream. `cut`: what the session is cut to before
    the part that was taken last; None within a shot.

    The video's track has the rate and channels of the first file. Raises BadInput for a file that cannot be used.
    """

    def __init__(self, shots: Sequence[StoryShot]) -> None:
        self._shots = shots
        infos: dict[Path, AudioInfo] = {}
        for shot in shots:
            if shot.audio not in infos:
                infos[shot.audio] = _at(shot, partial(probe_audio, shot.audio))
        first = infos[shots[0].audio]
        ends = [shot.end_s if shot.end_s is not None else infos[shot.audio].duration_s for shot in shots]
        total_s = None if None in ends else sum(max(0.0, end - shot.begin_s) for shot, end in zip(shots, ends) if end is not None)
        self._info = AudioInfo(total_s, first.rate_hz, first.track_channels, first.codec)
        self._parts = self._read()
        self.ended = False
        self.cut: dict[str, Any] | None = None

    def info(self) -> AudioInfo:
        return self._info

    def check_images(self, fit: Callable[[Path], object]) -> None:
        """Raise BadInput, before anything is rendered, if a shot has an image that `fit` refuses."""
        for shot in self._shots:
            if shot.image is not None:
                _at(shot, partial(fit, shot.image))

    def check(self) -> None:
        """Nothing to do: the files were probed."""

    def take(self, timeout_s: float) -> AudioPart | None:
        self.cut, part = next(self._parts, (None, None))
        self.ended = part is None
        return part

    def close(self) -> None:
        """Nothing to do: a file is closed when it is read."""

    def _read(self) -> Iterator[tuple[dict[str, Any] | None, AudioPart]]:
        files: _Files | None = None
        for number, shot in enumerate(self._shots):
            if files is None or files.path != shot.audio or files.at_s != shot.begin_s:
                files = _at(shot, partial(_Files, shot.audio, self._info, shot.begin_s))
            cut, empty = shot.cut if number else None, True
            for part in files.until(shot.end_s):
                yield cut, part
                cut, empty = None, False
            if empty:
                raise BadInput(f"{shot.where} begins at {shot.begin_s:g} s, where {shot.audio} has no audio any more: correct its begin")


class _Files:
    """An audio file from a position on, read twice: for the video's track and for the model."""

    def __init__(self, path: Path, track: AudioInfo, begin_s: float) -> None:
        self.path, self.at_s = path, begin_s
        self._track_hz = track.rate_hz
        self._track = _Samples(read_track(path, track.rate_hz // 2, (track.rate_hz, track.channels)))
        self._mono = _Samples(read_audio(path, SAMPLE_RATE // 2))
        self._track.skip(round(begin_s * self._track_hz))
        self._mono.skip(round(begin_s * SAMPLE_RATE))

    def until(self, end_s: float | None) -> Iterator[AudioPart]:
        """Parts of what is left up to a time, or the end."""
        while end_s is None or self._mono.at < round(end_s * SAMPLE_RATE) or self._track.at < round(end_s * self._track_hz):
            most = (SAMPLE_RATE // 2, self._track_hz // 2)
            if end_s is not None:
                most = min(most[0], round(end_s * SAMPLE_RATE) - self._mono.at), min(most[1], round(end_s * self._track_hz) - self._track.at)
            part = AudioPart(track_SC=self._track.take(most[1]), mono_S=self._mono.take(most[0]))
            if not len(part.track_SC) and not len(part.mono_S):
                break
            yield part
        self.at_s = end_s if end_s is not None else math.inf


class _Samples:
    """Takes so many of the samples that come in arrays. `at`: the position of the next."""

    def __init__(self, arrays: Iterator[np.ndarray]) -> None:
        self._arrays, self.at = arrays, 0
        self._held = next(arrays)

    def take(self, count: int) -> np.ndarray:
        """`count` samples or fewer, none only at the end."""
        while not len(self._held):
            following = next(self._arrays, None)
            if following is None:
                break
            self._held = following
        taken, self._held = self._held[: max(0, count)], self._held[max(0, count) :]
        self.at += len(taken)
        return taken

    def skip(self, count: int) -> None:
        while self.at < count and len(self.take(count - self.at)):
            pass


def _at(shot: StoryShot, read: Callable[[], T]) -> T:
    """What `read` returns; its error names the shot's line."""
    try:
        return read()
    except BadInput as error:
        raise BadInput(f"{shot.where} cannot be used: {error}") from None
