"""A model that was trained at several sizes: which a stream may ask for, and which live video on a slow CPU gets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.small_model import SMALL, write_model

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, ModelConfig, StreamConfig
from everface.core.errors import BadInput, BadWeights
from everface.live.events import VideoFrame
from everface.models import opened
from everface.models.opened import open_model

SIZES = replace(SMALL, size=(128, 128), smaller=((64, 64),))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sizes"), SIZES)


def test_any_of_its_sizes_may_be_asked_for(weights: Path) -> None:
    model = open_model(weights, None, Deployment())
    assert model.stream_size(StreamConfig()) == (128, 128) and model.stream_size(StreamConfig(size=(64, 64))) == (64, 64)
    with pytest.raises(BadInput, match="trained at 128x128 or 64x64 only"):
        model.stream_size(StreamConfig(size=(192, 192)))


@pytest.mark.parametrize(("types", "side"), [({torch.float32}, 64), ({torch.float32, torch.bfloat16}, 128)])
def test_live_video_on_a_cpu_without_bfloat16_is_smaller(
    types: set[torch.dtype], side: int, weights: Path, face: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opened, "cpu_dtypes", lambda: types)
    with Avatar(weights) as avatar, avatar.open_live(face) as session:
        frame = next(event for event in session if isinstance(event, VideoFrame))
        assert avatar.live_size() == (side, side) and avatar.live_size(StreamConfig(size=(128, 128))) == (128, 128)
    assert frame.image_HW3.shape == (side, side, 3) and ("live video is 64x64" in caplog.text) == (side == 64)
    with Avatar(weights) as avatar, avatar.open_live(face, StreamConfig(size=(128, 128))) as session:
        assert next(event for event in session if isinstance(event, VideoFrame)).image_HW3.shape == (128, 128, 3)


def test_sizes_of_a_configuration_are_checked() -> None:
    assert ModelConfig.from_dict(SIZES.to_dict()).smaller == ((64, 64),)
    for wrong in ([[60, 64]], [64, 64], [[64]], "64x64", [[64, 64]] * 100_000):
        with pytest.raises(BadWeights):
            ModelConfig.from_dict(SIZES.to_dict() | {"smaller": wrong})
