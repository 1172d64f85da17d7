"""A toy model whose state depends on all that came before, so that a lost, doubled or reordered block shows in every later frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from everface.core.errors import Unavailable
from everface.runtime.messages import Block, CloseSession, OpenSession, Params, Tensors
from everface.runtime.model import BlockFormat, Role, RoleSpec, SessionModel, Window
from everface.runtime.pipeline import Pipeline
from everface.runtime.registry import register
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session, VideoBlock

MODEL = "tests.runtime.toy:Toy"
LAST = "decode"
LATENT = (16, 3, 4, 4)
SPEC = {"a": 0.9, "b": 0.7}
REFRESH_AT = 4  # the block that carries what block 0 brought back
SCHEDULERS: WeakKeyDictionary[Pipeline, Scheduler] = WeakKeyDictionary()

register("toy", MODEL)


def roles_of(steps: int) -> tuple[RoleSpec, ...]:
    return (*(RoleSpec(f"step{i}") for i in range(steps)), RoleSpec(LAST, 0.6, own_thread=True))


class ToyRole:
    """x <- tanh(a x + b state + audio), state <- x; `bias` in a condition replaces the bias. Params can make a role slow or fail."""

    def __init__(self, name: str, spec: dict[str, Any]):
        self.name, self.a, self.b, self.sleep_s = name, spec["a"], spec["b"], spec.get("sleep_s", 0.0)
        if Path(str(spec.get("lost", ""))).is_file():  # the file that says so
            raise torch.AcceleratorError("CUDA error: no device is there")
        self.state: dict[int, torch.Tensor] = {}
        self.bias: dict[int, torch.Tensor] = {}
        self.params: dict[int, Params] = {}
        self.done: set[tuple[int, str]] = set()  # faults that have happened, so that they happen once

    def open(self, opening: OpenSession) -> None:
        if opening.params.get("refuse_role") == self.name:
            raise torch.OutOfMemoryError("toy memory is short") if opening.params.get("refuse_how") == "memory" else Unavailable("toy memory is short")
        self.params[opening.session] = opening.params
        self.state[opening.session] = torch.zeros(LATENT)
        self.bias[opening.session] = opening.tensors["bias"].clone()

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
            raise torch.OutOfMemoryError("toy memory is full")
        if fault == "device":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if params.get("slow_role") == self.name:
            time.sleep(float(params["slow_s"]))
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if "bias" in block.condition:
            self.bias[s] = block.condition["bias"].clone()
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


class ToyDecoder(ToyRole):
    """Twelve frames of 8 x 8 from a latent and all latents before it. Block 0 brings its latent back."""

    def run(self, block: Block) -> Block:
        latent = block.x[:, :1].expand(LATENT).contiguous()
        block = super().run(block)
        block.condition = {"finite": block.condition["finite"], **({"latent": latent} if block.index == 0 else {})}
        block.x = (block.x.flatten()[:768].view(1, 4, 8, 24).expand(3, 4, 8, 24).reshape(12, 8, 8, 3) * 127 + 128).to(torch.uint8)
        return block

    def run_parts(self, block: Block) -> Iterator[Block]:
        """Four frames each. The fault "between" is an error behind the first."""
        s, params = block.session, self.params[block.session]
        between = params.get("fault") == "between" and params["fail_at"] == block.index and (s, "between") not in self.done
        block = self.run(block)
        for first in (0, 4, 8):
            if first and between:
                raise ArithmeticError("toy trouble between two parts")
            yield replace(block, x=block.x[first : first + 4], first=first)


class Toy:
    """The registered model."""

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> Role:
        return (ToyDecoder if name == LAST else ToyRole)(name, spec)


def condition(index: int, audio_S: torch.Tensor) -> Tensors:
    return {"audio": audio_S.view(3, -1).mean(1) * (1 + index % 3)}


def noise(index: int) -> torch.Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(1000 + index))


class ToySession(SessionModel):
    """Block 0 brings a latent back, which block `refresh_at` carries as the new bias."""

    def __init__(
        self,
        *,
        lookback_samples: int = 640 * 6,
        lookahead_samples: int = 0,
        condition: Callable[[int, torch.Tensor], Tensors] = condition,
        params: Params | None = None,
        refresh_at: int | None = REFRESH_AT,
    ):
        self.format = BlockFormat(lookback_samples=lookback_samples, lookahead_samples=lookahead_samples)
        self.condition, self.params, self.refresh_at = condition, params or {}, refresh_at
        self.latent0: torch.Tensor | None = None
        self.interruptions: list[int] = []

    def initial_state(self) -> tuple[Tensors, Params]:
        return {"bias": torch.linspace(-1, 1, 768).view(LATENT)}, self.params

    def prepare(self, index: int, window: Window) -> Tensors:
        return self.condition(index, window.audio_S)

    def interrupt(self, wanted: int) -> None:
        self.interruptions.append(wanted)

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        return noise(index + 5000 * retry)

    def depends_on(self, index: int) -> int | None:
        return 0 if self.refresh_at is not None and index >= self.refresh_at and self.latent0 is None else None

    def update(self, index: int) -> Tensors | None:
        if self.refresh_at is None or index < self.refresh_at:
            return None
        self.refresh_at = None
        return None if self.latent0 is None else {"bias": self.latent0}

    def result(self, index: int, outputs: Tensors) -> None:
        if index == 0 and self.refresh_at is not None and self.latent0 is None:
            if "latent" not in outputs:
                raise RuntimeError("block 0 came back without its latent")
            self.latent0 = outputs["latent"].clone()

    def invalid(self, outputs: Tensors) -> str | None:
        finite = outputs.get("finite")
        return None if finite is None or bool(finite.all()) else f"role {int((finite == 0).nonzero()[0])} returned values"

    def change(self, *, bias: torch.Tensor) -> Tensors:
        self.refresh_at = None
        return {"bias": bias}


def speech(seconds: float, seed: int = 7) -> torch.Tensor:
    return torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(seed))


def scheduler_of(pipeline: Pipeline) -> Scheduler:
    """One without threads for each pipeline: `push`, `poll`, `frames` and `play` here do the work."""
    if pipeline not in SCHEDULERS:
        SCHEDULERS[pipeline] = Scheduler(pipeline, threaded=False)
    return SCHEDULERS[pipeline]


def open_session(pipeline: Pipeline, **options: Any) -> Session:
    scheduler = scheduler_of(pipeline)
    s = open_at(scheduler, **options)
    while s.state == "opening" and not s.failed:
        step(scheduler)
    return s.wait_open()


def open_at(scheduler: Scheduler, buffer_s: float = 10.0, parts: bool = False, **options: Any) -> Session:
    return scheduler.open_session(ToySession(**options), buffer_s, parts=parts)


def _driver(s: Session) -> Scheduler | None:
    """The scheduler to run for this session, if it has no thread of its own."""
    return next((x for x in SCHEDULERS.values() if any(y.session is s for y in x._sessions.values())), None)


def step(scheduler: Scheduler) -> None:
    scheduler.run_once()
    scheduler.pipeline.signal.wait(0.001)


def push(s: Session, audio_S: torch.Tensor | np.ndarray) -> bool:
    accepted = s.push_audio(audio_S)
    if scheduler := _driver(s):
        scheduler.dispatch()
    return accepted


def poll(s: Session) -> list[VideoBlock]:
    scheduler = _driver(s)
    if scheduler:
        scheduler.run_once()
    blocks = s.poll()
    if scheduler and blocks:
        scheduler.dispatch()
    return blocks


def frames(s: Session) -> list[VideoBlock]:
    """All blocks until the segment's end."""
    scheduler, blocks = _driver(s), []
    if scheduler is None:
        return list(s.frames())
    while not s.finished:
        step(scheduler)
        blocks += s.poll()
    return blocks


def play(s: Session, audio_S: torch.Tensor, piece: int = 16_000) -> list[VideoBlock]:
    """Push all, respecting back-pressure, and collect all."""
    blocks = []
    for start in range(0, len(audio_S), piece):
        while not push(s, audio_S[start : start + piece]):
            blocks += poll(s)
            time.sleep(0.001)
    s.end_segment()
    return [*blocks, *frames(s)]
