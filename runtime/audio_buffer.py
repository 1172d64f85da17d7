"""A session's audio, cut into windows of whole blocks. Windows depend on the samples alone, never on the pieces they came in."""

from __future__ import annotations

from collections import deque

import torch

from everface.runtime.model import BlockFormat, Window


class AudioBuffer:
    """Samples that wait, with the look-back of the next block before them. Positions count the samples accepted since the session opened.

    Not thread-safe: the session's lock guards it.
    """

    def __init__(self, format: BlockFormat):
        self.format = format
        self.accepted = 0
        self.begin = 0  # first sample of the turn
        self.at = 0  # first sample of the next block
        self.ended = False  # the segment is complete
        self._cuts: deque[int] = deque()  # where a block must begin, although the one before it is not over
        self._audio_S = self._silence()  # from at - lookback to accepted

    def add(self, audio_S: torch.Tensor) -> None:
        joined_S, accepted = torch.cat([self._audio_S, audio_S.detach().cpu()], dim=-1), self.accepted + audio_S.shape[-1]
        self._audio_S, self.accepted = joined_S, accepted  # no call between the two, so that Ctrl-C cannot come between them

    def restart(self) -> None:
        """Begin a new turn: its first windows have silence before them."""
        self.begin = self.at = self.accepted
        self._audio_S = self._silence()
        self.ended = False
        self._cuts.clear()

    def cut(self) -> int:
        """A block begins at the frame that the next sample falls into. Returns that position."""
        self._cuts.append(self.accepted - (self.accepted - self.begin) % self.format.samples_per_frame)
        return self._cuts[-1]

    def take_window(self, index: int, turn: int) -> Window | None:
        """Cut the next block, number `index`; None while its audio is not complete. The frames behind a cut are not to be kept of it."""
        fmt, waiting = self.format, self.accepted - self.at
        block = fmt.samples(index)
        if waiting <= 0 or (waiting < block + fmt.lookahead_samples and not self.ended):
            return None
        length = fmt.lookback_samples + block + fmt.lookahead_samples
        audio_S = self._audio_S[..., :length]
        audio_S = torch.nn.functional.pad(audio_S, (0, length - audio_S.shape[-1]))
        while self._cuts and self._cuts[0] <= self.at:
            self._cuts.popleft()
        kept = min(block, self._cuts[0] - self.at) if self._cuts else block
        frames, last = -(-min(waiting, kept) // fmt.samples_per_frame), self.ended and waiting <= kept
        window = Window(audio_S, self.at, frames, last, turn)
        self.at = min(self.accepted, self.at + kept)
        self._audio_S = self._audio_S[..., kept:].clone()
        return window

    def _silence(self) -> torch.Tensor:
        """The look-back of a turn's first block."""
        channels, lookback = self.format.audio_channels, self.format.lookback_samples
        return torch.zeros(lookback) if channels == 1 else torch.zeros(channels, lookback)
