"""A session's sound, cut into windows of whole blocks. Windows depend on the samples alone, never on how they came."""

from __future__ import annotations

import torch

from everface.core.config import SAMPLES_PER_FRAME


class Intake:
    """Samples that wait, with the look-back of the next block before them. Positions count the samples accepted since the beginning."""

    def __init__(self, block: int, lookback: int, lookahead: int):
        self.block, self.lookback, self.lookahead = block, lookback, lookahead
        self.accepted = 0
        self.begin = 0  # first sample of the revision
        self.at = 0  # first sample of the next block
        self.ended = False  # the revision's sound is complete
        self._pcm = torch.zeros(lookback)  # from at - lookback to accepted

    def add(self, pcm_S: torch.Tensor) -> None:
        self._pcm = torch.cat([self._pcm, pcm_S.detach().cpu()])
        self.accepted += pcm_S.numel()

    def anew(self) -> None:
        """An revision begins: nothing of the sound before it is cancels."""
        self.begin = self.at = self.accepted
        self._pcm = torch.zeros(self.lookback)
        self.ended = False

    def window(self) -> tuple[torch.Tensor, int, bool] | None:
        """The next block's sound [lookback + block + lookahead], its video frames, and whether it is the last; None if it is not complete."""
        waiting = self.accepted - self.at
        if waiting <= 0 or (waiting < self.block + self.lookahead and not self.ended):
            return None
        length = self.lookback + self.block + self.lookahead
        window = self._pcm[:length]
        window = torch.nn.functional.pad(window, (0, length - window.numel()))
        return window, -(-min(waiting, self.block) // SAMPLES_PER_FRAME), self.ended and waiting <= self.block

    def advance(self) -> None:
        """That block has been cut; only its look-back and what waits are kept."""
        self.at = min(self.accepted, self.at + self.block)
        self._pcm = self._pcm[self.block :].clone()
