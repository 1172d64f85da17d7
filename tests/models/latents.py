"""A model whose decoder returns the latent itself, bit for bit, as twelve uint8 "frames"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from everface.models.live_avatar import role_factory
from everface.models.live_avatar.names import DECODE
from everface.models.live_avatar.roles import DecodeRole, StepRole
from everface.runtime.messages import Block, CloseSession, OpenSession

MODEL = "tests.models.latents:Latents"


class Bytes:
    """float32 latent [16, 3, h, w] -> uint8 [12, bytes / 12]."""

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block:
        return replace(block, x=block.x.contiguous().flatten().view(torch.uint8).reshape(12, -1))

    def close(self, closing: CloseSession) -> None: ...


class Latents:
    """The model: Live Avatar's steps, then that."""

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> StepRole | Bytes:
        role = role_factory.build_role(name, spec) if name != DECODE else Bytes()
        assert not isinstance(role, DecodeRole)
        return role
