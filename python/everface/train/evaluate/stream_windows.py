"""Windows of a long stream: decoded and measured, while the blocks between them are only denoised."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from everface.core.config import SAMPLE_RATE
from everface.core.log import log
from everface.runtime.messages import Block
from everface.train.evaluate import metrics
from everface.train.evaluate.bars import Row
from everface.train.evaluate.held_out import HeldOut
from everface.train.evaluate.measure import measure
from everface.train.evaluate.offline_stream import OfflineStream
from everface.train.evaluate.readers.lip_reader import LipReader

PROGRESS_EVERY_S = 30
Report = Callable[[str], object]
"""Takes a line about the progress of a long evaluation."""


@dataclass(frozen=True)
class StreamWindow:
    """Frames and latents of whole blocks from `first` on."""

    first: int
    frames_THW3: Tensor
    latents_16Fhw: Tensor


def decode_windows(
    stream: OfflineStream, audio: Iterable[Tensor], begins: list[int], length: int, report: Report = log.info
) -> Iterator[StreamWindow]:
    """Run the stream and decode windows of `length` blocks that begin at `begins`. Memory does not grow between them."""
    memory: deque[Block] = deque(maxlen=stream.model.memory_blocks)
    frames: list[Tensor] = []
    latents: list[Tensor] = []
    begins, began, reported = list(begins), time.monotonic(), time.monotonic()
    for block in stream.blocks(audio):
        if block.index == begins[0]:
            stream.start_decoding(memory)
        if block.index >= begins[0]:
            frames.append(stream.decode(block))
            latents.append(block.x.float().cpu())
        memory.append(block)
        if len(frames) == length:
            yield StreamWindow(begins.pop(0), torch.cat(frames), torch.cat(latents, dim=1))
            frames.clear()
            latents.clear()
            if not begins:
                return
        if time.monotonic() - reported > PROGRESS_EVERY_S:
            reported, done = time.monotonic(), (block.index + 1) / (begins[-1] + length)
            left_min = (reported - began) * (1 / done - 1) / 60
            report(f"{block.pts / SAMPLE_RATE:.0f} s of the stream, {done:.1%}, {left_min:.0f} minutes left")


def measure_window(reader: LipReader, clip: HeldOut, window: StreamWindow, block_frames: int, fit_frames: int | None = None) -> Row:
    """All measures of one window; `clip` holds the true motion of its mouth from the window's first frame on."""
    made = metrics.as_rgb(window.frames_THW3)
    row, _ = measure(reader, clip, made, block_frames, fit_frames)
    row |= dict(zip(("red", "green", "blue"), made.mean((0, 2, 3)).tolist(), strict=True))
    z = window.latents_16Fhw
    return row | {"latent_mean": z.mean().item(), "latent_std": z.std().item()}
