"""The student beside the teacher: the same clip, the same codec, two ways to make it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.avatar.conftest import small_model  # noqa: F401

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.train.evaluate import compare, metrics
from everface.train.evaluate import judge as evaluate
from everface.train.evaluate.held_out import draw_unseen
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.stream import Studio
from everface.train.pretrain.flow_matching import new_dit
from everface.train.pretrain.windows import WindowModel


def sounds() -> list[torch.Tensor]:
    return [0.2 * torch.randn(60 * 640 + 99, generator=torch.Generator().manual_seed(2))]


def test_student_and_teacher_are_measured_alike(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    torch.manual_seed(0)
    reader, studio = Reader().eval(), Studio(small_model, Deployment())
    monkeypatch.setattr(compare, "TEACHER_STEPS", 3)
    monkeypatch.setattr(metrics, "fit_pose", partial(metrics.fit_pose, rounds=((32, 3),)))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(compare, "measure", lambda *args: seen.append(args[2]) or evaluate.measure(*args))
    report = compare.compare(studio, small_model / "dit.safetensors", reader, sounds(), tmp_path)
    assert json.loads((tmp_path / "teacher.json").read_text()) == report
    assert [tuple(rgb.shape) for rgb in seen] == [(60, 3, 64, 64)] * 2 and not torch.equal(*seen)
    assert "teacher, 3 steps" in (tmp_path / "teacher.md").read_text()
    with pytest.raises(BadInput, match="weights of this size"):
        compare.compare(studio, small_model / "vae.safetensors", reader, sounds(), tmp_path)


def test_the_teacher_hears_the_sound_and_sees_the_picture(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(compare, "TEACHER_STEPS", 2)
    studio = Studio(small_model, Deployment())
    model = WindowModel(new_dit(studio.config.dit, 0, small_model / "dit.safetensors").eval(), full=True)
    one = draw_unseen(sounds(), size=64)[0].part(0, 60)
    assert load_file(small_model / "dit.safetensors").keys() == model.dit.state_dict().keys()

    def made(picture: torch.Tensor, loud: float) -> torch.Tensor:
        clip = compare.Unseen(one.id_P, picture, one.pcm_S * loud, one.open_T, one.wide_T, one.anim_TA)
        with studio.stream(picture, StreamConfig()) as stream:
            return torch.cat([block.x for block in compare.teach(stream, model, clip, 5)], dim=1)

    base = made(one.picture_3HW, 1.0)
    assert torch.equal(base, made(one.picture_3HW, 1.0))
    assert not torch.allclose(base, made(one.picture_3HW, 0.0)) and not torch.allclose(base, made(-one.picture_3HW, 1.0))
