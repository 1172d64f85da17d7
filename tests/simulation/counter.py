"""A model that does no arithmetic: it carries the number of a block's audio along, fails when told to, and checks the order."""

from __future__ import annotations

import torch

from everface.core.config import SAMPLES_PER_FRAME
from everface.runtime.messages import Block, CloseSession, OpenSession, Params, Tensors
from everface.runtime.model import BlockFormat, SessionModel, Window

BLOCK = 12 * SAMPLES_PER_FRAME
INVALID, LATENT = torch.zeros(1, dtype=torch.uint8), torch.zeros(1)
FRAMES = [torch.full((12, 1), n, dtype=torch.uint8) for n in range(256)]  # as a decoder returns them, of one pixel a frame
AUDIO = [torch.full((BLOCK,), n / 256) for n in range(256)]
ROLES = ("step0", "step1", "step2", "step3", "decode")


class Violation(AssertionError):
    """An invariant that does not hold."""


class CounterRole:
    """`faults`: (session, block, role) -> "throw" or "invalid", once each."""

    def __init__(self, name: str, faults: dict[tuple[int, int, str], str]):
        self.name, self.faults = name, faults
        self.last: dict[int, int] = {}

    def open(self, opening: OpenSession) -> None:
        if opening.session in self.last:
            raise Violation(f"{self.name}: session {opening.session} opened twice")
        self.last[opening.session] = -1

    def run(self, block: Block) -> Block:
        if block.index <= self.last[block.session]:
            raise Violation(f"{self.name}: block {block.index} came after {self.last[block.session]}")
        self.last[block.session] = block.index
        fault = self.faults.pop((block.session, block.index, self.name), "")
        if fault == "throw":
            raise ArithmeticError("trouble")
        if fault == "invalid":
            block.condition = {**block.condition, "valid": INVALID}
        if self.name == ROLES[-1]:
            block.x = FRAMES[int(256 * block.condition["audio"])]
        return block

    def close(self, closing: CloseSession) -> None:
        self.last.pop(closing.session, None)


class CounterSession(SessionModel):
    """Block 4 waits for the result of block 0, as Live Avatar's does."""

    format = BlockFormat()

    def __init__(self) -> None:
        self.first_came = False

    def initial_state(self) -> tuple[Tensors, Params]:
        return {}, {}

    def prepare(self, index: int, window: Window) -> Tensors:
        return {"audio": window.audio_S[0]}

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        return LATENT

    def depends_on(self, index: int) -> int | None:
        return 0 if index >= 4 and not self.first_came else None

    def update(self, index: int) -> Tensors | None:
        return {"state": LATENT} if index == 4 else None

    def result(self, index: int, outputs: Tensors) -> None:
        self.first_came |= index == 0

    def invalid(self, outputs: Tensors) -> str | None:
        return "a role returned an invalid result" if "valid" in outputs else None

    def change(self) -> Tensors:
        return {"state": LATENT}
