"""The attention sink of each shot: when it is refreshed and what that waits for, and which earlier shot's sink a new shot takes over."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from everface.core.log import log
from everface.models.live_avatar.names import CLEAN, SINK, not_finite
from everface.runtime.messages import Tensors
from everface.runtime.model import SessionModel

SAME = 0.98  # cosine similarity of two reference latents, centered, from which on they show the same thing: docs/beyond.md
REMEMBERED = 16  # shots


class SinkRefresh:
    """`after`: the block of a shot that must carry the new sink; None: no shot ever does."""

    def __init__(self, after: int | None) -> None:
        self._after, self._begin, self._at = after, 0, after
        self._clean: torch.Tensor | None = None

    def depends_on(self, index: int) -> int | None:
        return self._begin if self._at is not None and index >= self._at and self._clean is None else None

    def update(self, index: int) -> Tensors | None:
        if self._at is None or index < self._at:
            return None
        self._at = None
        if self._clean is None:
            log.warning("a shot keeps its first sink: its first block was interrupted")
            return None
        return {SINK: self._clean}

    def result(self, index: int, outputs: Tensors) -> None:
        if index == self._begin and self._at is not None and self._clean is None:
            if CLEAN not in outputs:
                raise RuntimeError(f"block {index} came back without its clean latent, which the sink needs")
            self._clean = outputs[CLEAN].clone()

    def begin(self, index: int) -> None:
        """Block `index` is the first of another shot."""
        self._begin, self._clean = index, None
        self._at = None if self._after is None else index + self._after

    def skip(self) -> None:
        """Another image was chosen, or the sink is a refreshed one: the refresh would replace it."""
        self._at = None


@dataclass(frozen=True, eq=False)
class RememberedSink:
    """What a shot began with, and the sink that it had at last."""

    reference: torch.Tensor
    sink: torch.Tensor


class ShotMemory:
    """The refreshed sinks of a session's shots. One that shows again what an earlier shot showed takes over that shot's."""

    def __init__(self) -> None:
        self._shots: deque[RememberedSink] = deque(maxlen=REMEMBERED)

    def add(self, reference: torch.Tensor, sink: torch.Tensor) -> None:
        self._shots.append(RememberedSink(reference, sink))

    def find(self, reference: torch.Tensor) -> torch.Tensor | None:
        """The sink of the most similar shot; None if there is none so similar."""
        found = max(self._shots, key=lambda shot: similarity(shot.reference, reference), default=None)
        return found.sink if found and similarity(found.reference, reference) >= SAME else None


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two latents [C, 1, h, w], each channel's mean taken off."""
    a, b = (x.double() - x.double().mean((-2, -1), keepdim=True) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


class SinkSession(SessionModel):
    """What every session of this model does with a result. `refresh_after`: the block of a shot that carries the new sink, None for no refresh."""

    def __init__(self, refresh_after: int | None, reference: torch.Tensor) -> None:
        self._sink, self._memory = SinkRefresh(refresh_after), ShotMemory()
        self._reference = reference  # of the shot whose blocks are sent

    def depends_on(self, index: int) -> int | None:
        return self._sink.depends_on(index)

    def update(self, index: int) -> Tensors | None:
        update = self._sink.update(index)
        if update:
            self._memory.add(self._reference, update[SINK])
        return update

    def apply(self, update: Tensors, first: int | None) -> Tensors:
        if SINK not in update:
            return update
        if first is None:
            self._sink.skip()
            return update
        self._sink.begin(first)
        self._reference = update[SINK]
        remembered = self._memory.find(self._reference)
        if remembered is None:
            return update
        self._sink.skip()
        return {**update, SINK: remembered}

    def result(self, index: int, outputs: Tensors) -> None:
        self._sink.result(index, outputs)

    def invalid(self, outputs: Tensors) -> str | None:
        return not_finite(outputs)
