"""A model whose roles sleep, so that a pipeline's own costs show whatever the machine's cores can do."""

from __future__ import annotations

import time
from typing import Any

import torch

from everface.runtime.messages import Block, CloseSession, OpenSession, Params, Tensors
from everface.runtime.model import BlockFormat, RoleSpec, SessionModel, Window

MODEL = "bench.stream.sleepers:Sleepers"
ROLES = tuple(RoleSpec(f"role{i}") for i in range(5))
SIZE = (128, 128)


class Sleeper:
    """Sleeps `ms` a block and passes the block on; the last role returns frames of `size`, height and width."""

    def __init__(self, name: str, spec: dict[str, Any]):
        self.last, self.sleep_s = name == ROLES[-1].name, spec["ms"] / 1000
        self.frames = torch.zeros(12, *spec.get("size", SIZE), 3, dtype=torch.uint8)

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block:
        end_s = time.perf_counter() + self.sleep_s
        time.sleep(max(0.0, self.sleep_s - 0.002))
        while time.perf_counter() < end_s:  # a sleep oversleeps by up to a millisecond, which is not what is measured here
            pass
        if self.last:
            block.x = self.frames
        return block

    def close(self, closing: CloseSession) -> None: ...


class Sleepers:
    """The model."""

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> Sleeper:
        return Sleeper(name, spec)


class SleepSession(SessionModel):
    """Blocks of the size that the bundled model's have, with no conditions."""

    format = BlockFormat()

    def initial_state(self) -> tuple[Tensors, Params]:
        return {}, {}

    def prepare(self, index: int, window: Window) -> Tensors:
        return {}

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        return torch.zeros(16, 3, 16, 16)
