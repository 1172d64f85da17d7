"""The audio on its way from a live session to the model, and the place in the output of the frames that come of it.

A factor above 1 makes fewer frames: of every `factor` frames of audio one reaches the model, and its video frame stands for all of them. The
output goes on at its rate with the caller's own audio, so audio and video stay together whatever the factor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch

from everface.core.errors import BadInput
from everface.live.user_audio import UserAudio
from everface.runtime.session import Session

FADE = 80  # samples, 5 ms: between two pieces of audio that were not neighbors


class _Span(NamedTuple):
    """From `model` on, a position of the model's, the output is at `output` and `factor` times as fast."""

    model: int
    output: int
    factor: int


class ModelFeed:
    """Positions are samples of the output, unless they say otherwise. Raises BadInput for a session of several speakers. Not thread-safe.

    speaks(begin, end): whether the caller's own audio is between two positions; a model that listens hears nothing there.
    """

    def __init__(self, session: Session, speaks: Callable[[int, int], bool] = lambda begin, end: False) -> None:
        if session.format.audio_channels > 1 and not session.format.user_audio:
            raise BadInput("a live session has one speaker: use a session of Avatar.open for several, or leave their regions out")
        self._session, self._speaks = session, speaks
        self.user = UserAudio(session.format.sample_rate) if session.format.user_audio else None
        self._frame, self._block = session.format.samples_per_frame, session.format.samples(1)
        self._first = session.format.samples(0 if session.turn == 0 else 1)  # of the turn's first block
        self._lookahead = session.format.lookahead_samples
        self.factor = 1  # of what is pushed from the next block on
        self._begin = self.begin = session.accepted  # of the turn: a position of the model's, and of the output
        self._spans = deque([_Span(session.accepted, session.accepted, 1)])
        self._waiting_S = torch.zeros(0)
        self._tail_S = torch.zeros(0)  # what followed the last piece

    @property
    def accepted(self) -> int:
        """Behind all that the model's session has."""
        return self._place_of(self._session.accepted, self._spans[-1])

    @property
    def end(self) -> int:
        """Where audio added now would stand."""
        return self.accepted + self._waiting_S.numel()

    @property
    def complete(self) -> int:
        """Behind the last block that the session has all audio of, its look-ahead included."""
        pushed = self._session.accepted - self._begin
        ready = max(0, pushed - self._lookahead)
        return self.accepted - (pushed - ready + self._begun(ready)) * self._spans[-1].factor

    @property
    def reach(self) -> int:
        """From the beginning of the present block, or of the next one, to what must be there for it to be made."""
        return (self._present() + self._lookahead) * (self._spans[-1].factor if self._missing() else self.factor)

    @property
    def is_short(self) -> bool:
        """All is pushed, but for less than a frame."""
        factor = self._spans[-1].factor if self._missing() else self.factor
        return self._waiting_S.numel() < (factor * self._frame if factor > 1 else 1)

    def room(self) -> int:
        """Samples that may be added."""
        return self._session.room() - self._waiting_S.numel()

    def add(self, audio_S: torch.Tensor) -> None:
        self._waiting_S = torch.cat([self._waiting_S, audio_S])

    def pad(self) -> None:
        """Silence behind audio that is short, up to the end of the block, and for what the block looks ahead to, as nothing follows soon."""
        left, missing = self._waiting_S.numel(), self._missing()
        factor = self._spans[-1].factor if missing else self.factor
        wanted = missing if missing else self._present() if left else 0
        self.add(torch.zeros(max(0, (wanted + self._lookahead) * factor - left)))

    def push(self, until: int | None) -> None:
        """Give the session what it has room for, up to a position."""
        while until is None or self.accepted < until:
            missing = self._missing()
            if not missing and self._spans[-1].factor != self.factor:
                self._spans.append(_Span(self._session.accepted, self.accepted, self.factor))
                self._tail_S = torch.zeros(0)
            factor, most = self._spans[-1].factor, self._session.room()
            if factor != self.factor:
                most = min(most, missing)  # the other factor begins with a block
            size = min(self._waiting_S.numel() // factor, most)
            size -= size % self._frame if factor > 1 else 0
            if size <= 0:
                return
            part_S = self._with_user(self._waiting_S[: size * factor])
            audio_S, tail_S = (part_S, self._tail_S) if factor == 1 else _thin_out(part_S, self._tail_S, factor, self._frame)
            if not self._session.push_audio(audio_S):
                return
            self._waiting_S, self._tail_S = self._waiting_S[size * factor :], tail_S

    def place(self, pts: int) -> tuple[int, int]:
        """Where the frame at `pts`, a position of the model's, stands, and for how many frames of the output. Called with rising `pts`."""
        while len(self._spans) > 1 and self._spans[1].model <= pts:
            self._spans.popleft()
        return self._place_of(pts, self._spans[0]), self._spans[0].factor

    def restart(self) -> None:
        """The session was interrupted: nothing that waits is wanted."""
        accepted = self.begin = self.accepted
        self._begin = self._session.accepted
        self._first = self._session.format.samples(0 if self._session.turn == 0 else 1)
        self._spans = deque([_Span(self._begin, accepted, self.factor)])
        self._waiting_S = self._tail_S = torch.zeros(0)

    def _with_user(self, own_S: torch.Tensor) -> torch.Tensor:
        """[2, S] for a model that listens, else the same."""
        if self.user is None:
            return own_S
        user_S, begin = self.user.take(own_S.numel()), self.accepted
        return torch.stack([own_S, torch.zeros_like(user_S) if self._speaks(begin, begin + own_S.numel()) else user_S])

    def _missing(self) -> int:
        """Samples of the model's that the present block lacks; 0 between two blocks."""
        begun = self._begun(self._session.accepted - self._begin)
        return self._present() - begun if begun else 0

    def _begun(self, pushed: int) -> int:
        """Of so many samples of the model's in this turn, those behind the last whole block."""
        return pushed if pushed < self._first else (pushed - self._first) % self._block

    def _present(self) -> int:
        """Length of the present block, in samples of the model's."""
        return self._first if self._session.accepted - self._begin < self._first else self._block

    def _place_of(self, position: int, span: _Span) -> int:
        return span.output + (position - span.model) * span.factor


def _thin_out(audio_S: torch.Tensor, tail_S: torch.Tensor, factor: int, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of [..., S] the middle frame of every `factor` frames, each faded in from what followed the one before it. Returns that, and the tail for the
    next call. The pitch stays; speech becomes `factor` times as fast."""
    out, first = list[torch.Tensor](), (factor - 1) * frame // 2
    fade_S = torch.linspace(0.0, 1.0, FADE)
    for group_S in audio_S.split(factor * frame, dim=-1):
        piece_S = group_S[..., first : first + frame].clone()
        if tail_S.numel():
            piece_S[..., :FADE] = tail_S * (1 - fade_S) + piece_S[..., :FADE] * fade_S
        tail_S = group_S[..., first + frame : first + frame + FADE]
        out.append(piece_S)
    return torch.cat(out, dim=-1), tail_S.clone()
