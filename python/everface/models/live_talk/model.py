"""LiveTalk as the runtime sees it: its roles, and one session's conditions and noise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.live_talk_config import LiveTalkModelConfig
from everface.core.log import log
from everface.media.crop import plan_cover, target_size
from everface.media.face import cut_out
from everface.media.image import crop_image, fit_image, read_image
from everface.models import LIVE_AVATAR, LIVE_TALK
from everface.models.live_avatar.names import not_finite
from everface.models.live_talk import roles
from everface.models.live_talk.builders import build_conditioner
from everface.models.live_talk.conditions import block_noise
from everface.models.live_talk.names import ROLES, block_format
from everface.models.live_talk.roles import DenoiseRole, StreamDecodeRole
from everface.models.opened import OpenedModel
from everface.runtime.messages import Params, Tensors
from everface.runtime.model import BlockFormat, RoleSpec, SessionModel, Window


class LiveTalk(OpenedModel[LiveTalkModelConfig]):
    """A checkpoint opened in the process that owns the sessions: image, audio and prompt encoders. The roles build their own parts.

    Raises BadWeights.
    """

    name = LIVE_TALK

    def __init__(self, weights: Path, lora: Path | None, deployment: Deployment) -> None:
        if deployment.kv_keep < 1:
            raise BadInput(f"a share of the keys can be kept with {LIVE_AVATAR} only: leave kv_keep out for {LIVE_TALK}")
        self.weights, self.deployment = weights, deployment
        self.conditioner = build_conditioner(weights, lora, deployment)
        self.config = self.conditioner.config
        self.format = block_format(self.config.dit)

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> DenoiseRole | StreamDecodeRole:
        return roles.build_role(name, spec)

    def roles(self, stream: StreamConfig) -> tuple[RoleSpec, ...]:
        if stream.speakers:
            raise BadInput(f"several speakers are possible with {LIVE_AVATAR} only: leave their regions out for {LIVE_TALK}")
        if stream.sampler != "official":
            raise BadInput(f"{self.config.name} was distilled for its own four steps: leave the sampler {stream.sampler} out")
        return ROLES

    def spec(self, stream: StreamConfig) -> dict[str, Any]:
        return {"weights": str(self.weights), "deployment": asdict(self.deployment)}

    def fit(self, image: Path, stream: StreamConfig) -> torch.Tensor:
        image_HW3, size = read_image(image), self.stream_size(stream)
        if (region := self.face_region(image, image_HW3, stream)) is not None:
            image_HW3 = cut_out(image_HW3, region)
        height, width = image_HW3.shape[:2]
        size = size or target_size(height, width, stream.area)
        return crop_image(image_HW3, size, plan_cover(height, width, size)) if stream.compat == "official" else fit_image(image_HW3, size)

    def session(self, image: Path | torch.Tensor, stream: StreamConfig) -> LiveTalkSession:
        self.roles(stream)  # whether sampler and speakers are possible
        if stream.prompt and self.config.text.kind == "none":
            log.warning("these weights were trained without text: the prompt has no effect")
        return LiveTalkSession(self, image, stream)


class LiveTalkSession(SessionModel):
    """No block waits for another, and nothing comes back but frames."""

    format: BlockFormat

    def __init__(self, model: LiveTalk, image: Path | torch.Tensor, stream: StreamConfig) -> None:
        self._model, self._stream, self.format = model, stream, model.format
        rgb_3HW, cfg, (_, rows, columns) = model.image_tensor(image, stream), model.config.dit, model.config.vae.stride
        self._size = tuple(rgb_3HW.shape)
        self._shape = (cfg.out_dim, cfg.block_frames, self._size[1] // rows, self._size[2] // columns)
        conditioner = model.conditioner
        self._tensors: Tensors = {**conditioner.image_state(rgb_3HW), **conditioner.text_state(stream.prompt)}

    def initial_state(self) -> tuple[Tensors, Params]:
        return self._tensors, {}

    def prepare(self, index: int, window: Window) -> Tensors:
        frames = self.format.samples(index) // self.format.samples_per_frame
        return self._model.conditioner.block(window.audio_S, frames)

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        return block_noise(self._stream.seed, index, retry, self._shape)

    def invalid(self, outputs: Tensors) -> str | None:
        return not_finite(outputs)

    def change(self, *, image: Path | torch.Tensor | None = None, prompt: str | None = None) -> Tensors:
        """Show another image, of the session's size, or follow another prompt. With another image the model's stream begins again: its first
        0.25 s are the image at rest."""
        update: Tensors = {}
        if image is not None:
            rgb_3HW = self._model.replacement(image, self._stream, self._size)
            update |= self._model.conditioner.image_state(rgb_3HW)
        if prompt is not None:
            update |= self._model.conditioner.text_state(prompt)
        if not update:
            raise BadInput("nothing is to be changed: pass an image or a prompt")
        return update
