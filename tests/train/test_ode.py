"""The teacher's paths and the student that learns where they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.train.test_distill import write_clips
from tests.train.test_forcing import SMALL, small_model, small_window

from everface.core.errors import BadInput
from everface.model.schedule import euler, sigmas
from everface.train.forcing import Window, WindowModel, draw_noise
from everface.train.ode import Paths, follow, path_levels, path_loss, read_paths, student_levels, train_ode, write_paths
from everface.train.plans import Ode

PLAN = Ode(
    iterations=30, lr=4e-3, warmup_steps=2, ema=0.8, held_out=2, curriculum=((0.0, 2, 2),), paths=16, teacher_steps=3, noise_correlation=0.5
)  # fmt: skip


def test_a_path_passes_the_students_levels_and_ends_where_small_steps_lead() -> None:
    levels, of_student = path_levels(PLAN), student_levels(PLAN)
    assert of_student == list(sigmas()[:3]) and set(of_student) < set(levels) and set(sigmas(3)) < set(levels)
    assert levels[0] == 1 and levels[-1] == 0 and levels == sorted(levels, reverse=True)
    model, window = WindowModel(small_model(1), full=True), small_window(blocks=2, first_frame=30, sigma=0.3)
    with torch.no_grad():
        window, x_SB = follow(model, window, PLAN, torch.Generator().manual_seed(4))
        torch.testing.assert_close(x_SB[0], draw_noise(x_SB[0].shape, torch.Generator().manual_seed(4), 0.5))
        x, now = x_SB[1], of_student[1]
        for following in levels[levels.index(now) + 1 :]:
            if now == of_student[2]:
                torch.testing.assert_close(x, x_SB[2])
            x = euler(x, model(x, replace(window, sigma_Bn=torch.full((1, 2), now))), now, following)
            now = following
    torch.testing.assert_close(x, window.x0_B16Fhw)


def test_a_student_that_foretells_the_end_has_no_loss() -> None:
    window, g = small_window(blocks=2, first_frame=0, sigma=0.3), torch.Generator().manual_seed(0)
    paths, levels = Paths(window, torch.randn(3, *window.x0_B16Fhw.shape, generator=g)), student_levels(PLAN)

    def foretell(x: torch.Tensor, seen: Window, off: float = 0.0) -> torch.Tensor:
        assert bool((seen.sigma_Bn == seen.sigma_Bn[:, :1]).all())
        return (x - window.x0_B16Fhw) / seen.sigma_Bn[:, :1, None, None, None] + off

    for level in range(3):
        assert path_loss(foretell, paths, levels, [level], torch.ones(8, 8)) < 1e-9  # type: ignore[arg-type]
    off = path_loss(lambda x, seen: foretell(x, seen, 2.0), paths, levels, [1], torch.ones(8, 8))  # type: ignore[arg-type]
    assert abs(off - 4) < 1e-4


def test_a_file_of_paths_holds_all_that_a_model_sees(tmp_path: Path) -> None:
    window = small_window(blocks=2, first_frame=30, sigma=1.0)
    window = replace(window, motion_B16Thw=torch.cat([window.motion_B16Thw[:, :, :1], window.motion_B16Thw[:, :, 1:2].expand(-1, -1, 18, -1, -1)], 2))
    write_paths(tmp_path / "0.safetensors", Paths(window, window.x0_B16Fhw[None]))
    read, x_SB = read_paths(tmp_path / "0.safetensors", "cpu")
    model = WindowModel(small_model())
    with torch.no_grad():
        before, after = model(window.x0_B16Fhw, window), model(x_SB[0], read)
    assert (before - after).norm() / before.norm() < 5e-3


def test_the_students_forecast_comes_nearer_and_a_run_goes_on(tmp_path: Path) -> None:
    for seed, name in ((0, "student"), (1, "teacher")):
        save_file({n: t.contiguous() for n, t in small_model(seed).state_dict().items()}, tmp_path / f"{name}.safetensors")
    given = (write_clips(tmp_path / "clips"), tmp_path / "student.safetensors", tmp_path / "teacher.safetensors")
    train_ode(tmp_path / "run", *given, replace(PLAN, iterations=1), SMALL)
    files = sorted((tmp_path / "run" / "paths").iterdir())
    assert len(files) == 8
    first = [read_paths(file, "cpu") for file in files[:2]]
    stamps = [file.stat().st_mtime_ns for file in files]
    path = train_ode(tmp_path / "run", *given, PLAN, SMALL)
    assert [file.stat().st_mtime_ns for file in files] == stamps, "paths that are there are not made again"
    assert json.loads((path.parent / "plan.json").read_text())["steps_done"] == 30

    def forecast(weights: Path) -> float:
        from everface.train.loop import new_dit

        model, weight = WindowModel(new_dit(SMALL, 0, weights)), torch.ones(8, 8)
        with torch.no_grad():
            return sum(path_loss(model, paths, student_levels(PLAN), [s, s], weight).item() for paths in first for s in range(3))

    assert forecast(path) < 0.7 * forecast(given[1])
    with pytest.raises(BadInput, match="longer than the clips"):
        train_ode(tmp_path / "other", *given, replace(PLAN, curriculum=((0.0, 6, 2),)), SMALL)
