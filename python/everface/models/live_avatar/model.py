"""Live Avatar as the runtime sees it: its roles, and one session's conditions, noise and attention sink."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from everface.core.config import Deployment, ModelConfig, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.media.crop import target_size
from everface.media.face import cut_out
from everface.media.image import fit_image, read_image
from everface.models import LIVE_AVATAR
from everface.models.live_avatar import role_factory
from everface.models.live_avatar.block_conditions import BlockConditions
from everface.models.live_avatar.builders import build_conditioner, kept_keys
from everface.models.live_avatar.conditions import Conditioner, Noise
from everface.models.live_avatar.names import DISSOLVE, FORWARDS, IMAGE, SHOT, SINK, SPEAKERS, SURROUND, role_specs, shot_tensor
from everface.models.live_avatar.roles import DecodeRole, StepRole
from everface.models.live_avatar.sink import SinkSession
from everface.models.opened import OpenedModel
from everface.networks.transformer.speakers import token_masks
from everface.runtime.messages import Params, Tensors
from everface.runtime.model import BlockFormat, RoleSpec, Window

DROPPED_FRAMES = 3
CUT = "cut"
TRANSITIONS = {CUT: 0, "dissolve": 8}  # frames that a cut takes


class LiveAvatar(OpenedModel[ModelConfig]):
    """A checkpoint opened in the process that owns the sessions: image, audio and prompt encoders. The roles build their own parts.

    Raises BadWeights.
    """

    name = LIVE_AVATAR

    def __init__(self, weights: Path, lora: Path | None, deployment: Deployment) -> None:
        self.weights, self.lora, self.deployment = weights, lora, deployment
        self.conditioner = build_conditioner(weights, lora, deployment)
        self.config = self.conditioner.config
        kept_keys(weights, self.config.dit, deployment)  # a missing profile is refused here, not in a worker process
        self.format = block_format(self.conditioner)

    @staticmethod
    def build_role(name: str, spec: dict[str, Any]) -> StepRole | DecodeRole:
        return role_factory.build_role(name, spec)

    def roles(self, stream: StreamConfig) -> tuple[RoleSpec, ...]:
        return role_specs(stream.steps)

    def spec(self, stream: StreamConfig) -> dict[str, Any]:
        lora = str(self.lora) if self.lora else None
        return {"weights": str(self.weights), "lora": lora, "sampler": stream.sampler, "deployment": asdict(self.deployment)}

    def fit(self, image: Path, stream: StreamConfig) -> torch.Tensor:
        image_HW3 = read_image(image)
        size, region = self.stream_size(stream), self.face_region(image, image_HW3, stream)
        if region is not None:
            image_HW3 = cut_out(image_HW3, region)
        height, width = image_HW3.shape[:2]
        return fit_image(image_HW3, size or target_size(height, width, stream.area), stream.compat)

    def session(self, image: Path | torch.Tensor, stream: StreamConfig) -> LiveAvatarSession:
        if stream.prompt and self.config.text.kind == "none":
            log.warning("these weights were trained without text: the prompt has no effect")
        return LiveAvatarSession(self, image, stream)

    def cheaper(self, stream: StreamConfig) -> tuple[dict[str, Any], ...]:
        return ({"sampler": "official"}, {"sampler": "skip-null"}) if stream.sampler == "official" else ({},)

    def dropped_frames(self, stream: StreamConfig) -> int:
        """Upstream's files lack the first three."""
        return DROPPED_FRAMES if stream.compat == "official" else 0


