"""The refresh of the attention sink: when it is due, and what it waits for."""

from __future__ import annotations

import torch

from everface.core.log import log
from everface.models.live_avatar.names import CLEAN, SINK, not_finite
from everface.runtime.messages import Tensors
from everface.runtime.model import SessionModel


class SinkRefresh:
    """`at`: the first block that must carry the new sink; None: it was set, or never will be."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self._clean: torch.Tensor | None = None

    def depends_on(self, index: int) -> int | None:
        return 0 if self._at is not None and index >= self._at and self._clean is None else None

    def update(self, index: int) -> Tensors | None:
        if self._at is None or index < self._at:
            return None
        self._at = None
        if self._clean is None:
            log.warning("a session keeps its first sink: its first block was interrupted")
            return None
        return {SINK: self._clean}

    def result(self, index: int, outputs: Tensors) -> None:
        if index == 0 and self._at is not None and self._clean is None:
            if CLEAN not in outputs:
                raise RuntimeError("block 0 came back without its clean latent, which the sink needs")
            self._clean = outputs[CLEAN].clone()

    def skip(self) -> None:
        """Another image was chosen: the refresh would bring the old one back."""
        self._at = None


class SinkSession(SessionModel):
    """What every session of this model does with a result. `refresh_at`: the first block that carries the new sink, None for no refresh."""

    def __init__(self, refresh_at: int | None) -> None:
        self._sink = SinkRefresh(refresh_at)

    def depends_on(self, index: int) -> int | None:
        return self._sink.depends_on(index)

    def update(self, index: int) -> Tensors | None:
        return self._sink.update(index)

    def result(self, index: int, outputs: Tensors) -> None:
        self._sink.result(index, outputs)

    def invalid(self, outputs: Tensors) -> str | None:
        return not_finite(outputs)
