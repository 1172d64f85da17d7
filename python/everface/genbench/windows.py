"""Windows of a clip, as a viewer sees and hears it: frames at 25 per second with the audio of the same time. Read in one pass, with memory for
one window at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.genbench.manifest import BenchmarkSet, Sample
from everface.media.audio import mono_16khz, read_audio
from everface.media.container import open_media
from everface.media.decoding.decoder import decode_audio
from everface.media.image import read_image
from everface.media.video import probe_video, read_frames

WINDOW_S = 10.0
BEGINS_S = (0.0, 100.0, 1000.0, 10000.0)  # the paper's table 7
LEAD_S = 2.0  # of audio before a window: what the mouth does there depends on it
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the image


@dataclass(frozen=True)
class ClipWindow:
    """Ten seconds, or a whole shorter clip."""

    frames_THW3: Tensor  # uint8
    pcm_S: Tensor  # 16 kHz, T * 640 samples
    lead_S: Tensor  # the audio before it, up to LEAD_S
    reference_HW3: Tensor  # uint8, the sample's image at the video's size
    begin_s: float = 0.0
    face: Box | None = None  # shares of a frame
    truth: str = ""

    def rgb(self, first: int = 0, last: int | None = None) -> Tensor:
        """Frames first .. last - 1 as rgb_T3HW float32 in -1..1."""
        return self.frames_THW3[first:last].permute(0, 3, 1, 2).float() / 127.5 - 1

    def region(self, box: Box | None) -> Tensor:
        """The frames inside a box, [T, h, w, 3]; all of them for None."""
        return cut_box(self.frames_THW3, box)


def cut_box(images_HW3: Tensor, box: Box | None) -> Tensor:
    """Images [..., H, W, 3] inside a box; whole for None."""
    if box is None:
        return images_HW3
    H, W = images_HW3.shape[-3:-1]
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (W, H, W, H)))
    return images_HW3[..., max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1), :]


def mouth_of(face: Box) -> Box:
    """The part of a face box that holds the mouth: its lower half, without a sixth at either side."""
    left, top, right, bottom = face
    width, height = right - left, bottom - top
    return left + width / 6, top + height / 2, right - width / 6, bottom


def read_windows(video: Path, sample: Sample, benchmark: BenchmarkSet, begins_s: Sequence[float] = BEGINS_S) -> Iterator[ClipWindow]:
    """The windows that fit into the video; the first one may be shorter than WINDOW_S. Raises BadInput for damage."""
    info = probe_video(video)
    seconds = info.duration_s
    wanted = [begin for begin in begins_s if begin == 0 or begin + WINDOW_S <= seconds + 1e-6]
    audio = _read_audio(video, benchmark.voice(sample), wanted)
    frames_at = _read_frames(video, info.fps, wanted)
    for begin_s, frames_THW3 in frames_at:
        lead_S, pcm_S = audio[begin_s]
        T = min(len(frames_THW3), max(1, len(pcm_S) // SAMPLES_PER_FRAME))
        reference, face = _reference(benchmark.image(sample), (frames_THW3.shape[1], frames_THW3.shape[2]), sample.face)
        yield ClipWindow(frames_THW3[:T], pcm_S[: T * SAMPLES_PER_FRAME], lead_S, reference, begin_s, face, sample.truth)


def _read_frames(video: Path, fps: float, begins_s: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    """(begin, frames of the window) at 25 frames per second: of another rate, the frame that is shown at the time."""
    rate = fps if abs(fps - FPS) > 0.01 else float(FPS)
    left, kept, frames = list(begins_s), list[np.ndarray](), enumerate(read_frames(video))
    at, frame = next(frames, (0, None))
    n = math.floor(left[0] * FPS)
    while left and frame is not None:
        shown = math.floor((n + 0.5) * rate / FPS)  # the source frame in the middle of frame n
        while at < shown:
            following = next(frames, None)
            if following is None:
                frame = None
                break
            at, frame = following
        if frame is not None:
            kept.append(frame)
            n += 1
        if frame is None or len(kept) == round(WINDOW_S * FPS):
            if kept:
                yield left[0], torch.from_numpy(np.stack(kept))
            left, kept = left[1:], []
            n = math.floor(left[0] * FPS) if left else n


def _read_audio(video: Path, voice: Path, begins_s: Sequence[float]) -> dict[float, tuple[Tensor, Tensor]]:
    """{begin: (lead, audio of the window)} from the video's audio track, or from the voice for a video without one."""
    spans = {begin: (round(max(0.0, begin - LEAD_S) * SAMPLE_RATE), round(begin * SAMPLE_RATE), round((begin + WINDOW_S) * SAMPLE_RATE)) for begin in begins_s}
    kept: dict[float, list[np.ndarray]] = {begin: [] for begin in begins_s}
    at, last = 0, max(end for _, _, end in spans.values())
    for x_S in soundtrack(video, voice):
        for begin, (first, _, end) in spans.items():
            kept[begin].append(x_S[max(0, first - at) : max(0, end - at)])
        at += len(x_S)
        if at >= last:
            break
    found = {}
    for begin, (first, start, end) in spans.items():
        x_S = np.concatenate([np.zeros(0, np.float32), *kept[begin]])
        x_S = torch.from_numpy(np.pad(x_S, (0, end - first - len(x_S))))
        found[begin] = (x_S[: start - first], x_S[start - first :])
    return found


def soundtrack(video: Path, voice: Path) -> Iterator[np.ndarray]:
    """Mono 16 kHz audio in chunks, from the moment of the first video frame on."""
    with open_media(video, "video") as container:
        if not container.streams.audio:
            yield from read_audio(voice)
            return
        start_s = _start_s(container.streams.audio[0]) - _start_s(container.streams.video[0])
        if start_s > 0:
            yield np.zeros(round(start_s * SAMPLE_RATE), np.float32)
        cut = round(max(0.0, -start_s) * SAMPLE_RATE)
        for x_S in mono_16khz(decode_audio(container, video)):
            yield x_S[cut:]
            cut = max(0, cut - len(x_S))


def _start_s(stream: object) -> float:
    start, base = getattr(stream, "start_time", None), getattr(stream, "time_base", None)
    return float(start * base) if start is not None and base is not None else 0.0


def _reference(path: Path, size: tuple[int, int], face: Box | None) -> tuple[Tensor, Box | None]:
    """The sample's image, covering `size` = (H, W), cropped around its center; and where its face is then."""
    image, (H, W) = Image.fromarray(read_image(path)), size
    scale = max(W / image.width, H / image.height)
    image = image.resize((max(W, round(image.width * scale)), max(H, round(image.height * scale))), Image.Resampling.BILINEAR)
    left, top = (image.width - W) // 2, (image.height - H) // 2
    if face is not None:
        sides, begins, ends = (image.width, image.height) * 2, (left, top) * 2, (W, H) * 2
        x0, y0, x1, y1 = (min(1.0, max(0.0, (share * side - begin) / end)) for share, side, begin, end in zip(face, sides, begins, ends))
        face = (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
    return torch.from_numpy(np.array(image.crop((left, top, left + W, top + H)))), face
