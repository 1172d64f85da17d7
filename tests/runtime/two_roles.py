"""A second model, unlike the first in every number: two roles, 16 frames a second, a shorter first block, no block that waits."""

from __future__ import annotations

import time
from typing import Any

import torch

from everface.runtime.messages import Block, CloseSession, OpenSession, Params, Tensors
from everface.runtime.model import BlockFormat, Role, RoleSpec, SessionModel, Window
from everface.runtime.registry import register

MODEL = "tests.runtime.two_roles:TwoRoles"
ROLES = (RoleSpec("generate", 3.0), RoleSpec("paint", 1.0, own_thread=True))

register("two-roles", MODEL)


class Generate:
    """x <- own + a share of each of the last three blocks' own, own = 0.8 x + level: re-running three blocks restores its state."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.sleep_s = float(spec.get("sleep_s", 0.0))
        self.state: dict[int, list[torch.Tensor]] = {}  # of the last three blocks

    def open(self, opening: OpenSession) -> None:
        self.state[opening.session] = []

    def run(self, block: Block) -> Block:
        time.sleep(self.sleep_s)
        past = self.state[block.session]
        own = 0.8 * block.x + block.condition["level"]
        block.x = own + sum(0.1 * x for x in past)
        self.state[block.session] = [*past[-2:], own]
        return block

    def close(self, closing: CloseSession) -> None:
        self.state.pop(closing.session, None)


class Paint:
    """Frames of 4 x 4 whose grey is the latent's: nine of block 0, twelve of any other."""

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block:
        frames = 12 if block.index else 9
        grey = (torch.tanh(block.x[:frames]) * 127 + 128).to(torch.uint8)
        block.x, block.condition = grey[:, None, None, None].expand(frames, 4, 4, 3).contiguous(), {}
        return block

    def close(self, closing: CloseSession) -> None: ...


class TwoRoles:
    """The registered model."""

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> Role:
        return {"generate": lambda: Generate(spec), "paint": Paint}[name]()


class TwoRolesSession(SessionModel):
    format = BlockFormat(frames=12, first_frames=9, samples_per_frame=1000, lookback_samples=500)

    def initial_state(self) -> tuple[Tensors, Params]:
        return {}, {}

    def prepare(self, index: int, window: Window) -> Tensors:
        return {"level": window.audio_S.mean()}

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        return torch.randn(12, generator=torch.Generator().manual_seed(index + 1000 * retry))
