"""A toy model that listens, and whose image can be changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tests.runtime import toy

from everface.core.errors import BadInput
from everface.runtime.messages import Tensors
from everface.runtime.model import Window


class Listener(toy.ToySession):
    """Another image is another bias; a name with "odd" in it has a remark, one with "no" in it is refused. What it hears moves the face too."""

    def __init__(self, image: str) -> None:
        super().__init__()
        self.format = replace(self.format, audio_channels=2, user_audio=True)
        self.remark = remark_on(image)

    def prepare(self, index: int, window: Window) -> Tensors:
        return self.condition(index, window.audio_S.sum(0))

    def change(self, *, image: Path | None = None, prompt: str | None = None) -> Tensors:  # type: ignore[override]  # each session has keywords of its own
        if image is not None and "no" in image.name:
            raise BadInput(f"{image} is no image: name another")
        self.remark = "" if image is None else remark_on(image.name)
        return super().change(bias=torch.full(toy.LATENT, 0.5 if prompt is None else -0.5))


def remark_on(image: str) -> str:
    return f"{image} is odd" if "odd" in image else ""
