"""Writes frames and audio into one fragmented MP4 (H.264 + AAC), which plays even if the writing was interrupted.

The moov box waits for the first fragment (`delay_moov`), because only then can it carry the edit list that hides the AAC
encoder's 1024 priming samples; without it the video would start 21 ms late. Fragments last one second.
"""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.reformatter import Colorspace, VideoReformatter

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.media.audio_track import MAX_SKEW_S, AudioTrack, check_format
from everface.media.video import probe_video

FILE_OPTIONS = {"movflags": "frag_keyframe+empty_moov+delay_moov+default_base_moof", "flush_packets": "1"}
# No B-frames: decode order is display order and time starts at 0. No keyframes at scene cuts: a fragment is one second.
VIDEO_OPTIONS = {"crf": "18", "preset": "veryfast", "bf": "0", "sc_threshold": "0"}
BT709 = 1


class VideoWriter:
    """Writes `path` at 25 frames per second, with audio of `audio_rate_hz` and 1 or 2 channels (None: without audio).

    The file grows under a hidden name beside `path` and is renamed by `close`. Audio waits until the video has come as far, so
    that both end at the same time: missing audio becomes silence, surplus audio is dropped. After an interruption (Ctrl-C, an
    exception) `close` keeps what was written; without frames there is no file. Not thread-safe. Raises BadInput for a path, size
    or data that cannot be written, Unavailable without an encoder or when the disk is full.
    """

    def __init__(
        self, path: str | Path, height: int, width: int, audio_rate_hz: int | None = SAMPLE_RATE, audio_channels: int = 1
    ) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self.frames = 0  # written so far
        self._check_target()
        if audio_rate_hz is not None:
            check_format(audio_rate_hz, audio_channels)
        self._part = self.path.absolute().parent / f".everface-{secrets.token_hex(6)}.part"
        try:
            self._part.touch(exist_ok=False)
        except OSError as error:
            raise BadInput(f"cannot write {self.path} ({error.strerror}): choose another place") from None
        # A separate thread writes the packets: Ctrl-C is raised in the caller's thread and must not tear one.
        self._worker = ThreadPoolExecutor(1, "everface mp4")
        try:
            self._open(audio_rate_hz, audio_channels)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        self._closed = False

    def _check_target(self) -> None:
        if self.height < 2 or self.width < 2 or self.height % 2 or self.width % 2:
            even_h, even_w = max(self.height // 2, 1) * 2, max(self.width // 2, 1) * 2
            raise BadInput(f"{self.width}x{self.height} cannot be written, because H.264 needs even sides: use {even_w}x{even_h}")
        if self.path.suffix.lower() != ".mp4":
            raise BadInput(f"{self.path.name!r} cannot be written, because everface writes MP4 files: end the name with .mp4")
        if self.path.is_dir():
            raise BadInput(f"cannot write {self.path}, because it is a folder: name a file")
        if not self.path.parent.is_dir():
            raise BadInput(f"cannot write {self.path}, because there is no folder {self.path.parent}: create it first")

    def _open(self, audio_rate_hz: int | None, channels: int) -> None:
        self._container = av.open(f"file:{self._part}", "w", format="mp4", options=FILE_OPTIONS)
        try:
            self._video: Any = self._container.add_stream("libx264", rate=FPS, options=VIDEO_OPTIONS)
            self._audio = AudioTrack(self._container, audio_rate_hz, channels) if audio_rate_hz is not None else None
        except UnknownCodecError as error:
            raise Unavailable(f"this PyAV has no {error} encoder: install the av package from its wheel") from None
        self._video.width, self._video.height, self._video.pix_fmt = self.width, self.height, "yuv420p"
        context = self._video.codec_context
        context.gop_size = FPS  # a keyframe, and so a fragment, every second
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # limited
        self._reformatter = VideoReformatter()

    def write(self, frames_THW3: np.ndarray) -> None:
        """Append frames, uint8 RGB [T, H, W, 3]. Raises BadInput, Unavailable."""
        frames_THW3 = np.asarray(frames_THW3)
        if frames_THW3.dtype != np.uint8 or frames_THW3.shape[1:] != (self.height, self.width, 3):
            raise BadInput(
                f"frames of {frames_THW3.dtype} {list(frames_THW3.shape)} do not fit this video: "
                f"pass uint8 [T, {self.height}, {self.width}, 3]"
            )
        self._check_open()
        if self._audio and -self._audio.ahead_s(self.frames) > MAX_SKEW_S:
            raise BadInput(f"the video is {MAX_SKEW_S} s ahead of the audio: write them alternately, silence as zeros")

        def append() -> None:
            for frame_HW3 in frames_THW3:
                raw = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), "rgb24")
                frame = self._reformatter.reformat(raw, format="yuv420p", dst_colorspace=Colorspace.ITU709)
                frame.pts, frame.time_base = self.frames, Fraction(1, FPS)
                self._container.mux(self._video.encode(frame))
                self.frames += 1
                if self._audio:
                    self._audio.encode(self.frames)

        try:
            self._worker.submit(append).result()
        except (OSError, FFmpegError) as error:
            self._fail(error)

    def write_audio(self, audio: np.ndarray) -> None:
        """Append audio, float32 [S] or [S, channels] at the writer's audio rate, full scale 1; beyond -1..1 it is clipped.

        Raises BadInput, Unavailable.
        """
        self._check_open()
        if self._audio is None:
            raise BadInput(f"{self.path} was opened without audio: pass an audio rate to the writer")
        self._audio.add(audio, self.frames)
        try:
            self._worker.submit(self._audio.encode, self.frames).result()
        except (OSError, FFmpegError) as error:
            self._fail(error)

    def close(self) -> None:
        """Finish the file and rename it. Without a frame, no file is left. May be called twice. Raises Unavailable."""
        if self._closed:
            return
        self._worker.shutdown()
        try:
            if self.frames:
                if self._audio:
                    self._audio.finish(self.frames)
                self._container.mux(self._video.encode(None))
            self._closed = True
            self._container.close()
            if self.frames:
                self._part.replace(self.path)
        except (OSError, FFmpegError) as error:
            self._fail(error)
        finally:
            self._release()
            if not self.frames:
                self._part.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput(f"{self.path} is closed, so nothing can be added: open another writer")

    def _release(self) -> None:
        self._closed = True
        if self._audio:
            self._audio.clear()

    def _fail(self, error: OSError | FFmpegError) -> NoReturn:
        """The disk refused a write. Keep the whole fragments under the final name, if there are any; raise Unavailable."""
        self._worker.shutdown()
        self._release()
        kept_s = 0.0
        try:
            size = self._part.stat().st_size
            with contextlib.suppress(OSError, FFmpegError):  # closing fails for the same reason
                self._container.close()
            _cut_torn_fragment(self._part, size)
            kept_s = probe_video(self._part).duration_s
            self._part.replace(self.path)
            kept = f"the first {kept_s:.1f} s are kept there and can be played"
        except (OSError, EverfaceError):
            kept = f"the data written so far is kept in {self._part}" if kept_s else "nothing is kept"
            if not kept_s:
                self._part.unlink(missing_ok=True)
        raise Unavailable(f"cannot write {self.path} ({error.strerror}), free some space: {kept}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if kind is None and self.frames == 0:
            raise BadInput(f"there is no video {self.path}, because no frame was written: write at least one")


def _cut_torn_fragment(path: Path, size: int) -> None:
    """Truncate a fragmented MP4 after the last `mdat` box that is complete in its first `size` bytes; the rest follows a gap.

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
