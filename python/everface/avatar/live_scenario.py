"""Somebody who talks to a live session at the pace of the clock, and notes what comes. `everface bench live` and bench/stream measure with it."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from everface.avatar.demo import AUDIO
from everface.core.config import SAMPLE_RATE
from everface.live.events import AudioFrame, VideoFrame
from everface.live.session import LiveSession
from everface.media.audio import read_audio

CHUNK_S = 0.02  # audio comes as a microphone's does
SPEECH_S = (1.0, 2.5)
PAUSE_S = (0.6, 1.8)
AFTER_INTERRUPTION_S = 1.2
LOST_S = 20.0  # a frame that has not come by then will not
SEAMS = ("idle to speech", "speech to idle", "interruption")
SEAM_FRAMES = 12  # changes that belong to a seam: a block
TERMS = ("until its block is sent", "steps and decoding", "until its time to be shown")


def _seconds() -> array[float]:
    return array("d")


@dataclass
class Seen:
    """What came. Times are seconds; a change is the mean difference of two frames shown one after the other, 0 to 255."""

    stamps: array[float] = field(default_factory=_seconds)  # when each frame came
    ordinary: array[float] = field(default_factory=_seconds)  # changes within motion
    seams: dict[str, list[float]] = field(default_factory=lambda: {seam: [] for seam in SEAMS})  # the largest of the first changes of each
    av_offsets_s: array[float] = field(default_factory=_seconds)  # how far the audio was behind its video frame, a frame each
    av_stamps: array[float] = field(default_factory=_seconds)
    onsets_s: list[float] = field(default_factory=list[float])  # from the first chunk of speech to its first frame
    stale_s: list[float] = field(default_factory=list[float])  # from an interruption to the last frame of what it interrupted; 0: none came
    refills_s: list[float] = field(default_factory=list[float])  # from an interruption to the first frame after it
    onset_terms_s: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])  # what an onset consists of: TERMS
    refill_terms_s: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])

    last: np.ndarray | None = None
    idle: bool = True
    seam: str = ""  # that the next `seam_frames` changes belong to
    seam_frames: int = 0
    seam_begins: bool = False
    audio_s: float = 0.0  # that came since the last interruption
    begin: int | None = None  # where it began

    def add(self, frame: VideoFrame, at_s: float) -> None:
        self.stamps.append(at_s)
        if frame.held:  # nothing new: what is shown stays
            return
        if frame.idle != self.idle:
            if not self.seam_frames:
                self.begin_seam(SEAMS[frame.idle])
            self.idle = frame.idle
        if self.last is not None:
            change = float(np.abs(frame.image_HW3.astype(np.int16) - self.last).mean())
            if self.seam_begins:
                self.seams[self.seam].append(change)
            elif self.seam_frames:
                self.seams[self.seam][-1] = max(self.seams[self.seam][-1], change)
            else:
                self.ordinary.append(change)
        self.seam_frames, self.seam_begins = max(0, self.seam_frames - 1), False
        self.last = frame.image_HW3

    def add_audio(self, frame: AudioFrame, at_s: float) -> None:
        """It follows the video frame of the same place: how much later, and is there as much audio before it as its place says?"""
        self.begin = frame.pts if self.begin is None else self.begin
        behind_s = at_s - self.stamps[-1] if self.stamps else 0.0
        self.av_offsets_s.append(self.audio_s - (frame.pts - self.begin) / SAMPLE_RATE + behind_s)
        self.av_stamps.append(at_s)
        self.audio_s += len(frame.samples_SC) / frame.rate_hz

    def begin_seam(self, seam: str) -> None:
        self.seam, self.seam_frames, self.seam_begins = seam, SEAM_FRAMES, True

    def interrupted(self) -> None:
        self.begin_seam(SEAMS[2])
        self.audio_s, self.begin = 0.0, None


class Scenario:
    """Talks to one session and reads all that it gives out, on the caller's thread."""

    def __init__(self, session: LiveSession, seed: int = 0) -> None:
        self.session, self.seen = session, Seen()
        self._random = random.Random(seed)
        self._spoken: tuple[float, int] | None = None  # when and where speech began that is not shown yet
        self._speech_S = np.asarray(next(read_audio(AUDIO, 8 * SAMPLE_RATE)))

    def converse(self, over: Callable[[int], bool]) -> int:
        """Speak and pause, and interrupt every second time, until `over(turns so far)`. Returns the number of turns."""
        turns = 0
        while not over(turns):
            self.speak(self._random.uniform(*SPEECH_S))
            if turns % 2:
                self.interrupt()
                self.watch(AFTER_INTERRUPTION_S)
            else:
                self.pause(self._random.uniform(*PAUSE_S))
            turns += 1
        return turns

    def speak(self, seconds: float, until_shown: bool = False) -> None:
        """Push speech as it is spoken. `until_shown`: only until its first frame comes, for LOST_S at most."""
        begin, chunk, began_s = self._random.randrange(len(self._speech_S)), int(CHUNK_S * SAMPLE_RATE), time.monotonic()
        self._spoken = began_s, self.session.position
        for number in range(int((LOST_S if until_shown else seconds) / CHUNK_S)):
            at = (begin + number * chunk) % (len(self._speech_S) - chunk)
            self.session.push_audio(self._speech_S[at : at + chunk], SAMPLE_RATE, timeout_s=1.0)
            if self.watch(began_s + (number + 1) * CHUNK_S - time.monotonic(), lambda _: until_shown and self._spoken is None):
                return

    def pause(self, seconds: float) -> None:
        """The speech is complete."""
        self.session.end_segment()
        self.watch(seconds)

    def interrupt(self) -> None:
        """Cut the speech, and read until the first frame after it."""
        began_s, stale_s = time.monotonic(), 0.0
        self.session.interrupt()
        since = self.session.turn_begin
        self.seen.interrupted()
        if self._spoken:  # it will never be shown: it would have taken longer than this
            self.seen.onsets_s.append(began_s - self._spoken[0])
            self._spoken = None

        def is_new(frame: VideoFrame) -> bool:
            nonlocal stale_s
            now_s, new = time.monotonic(), not frame.held and frame.pts >= since
            if new:
                self.seen.refills_s.append(now_s - began_s)
                self.seen.refill_terms_s += self._terms(frame, began_s, now_s)
            elif not frame.held:
                stale_s = now_s - began_s
            return new

        self.watch(LOST_S, is_new)
        self.seen.stale_s.append(stale_s)

    def watch(self, seconds: float, until: Callable[[VideoFrame], bool] | None = None) -> bool:
        """Read for so long, or until a certain frame has come. Returns whether it has."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            event = self.session.read(left_s)
            if isinstance(event, VideoFrame):
                now_s = time.monotonic()
                self.seen.add(event, now_s)
                if self._spoken and not event.idle and event.pts >= self._spoken[1]:
                    self.seen.onsets_s.append(now_s - self._spoken[0])
                    self.seen.onset_terms_s += self._terms(event, self._spoken[0], now_s)
                    self._spoken = None
                if until and until(event):
                    return True
            elif isinstance(event, AudioFrame):
                self.seen.add_audio(event, time.monotonic())
        return False

    def _terms(self, frame: VideoFrame, began_s: float, shown_s: float) -> list[tuple[float, ...]]:
        """The parts of the time until a frame was shown, at most one tuple: none where its block is not known, as at a lower quality level."""
        for block in list(self.session.timeline.blocks)[-8:]:
            if block.first_s and block.pts <= frame.pts < block.pts + self.session.format.samples(block.index):
                return [(block.sent_s - began_s, block.first_s - block.sent_s, shown_s - block.first_s)]
        return []

    def next_frame(self) -> None:
        """Read until the next frame has come."""
        self.watch(LOST_S, lambda _: True)
