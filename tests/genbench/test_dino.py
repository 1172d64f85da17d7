"""DINOv2's path on a tiny model of its class with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.genbench.conftest import Draw

from everface.genbench.metrics.dino import DinoIdentity
from everface.genbench.metrics.measurement import NotAvailable

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14)
    folder = tmp_path_factory.mktemp("dino")
    model = transformers.Dinov2Model(config)
    for parameter in model.parameters():  # the usual small initial weights nearly ignore the image
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_the_reference_itself_is_identical_and_another_person_is_not(draw: Draw, tiny_dino: Path) -> None:
    metric, window = DinoIdentity.load(tiny_dino), draw(0)
    same = replace(window, frames_THW3=window.reference_HW3[None].expand(10, -1, -1, -1))
    assert metric.measure(same)["dino_s"] == pytest.approx(1.0, abs=1e-5)
    own = metric.measure(window)["dino_s"]
    assert metric.measure(replace(window, frames_THW3=draw(1).frames_THW3))["dino_s"] < own < 1


def test_absent_or_other_weights_give_a_reason(tmp_path: Path, tiny_dino: Path) -> None:
    with pytest.raises(NotAvailable, match="--dino"):
        DinoIdentity.load(None)
    with pytest.raises(NotAvailable, match=r"config\.json"):
        DinoIdentity.load(tmp_path)
    config = transformers.Dinov2Config.from_pretrained(tiny_dino)
    config.num_hidden_layers = 3
    broken = tmp_path / "broken"
    broken.mkdir()
    config.save_pretrained(broken)
    (broken / "model.safetensors").write_bytes((tiny_dino / "model.safetensors").read_bytes())
    with pytest.raises(NotAvailable, match="another model"):
        DinoIdentity.load(broken)
