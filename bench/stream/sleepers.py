"""Roles whose work is to sleep, so that a pipeline's own costs show whatever the machine's cores can do."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.runtime.planning.placement import DECODE

FACTORY = "bench.stream.sleepers:build"
FRAMES = torch.zeros(12, 128, 128, 3, dtype=torch.uint8)


class Sleeper:
    """Sleeps `ms` a block and hands the block on; the decoder answers frames."""

    def __init__(self, name: str, spec: dict[str, Any]):
        self.name, self.sleep_s = name, spec["ms"] / 1000

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block:
        end_s = time.perf_counter() + self.sleep_s
        time.sleep(self.sleep_s - 0.002)
        while time.perf_counter() < end_s:  # a sleep oversleeps by up to a millisecond, which is not what is measured here
            pass
        if self.name != DECODE:
            return block
        return replace(block, x=FRAMES, condition={"clean": block.x} if block.index == 0 else {})

    def close(self, closing: CloseSession) -> None: ...


def build(name: str, spec: dict[str, Any]) -> Sleeper:
    return Sleeper(name, spec)
