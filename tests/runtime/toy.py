"""Toy roles whose state depends on all that came before, so that a lost, doubled or reordered block shows in every later frame."""

from __future__ import annotations

import time
from typing import Any

import torch

from everface.core.block import Block, Closing, Opening
from everface.runtime import plan, session, stage
from everface.runtime.pipeline import Pipeline

FACTORY = "toy:build"
LATENT = (16, 3, 4, 4)


class Toy:
    """x <- tanh(a x + b state + audio), state <- x; `sink` replaces the bias. Opening params can make one role slow or fail."""

    def __init__(self, name: str, spec: dict[str, Any]):
        self.name, self.a, self.b = name, spec["a"], spec["b"]
        self.state: dict[int, torch.Tensor] = {}
        self.bias: dict[int, torch.Tensor] = {}
        self.params: dict[str, Any] = {}

    def open(self, opening: Opening) -> None:
        self.params = opening.params
        self.state[opening.session] = torch.zeros(LATENT)
        self.bias[opening.session] = opening.tensors["picture"].clone()

    def run(self, block: Block) -> Block:
        if self.params.get("fail_role") == self.name and block.index == self.params["fail_at"]:
            print("on stdout, which is no event")
            raise ArithmeticError(f"toy trouble at block {block.index}")
        if self.params.get("slow_role") == self.name:
            time.sleep(self.params["slow_s"])
        s = block.session
        if "sink" in block.condition:
            self.bias[s] = block.condition["sink"].clone()
        drive = self.b * self.state[s] + block.condition["audio"][None, :, None, None] + self.bias[s]
        block.x = self.state[s] = torch.tanh(self.a * block.x + drive)
        return block

    def close(self, closing: Closing) -> None:
        self.state.pop(closing.session, None)
        self.bias.pop(closing.session, None)


class Decoder(Toy):
    """Twelve frames of 8 x 8 from a latent and all latents before it. Block 0 gives its clean latent back."""

    def run(self, block: Block) -> Block:
        clean = block.x[:, :1].expand(LATENT).contiguous()
        block = super().run(block)
        block.condition = {"clean": clean} if block.index == 0 else {}
        block.x = (block.x.flatten()[:768].view(1, 4, 8, 24).expand(3, 4, 8, 24).reshape(12, 8, 8, 3) * 127 + 128).to(torch.uint8)
        return block


def build(name: str, spec: dict[str, Any]) -> stage.Role:
    return (Decoder if name == plan.DECODE else Toy)(name, spec)


SPEC = {"a": 0.9, "b": 0.7}


def condition(index: int, pcm: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"audio": pcm.view(3, -1).mean(1) * (1 + index % 3)}


def noise(index: int) -> torch.Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(1000 + index))


def speech(seconds: float, seed: int = 7) -> torch.Tensor:
    return torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(seed))


def open_session(pipeline: Pipeline, number: int = 1, **options: Any) -> session.Session:
    options = {"lookback_samples": 640 * 6, "lookahead_samples": 0, "condition": condition, "noise": noise, **options}
    picture = torch.linspace(-1, 1, 768).view(LATENT)
    return session.Session(pipeline, number, {"picture": picture}, **options)


def play(s: session.Session, pcm: torch.Tensor, piece: int = 16_000) -> list[session.FrameBlock]:
    """Push all, respecting back-pressure, and collect all."""
    blocks = []
    for start in range(0, len(pcm), piece):
        while not s.push(pcm[start : start + piece]):
            blocks += s.poll()
            time.sleep(0.001)
    s.end()
    return [*blocks, *s.frames()]
