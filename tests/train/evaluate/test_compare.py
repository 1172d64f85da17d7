"""Student and teacher make the same clip through the same codec."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.small_model import SMALL, write_model

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.networks.motion import POSE
from everface.train.evaluate import compare
from everface.train.evaluate.held_out import draw_held_out
from everface.train.evaluate.measure import measure
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.run import run_comparison
from everface.train.pretrain.dit_files import new_dit
from everface.train.pretrain.window_model import WindowModel


def audio() -> list[torch.Tensor]:
    return [0.2 * torch.randn(60 * 640 + 99, generator=torch.Generator().manual_seed(2))]


def test_student_and_teacher_are_measured_alike(
    small_model: Path, tmp_path: Path, untrained_reader: LipReader, fast_pose_fit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = OfflineModel(small_model, Deployment())
    monkeypatch.setattr(compare, "TEACHER_STEPS", 3)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(compare, "measure", lambda *args: seen.append(args[2]) or measure(*args))
    report = compare.compare(student, small_model / "dit.safetensors", untrained_reader, audio(), tmp_path)
    assert json.loads((tmp_path / "teacher.json").read_text()) == report
    assert [tuple(rgb.shape) for rgb in seen] == [(60, 3, 64, 64)] * 2 and not torch.equal(*seen)
    assert "teacher, 3 steps" in (tmp_path / "teacher.md").read_text()
    with pytest.raises(BadInput, match="weights of this size"):
        compare.compare(student, small_model / "vae.safetensors", untrained_reader, audio(), tmp_path)


def test_a_model_with_motion_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    moving = write_model(tmp_path, replace(SMALL, dit=replace(SMALL.dit, cond_dim=POSE), motion=True))
    with pytest.raises(BadInput, match="cannot be compared with a model of heads"):
        run_comparison(moving, moving / "dit.safetensors", tmp_path, None, 1, Deployment())


def test_the_teacher_depends_on_audio_and_image(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TEACHER_STEPS", 2)
    student = OfflineModel(small_model, Deployment())
    model = WindowModel(new_dit(student.config.dit, 0, small_model / "dit.safetensors").eval(), bidirectional=True)
    one = draw_held_out(audio(), size=64)[0].part(0, 60)
    assert load_file(small_model / "dit.safetensors").keys() == model.dit.state_dict().keys()

    def made(image: torch.Tensor, loud: float) -> torch.Tensor:
        clip = replace(one, image_3HW=image, pcm_S=one.pcm_S * loud)
        with student.stream(image, StreamConfig()) as stream:
            return torch.cat([block.x for block in compare.sample_teacher(stream, model, clip, 5)], dim=1)

    base = made(one.image_3HW, 1.0)
    assert torch.equal(base, made(one.image_3HW, 1.0))
    assert not torch.allclose(base, made(one.image_3HW, 0.0)) and not torch.allclose(base, made(-one.image_3HW, 1.0))