class LiveAvatarSession(SinkSession):
    """After the first clip the first generated latent replaces the reference image as the attention sink: block 0 brings it back,
    block `refresh_at` carries it, and is not sent before it is there, so that every placement computes the same bits."""

    def __init__(self, model: LiveAvatar, image: Path | torch.Tensor, stream: StreamConfig) -> None:
        conditioner, dit, config = model.conditioner, model.config.dit, model.config
        self._model, self._stream = model, stream
        rgb_3HW = model.image_tensor(image, stream)
        self._tensors = conditioner.initial_state(rgb_3HW, stream)
        if stream.speakers:
            grid = rgb_3HW.shape[-2] // config.vae.stride[1] // dit.patch_size[1], rgb_3HW.shape[-1] // config.vae.stride[2] // dit.patch_size[2]
            self._tensors[SPEAKERS] = token_masks(stream.speakers, grid)
        self.remark = conditioner.remark(rgb_3HW, whole_reference(self._tensors))
        windowed = conditioner.windowed(stream.audio_window_s)
        self._size = tuple(rgb_3HW.shape)
        rows, columns = self._tensors["reference"].shape[-2:]
        self._latent = dit.in_dim, rows, columns
        correlation = 0.0 if stream.compat == "official" else config.noise_correlation
        self._noise = Noise(stream.seed, self._latent, dit.block_frames, dit.window_blocks, correlation)
        self._shot = 0  # the number of cuts
        self._shown = shown(self._tensors)  # the image of the last change or cut
        super().__init__(refresh_after(config, stream), self._tensors["reference"])
        self.format = block_format(windowed, len(stream.speakers))
        regions_Ahw = token_masks(stream.speakers, self._latent[1:]).view(-1, *self._latent[1:]) if stream.speakers else None
        self._conditions = BlockConditions(windowed, self.format, stream.compat, stream.seed, regions_Ahw)

    def initial_state(self) -> tuple[Tensors, Params]:
        return self._tensors, {"seed": self._stream.seed, "rope_fp16": self._stream.compat == "official"}

    def prepare(self, index: int, window: Window) -> Tensors:
        return self._conditions.prepare(index, window)

    def interrupt(self, wanted: int) -> None:
        self._conditions.interrupt(wanted)

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        if retry:  # other noise
            shape = (self._latent[0], self._model.config.dit.block_frames, *self._latent[1:])
            return torch.randn(shape, generator=torch.Generator().manual_seed(index))
        return self._noise(index)

    def change(self, *, image: Path | torch.Tensor | None = None, prompt: str | None = None, sampler: str | None = None) -> Tensors:
        """Show another image, of the session's size, follow another prompt, or use another sampler, with as many forwards as the pipeline has
        steps or fewer."""
        update: Tensors = {}
        if image is not None:
            update = self._image_update(image)
        if prompt is not None:
            update["text"] = self._model.conditioner.prompter.features(prompt)
        if sampler is not None:
            forwards = replace(self._stream, sampler=sampler).steps
            if forwards > self._stream.steps:
                raise BadInput(f"the sampler {sampler} has more forwards than this session's {self._stream.sampler}: open another session")
            update[FORWARDS] = torch.zeros(forwards, dtype=torch.uint8)
        if not update:
            raise BadInput("nothing is to be changed: pass an image, a prompt or a sampler")
        return update

    def cut(self, *, image: Path | torch.Tensor | None = None, prompt: str | None = None, transition: str = CUT) -> Tensors:
        """A new shot with another image, of the session's size, or prompt, or with those that there are. transition: "cut" or "dissolve"."""
        if transition not in TRANSITIONS:
            raise BadInput(f"a transition {transition!r} is not known: choose one of {', '.join(TRANSITIONS)}")
        update = {name: tensor.clone() for name, tensor in self._shown.items()} if image is None else self._image_update(image)  # a clone is sent again
        if prompt is not None:
            update["text"] = self._model.conditioner.prompter.features(prompt)
        self._shot += 1
        return {**update, SHOT: shot_tensor(self._shot), DISSOLVE: torch.zeros(1 + TRANSITIONS[transition], dtype=torch.uint8)}

    def _image_update(self, image: Path | torch.Tensor) -> Tensors:
        rgb_3HW = self._model.replacement(image, self._stream, self._size)
        state = self._model.conditioner.image_state(rgb_3HW, whole=bool(self._stream.speakers))
        self.remark = self._model.conditioner.remark(rgb_3HW, whole_reference(state))
        self._shown = shown(state)
        return dict(self._shown)


def refresh_after(config: ModelConfig, stream: StreamConfig) -> int | None:
    """The block of a shot that brings a new attention sink, if one does. Where heads are still, nothing is a better reference than the image."""
    return config.dit.window_blocks if stream.refresh_sink and not config.motion else None


def shown(state: Tensors) -> Tensors:
    """What `image_state` tells of an image, as conditions of a block."""
    return {SINK: state["reference"], "motion": state["motion"]} | {name: state[name] for name in (IMAGE, SURROUND) if name in state}


def whole_reference(state: Tensors) -> torch.Tensor:
    """The image's latent [C, 1, h, w], of the whole of it."""
    return state[SURROUND][:, :1] if SURROUND in state else state["reference"]


def block_format(conditioner: Conditioner, speakers: int = 0) -> BlockFormat:
    """`speakers`: 0 is one without a region."""
    listens = conditioner.config.audio.listens and not speakers
    return BlockFormat(
        frames=conditioner.block_frames,
        audio_channels=2 if listens else max(1, speakers),
        user_audio=listens,
        lookback_samples=conditioner.lookback_samples,
        lookahead_samples=conditioner.lookahead_samples,
        history=conditioner.config.dit.window_blocks - 1,  # with the next block they fill a KV ring
    )
