"""What an avatar asks of a model whose weights are opened, and which model a folder of weights holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from everface.core.config import Deployment, ModelConfig, StreamConfig
from everface.core.errors import BadInput
from everface.core.live_talk_config import LiveTalkModelConfig
from everface.core.log import log
from everface.kernels.video.causal_conv3d import cpu_dtypes
from everface.media.face import Region, can_find_faces, find_face
from everface.media.image import check_image
from everface.models import LIVE_AVATAR, LIVE_TALK
from everface.runtime.model import BlockFormat, RoleSpec, SessionModel
from everface.runtime.registry import load_model, path_of
from everface.weights.layout import detect_layout

FRAMED = 0.8  # of a square image's side: a face's square that is larger is how the image is framed already
Config = TypeVar("Config", ModelConfig, LiveTalkModelConfig)
MODELS = {"official": LIVE_AVATAR, "everface": LIVE_AVATAR, "livetalk": LIVE_TALK}  # by the kind of a layout


class OpenedModel(Generic[Config]):
    """A checkpoint opened in the process that owns the sessions."""

    name: str  # in the runtime's registry
    config: Config
    format: BlockFormat  # of every session

    def roles(self, stream: StreamConfig) -> tuple[RoleSpec, ...]:
        """Of a pipeline for such streams. Raises BadInput for a stream that the model cannot make."""
        raise NotImplementedError

    def spec(self, stream: StreamConfig) -> dict[str, Any]:
        """What `build_role` needs in whatever process, as plain data."""
        raise NotImplementedError

    def session(self, image: Path | torch.Tensor, stream: StreamConfig) -> SessionModel:
        """The model's side of a new session. `image`: a file, or float32 [3, H, W] in -1..1 of the right size."""
        raise NotImplementedError

    def fit(self, image: Path, stream: StreamConfig) -> torch.Tensor:
        """Read an image and bring it to the size of the stream: the model's own, the wanted one, or by its aspect ratio.

        Returns float32 [3, H, W] in -1..1. Raises BadInput.
        """
        raise NotImplementedError

    def cheaper(self, stream: StreamConfig) -> tuple[dict[str, Any], ...]:
        """Changes of a session, the first to full quality, each later one to less work a block: for a machine slower than real time."""
        return ({},)

    def dropped_frames(self, stream: StreamConfig) -> int:
        """First frames of a stream that a file lacks."""
        return 0

    def image_tensor(self, image: Path | str | torch.Tensor, stream: StreamConfig) -> torch.Tensor:
        """float32 [3, H, W] in -1..1 of an image file, or of such a tensor. Raises BadInput."""
        if isinstance(image, torch.Tensor):
            return check_image(image, self.stream_size(stream))
        if not isinstance(image, str | Path):
            raise BadInput(f"an image as {type(image).__name__} cannot be used: pass the path of a file, or float32 [3, H, W] in -1..1")
        return self.fit(Path(image), stream)

    def replacement(self, image: Path | str | torch.Tensor, stream: StreamConfig, size: tuple[int, ...]) -> torch.Tensor:
        """`image_tensor` of an image that a session of this (3, height, width) is to show from now on. Raises BadInput if it has another."""
        rgb_3HW = self.image_tensor(image, stream)
        if tuple(rgb_3HW.shape) != size:
            (_, height, width), given = size, "x".join(map(str, rgb_3HW.shape[:0:-1]))
            raise BadInput(f"an image of {given} cannot replace one of {width}x{height}: open a session for it")
        return rgb_3HW

    def face_region(self, image: Path, image_HW3: np.ndarray, stream: StreamConfig) -> Region | None:
        """The square of an image that is shown, where it is cut around the face. Raises Unavailable where the stream asks for that and it cannot be."""
        fixed = self.config.size is not None and self.config.size[0] == self.config.size[1] and stream.compat != "official"
        if stream.crop == "center" or (stream.crop == "auto" and not (fixed and can_find_faces())):
            return None
        region = find_face(image_HW3)
        if region is None and stream.crop == "face":
            log.warning("no face was found in %s: its middle is shown", image)
        height, width = image_HW3.shape[:2]
        framed = region is not None and height == width and region.side > FRAMED * height
        return None if framed and stream.crop == "auto" else region

    def stream_size(self, stream: StreamConfig) -> tuple[int, int] | None:
        """(height, width) that a stream must have; None if it follows the image."""
        sizes = [tuple(size) for size in (self.config.size, *self.smaller) if size]
        if sizes and stream.size and tuple(stream.size) not in sizes:
            known = " or ".join(f"{width}x{height}" for height, width in sizes)
            raise BadInput(f"these weights were trained at {known} only: leave --size out, or choose other weights")
        return stream.size or self.config.size

    @property
    def smaller(self) -> tuple[tuple[int, int], ...]:
        """Other sizes that the model was trained at, the largest first."""
        return self.config.smaller if isinstance(self.config, ModelConfig) else ()

    def live_size(self, stream: StreamConfig, deployment: Deployment) -> tuple[int, int] | None:
        """(height, width) of live video where none is asked for: a smaller one on a CPU without bfloat16, where the model has one; else None."""
        slow = torch.device(deployment.device).type == "cpu" and torch.bfloat16 not in cpu_dtypes()
        if stream.size or not (slow and self.smaller):
            return stream.size
        height, width = self.smaller[0]
        log.warning("this CPU has no bfloat16, so live video is %dx%d: --size asks for another", width, height)
        return height, width


def open_model(weights: Path, lora: Path | None, deployment: Deployment) -> OpenedModel[Any]:
    """The model that a folder of weights holds. Raises BadWeights."""
    model: Any = load_model(path_of(MODELS[detect_layout(weights).kind]))
    return model(weights, lora, deployment)
