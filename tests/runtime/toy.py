"""Toy roles whose state depends on all that came before, so that a lost, doubled or reordered block shows in every later frame."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

import torch

from everface.runtime.messages import Block, CloseSession, OpenSession
from everface.core.errors import Unavailable
from everface.runtime import desk, plan, session, stage
from everface.runtime.pipeline import Pipeline

FACTORY = "toy:build"
LATENT = (16, 3, 4, 4)
DESKS: WeakKeyDictionary[Pipeline, desk.Desk] = WeakKeyDictionary()


class Toy:
    """x <- tanh(a x + b state + audio), state <- x; `sink` replaces the bias. OpenSession params can make one role slow or fail."""

    def __init__(self, name: str, spec: dict[str, Any]):
        self.name, self.a, self.b, self.sleep_s = name, spec["a"], spec["b"], spec.get("sleep_s", 0.0)
        self.state: dict[int, torch.Tensor] = {}
        self.bias: dict[int, torch.Tensor] = {}
        self.params: dict[int, dict[str, Any]] = {}
        self.done: set[tuple[int, str]] = set()  # faults that have happened, so that they happen once

    def open(self, opening: OpenSession) -> None:
        if opening.params.get("refuse_role") == self.name:
            raise Unavailable("toy memory is short")
        self.params[opening.session] = opening.params
        self.state[opening.session] = torch.zeros(LATENT)
        self.bias[opening.session] = opening.tensors["picture"].clone()

    def run(self, block: Block) -> Block:
        s = block.session
        params = self.params[s]
        fault = str(params.get("fault", "")) if params.get("fail_role") == self.name and block.index == params["fail_at"] else ""
        if params.get("once", True) and (s, fault) in self.done:
            fault = ""
        self.done.add((s, fault))
        if fault == "throw":
            raise ArithmeticError(f"toy trouble at block {block.index}")
        if fault == "memory":
            torch.empty(1 << 60, dtype=torch.uint8)
        if params.get("slow_role") == self.name:
            time.sleep(params["slow_s"])
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if "sink" in block.condition:
            self.bias[s] = block.condition["sink"].clone()
        drive = self.b * self.state[s] + block.condition["audio"][None, :, None, None] + self.bias[s]
        block.x = self.state[s] = torch.tanh(self.a * block.x + drive)
        if fault == "nan":
            block.x = block.x * float("nan")
        finite = torch.isfinite(block.x).all().to(torch.uint8).reshape(1)
        block.condition = {**block.condition, "finite": torch.cat([block.condition.get("finite", finite[:0]), finite])}
        return block

    def close(self, closing: CloseSession) -> None:
        self.state.pop(closing.session, None)
        self.bias.pop(closing.session, None)
        self.params.pop(closing.session, None)


class Decoder(Toy):
    """Twelve frames of 8 x 8 from a latent and all latents before it. Block 0 gives its clean latent back."""

    def run(self, block: Block) -> Block:
        clean = block.x[:, :1].expand(LATENT).contiguous()
        block = super().run(block)
        block.condition = {"finite": block.condition["finite"], **({"clean": clean} if block.index == 0 else {})}
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


def open_session(pipeline: Pipeline, **options: Any) -> session.Session:
    """On a desk without a thread, one for each pipeline: the caller's polls do the work."""
    if pipeline not in DESKS:
        DESKS[pipeline] = desk.Desk(pipeline, threaded=False)
    return open_at(DESKS[pipeline], **options).wait_open()


def open_at(at: desk.Desk, **options: Any) -> session.Session:
    options = {"lookback_samples": 640 * 6, "lookahead_samples": 0, "condition": condition, "noise": noise, **options}
    picture = torch.linspace(-1, 1, 768).view(LATENT)
    return session.Session(at, {"picture": picture}, **options)


def play(s: session.Session, pcm: torch.Tensor, piece: int = 16_000) -> list[session.FrameBlock]:
    """Push all, respecting back-pressure, and collect all."""
    blocks = []
    for start in range(0, len(pcm), piece):
        while not s.push(pcm[start : start + piece]):
            blocks += s.poll()
            time.sleep(0.001)
    s.end()
    return [*blocks, *s.frames()]
