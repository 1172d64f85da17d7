"""One viewer over a pipeline: sound in, frames out, in order. Its clock is the count of accepted samples.

Sound is cut into blocks of 12 video frames. A block is emitted once its samples and the look-ahead are there, or the sound has
ended, and the pipeline has room. Windows depend on the samples alone, never on how they were pushed: before the epoch's first
sample and after its last there is silence. Threads may push, poll, interrupt and close at the same time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from everface.core.block import Block, Closing, Opening, Tensors
from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log
from everface.runtime.clock import Clock
from everface.runtime.pipeline import Answer, Pipeline
from everface.runtime.stage import Epoch, Tombstone

REFRESH_AT = 4  # blocks; the official first clip
WAIT_S = 0.2  # longest single wait on the pipeline, so that an interrupt from another thread is soon seen
CLEAN, SINK = "clean", "sink"

Condition = Callable[[int, torch.Tensor], Tensors]
Noise = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class FrameBlock:
    """Finished frames, and the accepted sample that the first of them shows."""

    frames_THW3: torch.Tensor  # uint8
    pts: int
    epoch: int
    index: int


class Session:
    """`condition(index, pcm)`: what rides with a block, from its window of float32 sound [lookback + block + lookahead];
    `noise(index)`: the latent it starts as. Block 0 must come back with condition "clean": block `refresh_at` carries it as
    condition "sink", and is not emitted before it is there, which makes every placement compute the same bits.
    """

    def __init__(
        self, pipeline: Pipeline, session: int, tensors: Tensors, condition: Condition, noise: Noise, *,
        params: dict[str, int | float | str | bool] | None = None, frames_per_block: int = 12,
        lookback_samples: int = 0, lookahead_samples: int = 0, refresh_at: int | None = REFRESH_AT, buffer_s: float = 10.0,
    ):  # fmt: skip
        if lookback_samples < 0 or lookahead_samples < 0 or (refresh_at is not None and refresh_at < 1):
            raise BadInput("look-back and look-ahead cannot be negative, nor the sink be refreshed before block 1: mend the settings")
        self._pipeline, self.id, self._condition, self._noise = pipeline, session, condition, noise
        self._frames, self._block = frames_per_block, frames_per_block * SAMPLES_PER_FRAME
        self._lookback, self._lookahead = lookback_samples, lookahead_samples
        self._limit = int(buffer_s * SAMPLE_RATE)
        if self._limit < self._block + lookahead_samples:
            raise BadInput(f"a buffer of {buffer_s:g} s does not hold one block and its look-ahead: allow more")
        self.clock = Clock()
        self.epoch = 0
        self.accepted = 0  # samples since the session opened: the clock
        self._changed = threading.Condition(threading.RLock())
        self._taking = threading.Lock()  # answers are accepted in the order they are taken; never acquired inside _changed
        self._begin = 0  # first sample of the epoch
        self._at = 0  # first sample of the next block
        self._pcm = torch.zeros(lookback_samples)  # samples from _at - lookback to accepted
        self._ended = self._closed = False
        self._index = 0  # of the next block
        self._flying: deque[int] = deque()  # indices of blocks in flight
        self._finished: deque[FrameBlock] = deque()
        self._clean: torch.Tensor | None = None
        self._refresh_at = refresh_at  # first block that must carry the sink; None: it has been sent, or never will be
        self._sink_index: int | None = None  # the block in flight that carries it
        pipeline.put(Opening(session, tensors, params or {}))

    # sound

    def push(self, pcm: torch.Tensor | np.ndarray) -> bool:
        """Accept mono float32 sound at 16 kHz, or, if more than the buffer would then wait, answer False and accept none of it."""
        pcm = torch.from_numpy(pcm) if isinstance(pcm, np.ndarray) else pcm
        if pcm.ndim != 1 or pcm.dtype != torch.float32:
            raise BadInput(f"sound of shape {list(pcm.shape)} and {pcm.dtype} cannot be used: push mono float32 samples at 16 kHz")
        if not bool(torch.isfinite(pcm).all()):
            raise BadInput("the sound holds values that are not finite: repair it before pushing")
        if pcm.numel() > self._limit:
            raise BadInput(f"{pcm.numel()} samples at once do not fit into the buffer of {self._limit}: push smaller pieces")
        with self._changed:
            self._check_open()
            if self._ended:
                raise BadInput("sound came after end(): call interrupt() to begin anew, or open another session")
            if self.accepted - self._at + pcm.numel() > self._limit:
                self._emit()
                if self.accepted - self._at + pcm.numel() > self._limit:
                    return False
            if pcm.numel():
                self._pcm = torch.cat([self._pcm, pcm.detach().cpu()])
                self.accepted += pcm.numel()
                self.clock.hear()
                self._emit()
                self._changed.notify_all()
            return True

    def end(self) -> None:
        """No more sound in this epoch: what waits is padded with silence to whole blocks."""
        with self._changed:
            self._check_open()
            self._ended = True
            self._emit()
            self._changed.notify_all()

    def interrupt(self) -> int:
        """Drop all that is not delivered; sound pushed from now on belongs to the epoch answered. Nothing pushed: no change."""
        with self._changed:
            self._check_open()
            if self.accepted == self._begin and not self._ended:
                return self.epoch
            self.epoch += 1
            self._begin = self._at = self.accepted
            self._pcm = torch.zeros(self._lookback)
            self._ended = False
            self._finished.clear()
            if self._sink_index is not None:  # steps behind the place where its block is dropped would miss the sink
                self._refresh_at, self._sink_index = self._index, None
            self._pipeline.put(Epoch(self.id, self.epoch))
            self._changed.notify_all()
            return self.epoch

    # frames

    def poll(self) -> list[FrameBlock]:
        """Blocks finished since the last call, in order. Does not wait (inline, it computes at most one block)."""
        self._receive(0.0)
        with self._changed:
            if not self._closed:
                self._emit()
            blocks = list(self._finished)
            self._finished.clear()
            return blocks

    def frames(self) -> Iterator[FrameBlock]:
        """Blocks as they finish, until end() has been called and all are delivered; until then it waits for sound."""
        while True:
            self._receive(WAIT_S)
            with self._changed:
                if self._closed:
                    return
                self._emit()
                if not self._finished and not self._flying:
                    if self._ended and self._at >= self.accepted:
                        return
                    self._changed.wait(WAIT_S)
            while block := self._next_finished():  # one at a time: an interrupt between two of them drops the second
                yield block

    def close(self) -> None:
        """Drop what is in flight, free the session's caches on every stage. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._finished.clear()
            self._changed.notify_all()
        try:
            self._pipeline.put(Epoch(self.id, self.epoch + 1))
            while self._flying:
                self._receive(WAIT_S)
            self._pipeline.put(Closing(self.id))
        except EverfaceError as error:  # told before, or to be told to the next who uses the pipeline
            log.info("session %d closed on a dead pipeline: %s", self.id, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # inside

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"session {self.id} is closed: open another")

    def _next_finished(self) -> FrameBlock | None:
        with self._changed:
            return self._finished.popleft() if self._finished else None

    def _emit(self) -> None:
        """Give blocks to the pipeline while they are complete and it has room."""
        while self._pipeline.room() > 0:
            waiting = self.accepted - self._at
            if waiting <= 0 or (waiting < self._block + self._lookahead and not self._ended):
                return
            sink: Tensors = {}
            if self._refresh_at is not None and self._index >= self._refresh_at:
                if self._clean is not None:
                    sink = {SINK: self._clean}
                    self._refresh_at, self._sink_index = None, self._index
                elif 0 in self._flying:
                    return
                else:
                    log.warning("session %d keeps its first sink: its first block was interrupted", self.id)
                    self._refresh_at = None
            self._emit_block(waiting, sink)

    def _emit_block(self, waiting: int, sink: Tensors) -> None:
        window = self._pcm[: self._lookback + self._block + self._lookahead]
        window = torch.nn.functional.pad(window, (0, self._lookback + self._block + self._lookahead - window.numel()))
        last = self._ended and waiting <= self._block
        frames = -(-min(waiting, self._block) // SAMPLES_PER_FRAME)
        condition = {**self._condition(self._index, window), **sink}
        block = Block(self.id, self.epoch, self._index, self._at, frames, self._noise(self._index), condition, last)
        self.clock.emit(block.index, block.pts)
        self._pipeline.put(block)
        self._flying.append(self._index)
        self._index += 1
        self._at += min(self._block, waiting)
        self._pcm = self._pcm[self._block :].clone()  # only look-back and waiting samples are kept

    def _receive(self, timeout_s: float) -> None:
        """Take all answers that are there, waiting for the first one."""
        with self._taking:
            while self._flying:
                answer = self._pipeline.take(timeout_s)
                if answer is None:
                    return
                timeout_s = 0.0
                with self._changed:
                    self._accept(answer)

    def _accept(self, answer: Answer) -> None:
        expected = self._flying.popleft()
        if (answer.session, answer.index) != (self.id, expected):
            raise RuntimeError(f"block {answer.index} of session {answer.session} came where {expected} of {self.id} was due")
        if answer.index == self._sink_index:
            self._sink_index = None
        if isinstance(answer, Tombstone):
            return
        if answer.index == 0 and self._refresh_at is not None:
            if CLEAN not in answer.condition:
                raise RuntimeError("block 0 came back without its clean latent, which the sink needs")
            self._clean = answer.condition[CLEAN].clone()
        if answer.epoch < self.epoch or self._closed:
            return
        if answer.x.dtype != torch.uint8 or answer.x.shape[0] != self._frames:
            raise RuntimeError(f"the last role gave {answer.x.dtype} {list(answer.x.shape)} instead of {self._frames} uint8 frames")
        self.clock.deliver(answer.index, answer.frames)
        self._finished.append(FrameBlock(answer.x[: answer.frames], answer.pts, answer.epoch, answer.index))
