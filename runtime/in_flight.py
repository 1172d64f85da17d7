"""What a session has cut, sent and not got back: enough to send it again when the stages have forgotten it.

The stages hold of a session the keys and values of its last blocks, the decoder's past, and the priming (sink, prompt) that came last.
None of it is copied off the devices. After a loss the last delivered blocks are run once more, their frames thrown away, to fill those
caches, and then what was never delivered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from everface.core.block import Block, Tensors
from everface.runtime.stage import Failure, Cancelled

HISTORY = 3  # delivered blocks to run again: with the next one they fill a KV ring of four

Noise = Callable[[int], torch.Tensor]


@dataclass(eq=False)
class Cut:
    """A block of sound, prepared, on its way to be sent."""

    index: int
    revision: int  # of the session
    pts: int
    frames: int
    last: bool
    condition: Tensors = field(default_factory=dict)
    noise: torch.Tensor | None = None  # drawn when it is first sent
    priming: Tensors | None = None  # what was in force when it was first sent
    tries: int = 0  # times that it failed
    delivered: bool = False


@dataclass(eq=False)
class Sent:
    """A block in flight."""

    cut: Cut
    revision: int  # on the wire
    carries: bool  # a priming rides with it
    opening: int  # how often the session had been opened
    stale: bool = False  # its frames are not wanted: it was interrupted, or is being sent again


class Ledger:
    """Blocks of one session in three queues: waiting, flying, history. Bounded by the session's buffer and the pipeline's depth."""

    def __init__(self) -> None:
        self.waiting: deque[Cut] = deque()
        self.flying: deque[Sent] = deque()
        self.history: deque[Cut] = deque(maxlen=HISTORY)
        self.priming: Tensors = {}  # in force for blocks that are first sent from now on; {} is the opening's own
        self.again = 0  # blocks that the last resend put back, those in flight and delivered ones
        self._original = self.priming
        self._primed: Tensors | None = self.priming  # what the stages will hold after all that is in flight; None: not known
        self.openings = 0  # times that the stages were made to forget the session
        self._epoch = 0  # on the wire: grows with interruptions and resends alike
        self._next = 0

    def next_index(self) -> int:
        """Of the next block to cut."""
        return self.waiting[-1].index + 1 if self.waiting else self._next

    def prime(self, priming: Tensors) -> None:
        self.priming = priming

    def send(self, session: int, noise: Noise) -> Block:
        """The first waiting block, which flies from now on."""
        cut = self.waiting.popleft()
        if cut.noise is None:
            cut.noise = noise(cut.index)
        if cut.priming is None:
            cut.priming = self.priming
        condition, carries = dict(cut.condition), cut.priming is not self._primed
        if carries:
            condition.update(cut.priming)
            self._primed = cut.priming
        block = Block(session, self._epoch, cut.index, cut.pts, cut.frames, cut.noise, condition, cut.last)
        self.flying.append(Sent(cut, block.revision, carries, self.openings))
        self._next = max(self._next, cut.index + 1)
        return block

    def land(self, answer: Block | Cancelled | Failure) -> Sent:
        """Whose answer it is. RuntimeError if it is out of order."""
        due = self.flying[0] if self.flying else None
        if due is None or (answer.index, answer.revision) != (due.cut.index, due.revision):
            expected = f"{due.cut.index} of {answer.session}" if due else "none"
            raise RuntimeError(f"block {answer.index} of session {answer.session} came where {expected} was due")
        return self.flying.popleft()

    def keep(self, cut: Cut) -> None:
        """It was delivered."""
        cut.delivered = True
        self.history.append(cut)

    def drop(self) -> int:
        """An interruption: nothing that waits or flies is wanted. Answers the wire's new revision."""
        self._epoch += 1
        self.waiting.clear()
        if any(sent.carries and not sent.stale for sent in self.flying):
            self._primed = None  # where its block is dropped half-way, the stages behind have not seen it
        for sent in self.flying:
            sent.stale = True
        return self._epoch

    def resend(self, failed: Sent | None = None) -> None:
        """The stages have lost the session. `failed`: the block that told so, the others in flight are still to land; else they are lost."""
        self._epoch += 1
        self.openings += 1
        flown = [*([failed] if failed else []), *self.flying]
        again = [*self.history, *(sent.cut for sent in flown if not sent.stale and not sent.cut.delivered)]
        self.again = len(again)
        self.waiting = deque([*again, *(cut for cut in self.waiting if cut not in again and not cut.delivered)])
        for sent in self.flying:
            sent.stale = True
        if failed is None:
            self.flying.clear()
        self._primed = self._original

    def clear(self) -> None:
        self.waiting.clear()
        self.history.clear()
