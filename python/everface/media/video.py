"""Video out: frames and sound become one fragmented MP4 (H.264 + AAC) that plays even when the writing was cut off.

The moov box waits for the first fragment (`delay_moov`), because only then it can carry the edit list that hides the AAC
encoder's 1024 priming samples; without it the picture would start 21 ms late. Fragments last one second.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import av
import numpy as np
import soxr
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.reformatter import Colorspace, VideoReformatter

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.media.audio import RATES, open_media

FILE_OPTIONS = {"movflags": "frag_keyframe+empty_moov+delay_moov+default_base_moof", "flush_packets": "1"}
# No B-frames: decode order is display order and time starts at 0. No keyframes at scene cuts: a fragment is one second.
VIDEO_OPTIONS = {"crf": "18", "preset": "veryfast", "bf": "0", "sc_threshold": "0"}
SOUND_BITS = 192_000  # per second
SOUND_RATES = (44_100, 48_000)  # written as they are, others as the last: an AAC frame of 1024 samples must stay below 40 ms
MAX_SKEW_S = 30  # sound may run ahead of the picture, or behind, by this much; it bounds what waits in memory
BT709 = 1


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, counted packet by packet. `audio_duration_s` starts at time 0: priming is not part of it."""

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration_s: float
    sound_codec: str | None = None
    sound_rate_hz: int | None = None
    sound_channels: int | None = None
    audio_duration_s: float | None = None


