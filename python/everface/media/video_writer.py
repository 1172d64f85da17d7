"""Writes frames and audio into one MP4 (H.264 + AAC). While it grows it is fragmented, so that it plays even if the process is killed.

`close` rewrites it as an ordinary MP4, in which players can seek. The moov box waits for the first fragment (`delay_moov`), because only
then can it carry the edit list that hides the AAC encoder's 1024 priming samples; without it the video would start 21 ms late. Fragments
last one second.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
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
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.core.standard_streams import OutputLost
from everface.media.audio_track import MAX_SKEW_S, AudioTrack, check_format
from everface.media.output import Sign, open_output
from everface.media.output_pipe import OutputPipe

FILE_OPTIONS = {"movflags": "frag_keyframe+empty_moov+delay_moov+default_base_moof", "flush_packets": "1"}
# No B-frames: decode order is display order and time starts at 0. No keyframes at scene cuts: a fragment is one second.
VIDEO_OPTIONS = {"crf": "18", "preset": "veryfast", "bf": "0", "sc_threshold": "0"}
# Of a pipe: somebody watches, so that every frame leaves as soon as the next is there, and the encoder holds none back.
# A fragment of 40 ms, because libav's frag_every_frame writes wrong times. No index of all fragments, which would grow for as long as it runs.
PIPE_OPTIONS = {**FILE_OPTIONS, "movflags": FILE_OPTIONS["movflags"] + "+skip_trailer", "frag_duration": "40000"}
LIVE = {"tune": "zerolatency"}
BT709 = 1


class VideoWriter:
    """Writes `path` at `fps` frames per second, with audio of `audio_rate_hz` and 1 or 2 channels (None: without audio).

    Audio waits until the video has come as far, so that both end at the same time: missing audio becomes silence, surplus audio is
    dropped. The file grows under a hidden name and gets its own by `close`, which makes it an ordinary MP4. After an exception or
    Ctrl-C, what was written is kept, if `keep_unfinished`; it never replaces an older video. Without frames there is no file. A pipe,
    named or opened already, gets a fragmented MP4 frame by frame. `sign` signs the file before it gets its name. Not thread-safe.

    Raises BadInput for a path, size or data that cannot be written, Unavailable without an encoder, when the disk is full, or when the
    reader of a named pipe is gone, OutputLost when that of stdout is.
    """

    def __init__(
        self, path: str | Path | OutputPipe, height: int, width: int, audio_rate_hz: int | None = SAMPLE_RATE, audio_channels: int = 1, *,
        fps: int = FPS, keep_unfinished: bool = True, sign: Sign | None = None,
    ) -> None:  # fmt: skip
        self.path, self.height, self.width = path.path if isinstance(path, OutputPipe) else Path(path), height, width
        self.fps, self.frames = fps, 0  # written so far
        self._keep_unfinished = keep_unfinished
        if height < 2 or width < 2 or height % 2 or width % 2:
            even_h, even_w = max(height // 2, 1) * 2, max(width // 2, 1) * 2
            raise BadInput(f"{width}x{height} cannot be written, because H.264 needs even sides: use {even_w}x{even_h}")
        if audio_rate_hz is not None:
            check_format(audio_rate_hz, audio_channels)
        self._closed = False
        self._failure: Unavailable | OutputLost | None = None
        self._output = path if isinstance(path, OutputPipe) else open_output(self.path)
        self._sign = sign
        if sign and not isinstance(self._output, OutputPipe):
            self._output.sign = sign
        # A thread of its own does all work on the file: Ctrl-C is raised in the caller's thread and must tear nothing.
        self._worker = ThreadPoolExecutor(1, "everface mp4")
        try:
            self._open(audio_rate_hz, audio_channels)
        except BaseException:
            self._output.remove()
            raise

    @property
    def saved(self) -> Path | None:
        """Where the video is, once it is closed; None without frames."""
        return self._output.saved

    @property
    def signed(self) -> bool:
        """Whether the video is signed, once it is closed."""
        return self._sign is not None and self.saved is not None and self._output.unsigned is None

    def _open(self, audio_rate_hz: int | None, channels: int) -> None:
        live = isinstance(self._output, OutputPipe)
        self._container = av.open(self._output.target, "w", format="mp4", options=PIPE_OPTIONS if live else FILE_OPTIONS)
        try:
            self._video: Any = self._container.add_stream("libx264", rate=self.fps, options=VIDEO_OPTIONS | (LIVE if live else {}))
            self._audio = AudioTrack(self._container, audio_rate_hz, channels, self.fps) if audio_rate_hz is not None else None
        except UnknownCodecError as error:
            raise Unavailable(f"this PyAV has no {error} encoder: install the av package from its wheel") from None
        self._video.width, self._video.height, self._video.pix_fmt = self.width, self.height, "yuv420p"
        context = self._video.codec_context
        context.gop_size = self.fps  # a keyframe, and so a fragment, every second
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
                frame.pts, frame.time_base = self.frames, Fraction(1, self.fps)
                self._container.mux(self._video.encode(frame))
                self.frames += 1
                if self._audio:
                    self._audio.encode(self.frames)

        self._run(append)

    def write_audio(self, audio: np.ndarray) -> None:
        """Append audio, float32 [S] or [S, channels] at the writer's audio rate, full scale 1; beyond -1..1 it is clipped.

        Raises BadInput, Unavailable.
        """
        self._check_open()
        track = self._audio
        if track is None:
            raise BadInput(f"{self.path} was opened without audio: pass an audio rate to the writer")
        track.add(audio, self.frames)
        self._run(lambda: track.encode(self.frames))

    def close(self, finished: bool = True) -> None:
        """Complete the file and name it; an unfinished video replaces no older one. May be called twice. Raises Unavailable."""
        if self._closed:
            return
        self._closed = True
        if not finished:
            self._output.hurry()
        done = self._worker.submit(self._guarded, lambda: self._complete(finished))
        try:
            done.result()
        except KeyboardInterrupt as interrupt:
            self._output.hurry()
            if done.exception() is None and finished and self.saved:
                interrupt.add_note(f"the video is complete in {self.saved}")
            raise
        finally:
            self._worker.shutdown(wait=False)
        if finished and self.saved:
            self._report(self.saved)

    # inside

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput(f"{self.path} is closed, so nothing can be added: open another writer")

    def _run(self, job: Callable[[], None]) -> None:
        self._worker.submit(self._guarded, job).result()

    # on the worker's thread

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except (OSError, FFmpegError) as error:
            self._fail(error)

    def _complete(self, finished: bool) -> None:
        if self._failure:
            return
        if self.frames:
            if self._audio:
                self._audio.finish(self.frames)
            self._container.mux(self._video.encode(None))
        elif self._audio:
            self._audio.clear()
        self._container.close()
        if self.frames and (finished or self._keep_unfinished):
            self._output.close(finished)
        else:
            self._output.remove()

    def _fail(self, error: OSError | FFmpegError) -> NoReturn:
        """The disk refused a write, or the reader of a pipe is gone: keep what was written before; raise why."""
        self._closed = True
        self._worker.shutdown(wait=False)
        size = self._output.size()
        if self._audio:
            self._audio.clear()
        with contextlib.suppress(OSError, FFmpegError):  # closing fails for the same reason
            self._container.close()
        if self._keep_unfinished:
            self._failure = self._output.failure(error, size)
        else:
            self._output.remove()
            self._failure = Unavailable(f"cannot write {self._output.path} ({error.strerror}), free some space: nothing is kept")
        raise self._failure from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close(finished=error is None)
        except (Unavailable, OutputLost):
            if error is None:
                raise
        if error is None and self.frames == 0:
            raise BadInput(f"there is no video {self.path}, because no frame was written: write at least one")
        if error is not None and error is not self._failure and (note := self._remainder()):
            error.add_note(note)

    def _report(self, saved: Path) -> None:
        """Log what is not as usual about a finished video."""
        if saved != self.path:
            log.warning("another %s has appeared meanwhile: this video is in %s", self.path, saved)
        if reason := self._output.fragmented:
            advice = f"free some space and run ffmpeg -i {saved} -c copy -movflags +faststart NEW.mp4"
            log.warning("%s is complete, but has no index (%s), so players may not seek in it: %s", saved, reason, advice)
        if self._sign and (reason := self._output.unsigned):
            level = logging.INFO if isinstance(self._output, OutputPipe) else logging.WARNING
            log.log(level, "%s is complete, but not signed: %s", saved, reason)

    def _remainder(self) -> str:
        """A sentence about what is left of an unfinished video, if anything is."""
        if self._failure:
            return str(self._failure)
        if not self.saved:
            return ""
        before = "" if self.saved == self.path else f"{self.path} is as it was, and "
        after = f", but has no index ({self._output.fragmented})" if self._output.fragmented else ""
        return f"{before}the first {self.frames / self.fps:.1f} s are in {self.saved} and can be played{after}"
