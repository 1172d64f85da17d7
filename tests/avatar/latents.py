"""A pipeline factory whose decoder hands back the latent itself, bit for bit, as twelve uint8 "frames"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from everface.avatar import steps
from everface.runtime.messages import Block, CloseSession, OpenSession

FACTORY = "tests.avatar.latents:build"


class Bytes:
    """float32 latent [16, 3, h, w] -> uint8 [12, bytes / 12]."""

    def open(self, opening: Opening) -> None: ...

    def run(self, block: Block) -> Block:
        return replace(block, x=block.x.contiguous().flatten().view(torch.uint8).reshape(12, -1))

    def close(self, closing: Closing) -> None: ...


def build(name: str, spec: dict[str, Any]) -> steps.StepRole | Bytes:
    role = steps.build_role(name, spec) if name != "decode" else Bytes()
    assert not isinstance(role, steps.DecodeRole)
    return role