def probe_video(path: str | Path) -> VideoInfo:
    """Count a video file's packets. BadInput if there is no video in it."""
    with open_media(path, "video") as container:
        if not container.streams.video:
            raise BadInput(f"{path} holds no video: pass a video file")
        video, sound = container.streams.video[0], next(iter(container.streams.audio), None)
        frames, start_s, end_s, sound_end_s = 0, None, 0.0, 0.0
        try:
            for packet in container.demux([video, sound] if sound else [video]):
                if packet.pts is None or packet.time_base is None or packet.size == 0:
                    continue
                pts_s = float(packet.pts * packet.time_base)
                until_s = pts_s + float((packet.duration or 0) * packet.time_base)
                if packet.stream is video:
                    frames, start_s, end_s = frames + 1, min(pts_s, pts_s if start_s is None else start_s), max(end_s, until_s)
                else:
                    sound_end_s = max(sound_end_s, until_s)
        except FFmpegError as error:
            raise BadInput(f"the video file {path} is damaged after {end_s:.2f} s: {error.strerror}") from None
        context, duration_s = video.codec_context, end_s - (start_s or 0.0)
        info = (context.name, context.width, context.height, frames / duration_s if duration_s else 0.0, frames, duration_s)
        if sound is None:
            return VideoInfo(*info)
        return VideoInfo(
            *info, sound.codec_context.name, sound.codec_context.sample_rate, sound.codec_context.channels, sound_end_s
        )


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video file in order, uint8 RGB [H, W, 3]."""
    with open_media(path, "video") as container:
        if not container.streams.video:
            raise BadInput(f"{path} holds no video: pass a video file")
        reformatter, count = VideoReformatter(), 0
        try:
            for frame in container.decode(container.streams.video[0]):
                yield reformatter.reformat(frame, format="rgb24").to_ndarray()
                count += 1
        except FFmpegError as error:
            raise BadInput(f"the video file {path} is damaged after frame {count}: {error.strerror}") from None


class VideoWriter:
    """Writes `path` at 25 frames per second, with sound of `sound_rate_hz` and 1 or 2 channels (None: a silent film).

    The file grows under a hidden name beside `path` and takes its name at `close()`. The sound is held back until the picture
    has come as far, so that at the end both last equally long: missing sound becomes silence, surplus sound is dropped.
    An interrupted writer (Ctrl-C, an exception) closes like any other and leaves what was written; without frames, nothing.
    BadInput: bad path, size or data. Unavailable: no encoder, disk full.
    """

    def __init__(
        self, path: str | Path, height: int, width: int, sound_rate_hz: int | None = SAMPLE_RATE, sound_channels: int = 1
    ) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self.frames = 0  # written so far
        self._heard = 0  # sound samples received, at the rate they are encoded at
        self._sounded = 0  # sound samples given to the encoder
        self._held: deque[np.ndarray] = deque()  # [S, C], ahead of the picture
        self._check(sound_rate_hz, sound_channels)
        self._part = self.path.absolute().parent / f".everface-{secrets.token_hex(6)}.part"
        try:
            self._part.touch(exist_ok=False)
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror}") from None
        # Packets are written by a thread of their own: a Ctrl-C is raised in the caller's, and must not fall between two of them.
        self._hand = ThreadPoolExecutor(1, "everface mp4")
        try:
            self._open(sound_rate_hz, sound_channels)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        self._closed = False

    def _check(self, sound_rate_hz: int | None, sound_channels: int) -> None:
        if self.height < 2 or self.width < 2 or self.height % 2 or self.width % 2:
            even_h, even_w = max(self.height // 2, 1) * 2, max(self.width // 2, 1) * 2
            raise BadInput(f"H.264 needs even sides: {self.width}x{self.height} cannot be written, {even_w}x{even_h} can")
        if sound_rate_hz is not None and not RATES[0] <= sound_rate_hz <= RATES[1]:
            raise BadInput(f"a sound rate of {sound_rate_hz} Hz cannot be written: use {RATES[0]} to {RATES[1]} Hz")
        if sound_channels not in (1, 2):
            raise BadInput(f"{sound_channels} sound channels cannot be written: mix them down to 1 or 2")
        if self.path.suffix.lower() != ".mp4":
            raise BadInput(f"everface writes MP4 files, {self.path.name!r} is named otherwise: end it with .mp4")
        if self.path.is_dir():
            raise BadInput(f"cannot write {self.path}: it is a folder")
        if not self.path.parent.is_dir():
            raise BadInput(f"cannot write {self.path}: there is no folder {self.path.parent}")

    def _open(self, sound_rate_hz: int | None, channels: int) -> None:
        self._container = av.open(f"file:{self._part}", "w", format="mp4", options=FILE_OPTIONS)
        try:
            self._video: Any = self._container.add_stream("libx264", rate=FPS, options=VIDEO_OPTIONS)
            self._sound: Any = None
            if sound_rate_hz is not None:
                self._rate = sound_rate_hz if sound_rate_hz in SOUND_RATES else SOUND_RATES[-1]
                self._layout, self._channels = ("mono", "stereo")[channels - 1], channels
                self._sound = self._container.add_stream("aac", rate=self._rate, layout=self._layout)
                self._sound.bit_rate = SOUND_BITS
                self._resampler = None
                if self._rate != sound_rate_hz:
                    self._resampler = soxr.ResampleStream(sound_rate_hz, self._rate, channels, dtype="float32")
        except UnknownCodecError as error:
            raise Unavailable(f"this PyAV has no {error} encoder: install the av package from its wheel") from None
        self._video.width, self._video.height, self._video.pix_fmt = self.width, self.height, "yuv420p"
        context = self._video.codec_context
        context.gop_size = FPS  # a keyframe, hence a fragment, every second
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # limited
        self._reformatter = VideoReformatter()

    def write(self, frames_THW3: np.ndarray) -> None:
        """Append frames, uint8 RGB [T, H, W, 3]."""
        frames_THW3 = np.asarray(frames_THW3)
        if frames_THW3.dtype != np.uint8 or frames_THW3.shape[1:] != (self.height, self.width, 3):
            raise BadInput(
                f"frames of {frames_THW3.dtype} {list(frames_THW3.shape)} do not fit this video: "
                f"uint8 [T, {self.height}, {self.width}, 3] is needed"
            )
        self._stay_open()
        if self._sound and self.frames / FPS - self._heard / self._rate > MAX_SKEW_S:
            raise BadInput(f"the picture is {MAX_SKEW_S} s ahead of the sound: write them in turns, silence as zeros")
        try:
            self._hand.submit(self._append, frames_THW3).result()
        except (OSError, FFmpegError) as error:
            self._give_up(error)

    def write_audio(self, pcm: np.ndarray) -> None:
        """Append sound, float32 [S] or [S, channels], full scale 1, at the writer's sound rate; beyond -1..1 it is clipped."""
        pcm_SC = np.asarray(pcm, dtype=np.float32)
        pcm_SC = pcm_SC[:, None] if pcm_SC.ndim == 1 else pcm_SC
        self._stay_open()
        if not self._sound:
            raise BadInput(f"{self.path} was opened without sound: give the writer a sound rate")
        if pcm_SC.ndim != 2 or pcm_SC.shape[1] != self._channels:
            raise BadInput(f"sound of shape {list(np.shape(pcm))} does not fit this video: [S, {self._channels}] is needed")
        if not np.isfinite(pcm_SC).all():
            raise BadInput(f"the sound holds a sample that is not a number after {self._heard / self._rate:.2f} s")
        if self._heard / self._rate - self.frames / FPS > MAX_SKEW_S:
            raise BadInput(f"the sound is {MAX_SKEW_S} s ahead of the picture: write them in turns")
        if self._resampler is not None:
            pcm_SC = self._resampler.resample_chunk(np.ascontiguousarray(pcm_SC))
        self._hold(pcm_SC.clip(-1.0, 1.0))
        try:
            self._hand.submit(self._release).result()
        except (OSError, FFmpegError) as error:
            self._give_up(error)

    def _stay_open(self) -> None:
        if self._closed:
            raise BadInput(f"{self.path} is closed: nothing more can be written to it")

    def _append(self, frames_THW3: np.ndarray) -> None:
        for frame_HW3 in frames_THW3:
            raw = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), "rgb24")
            frame = self._reformatter.reformat(raw, format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = self.frames, Fraction(1, FPS)
            self._container.mux(self._video.encode(frame))
            self.frames += 1
            self._release()

    def _hold(self, pcm_SC: np.ndarray) -> None:
        self._heard += len(pcm_SC)
        if len(pcm_SC):
            self._held.append(pcm_SC)

    def _release(self) -> None:
        """Encode the held sound up to the end of the last frame."""
        while self._sound and self._held and (room := self.frames * self._rate // FPS - self._sounded) > 0:
            pcm_SC = self._held.popleft()
            if len(pcm_SC) > room:
                self._held.appendleft(pcm_SC[room:])
            chunk_CS = np.ascontiguousarray(pcm_SC[:room].T)
            frame = av.AudioFrame.from_ndarray(chunk_CS, "fltp", self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._sounded, Fraction(1, self._rate)
            self._sounded += chunk_CS.shape[1]
            self._container.mux(self._sound.encode(frame))

    def close(self) -> None:
        """End the file and give it its name. Without a frame, nothing is left. Safe to call twice."""
        if self._closed:
            return
        self._hand.shutdown()
        try:
            if self.frames:
                self._finish_sound()
                self._container.mux(self._video.encode(None))
            self._closed = True
            self._container.close()
            if self.frames:
                self._part.replace(self.path)
        except (OSError, FFmpegError) as error:
            self._give_up(error)
        finally:
            self._closed = True
            self._held.clear()
            if not self.frames:
                self._part.unlink(missing_ok=True)

    def _finish_sound(self) -> None:
        if not self._sound:
            return
        if self._resampler is not None:
            self._hold(self._resampler.resample_chunk(np.zeros((0, self._channels), np.float32), last=True).clip(-1.0, 1.0))
        self._release()
        missing = self.frames * self._rate // FPS - self._sounded
        while missing > 0:  # second by second: the silence may be long
            self._hold(np.zeros((min(missing, self._rate), self._channels), np.float32))
            self._release()
            missing = self.frames * self._rate // FPS - self._sounded
        self._container.mux(self._sound.encode(None))

    def _give_up(self, error: OSError | FFmpegError) -> NoReturn:
        """The disk refused. Keep the whole fragments under the final name, if there are any."""
        self._closed = True
        self._hand.shutdown()
        self._held.clear()
        kept_s = 0.0
        try:
            size = self._part.stat().st_size
            with contextlib.suppress(OSError, FFmpegError):  # the same refusal again
                self._container.close()
            _drop_torn_fragment(self._part, size)
            kept_s = probe_video(self._part).duration_s
            self._part.replace(self.path)
            kept = f"the first {kept_s:.1f} s are kept there and can be played"
        except (OSError, EverfaceError):
            kept = f"what was written stays in {self._part}" if kept_s else "nothing is kept"
            if not kept_s:
                self._part.unlink(missing_ok=True)
        raise Unavailable(f"cannot write {self.path}: {error.strerror}; {kept}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if kind is None and self.frames == 0:
            raise BadInput(f"no frame was written, so there is no video {self.path}")


def _drop_torn_fragment(path: Path, size: int) -> None:
    """Cut a fragmented MP4 after the last `mdat` box that is complete in its first `size` bytes (what follows came after a gap).

    A box starts with its length (uint32, big-endian) and name.
    """
    with open(path, "r+b") as file:
        end, at = 0, 0
        while at + 8 <= size:
            file.seek(at)
            length, name = int.from_bytes(file.read(4), "big"), file.read(4)
            at += max(length, 8)
            if name == b"mdat" and at <= size:
                end = at
        file.truncate(end)
