"""The long look: windows at powers of ten that hear the same, frames that are the stream's own, a verdict that can miss."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.avatar.conftest import small_model  # noqa: F401

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, StreamConfig
from everface.train.engine.chart import draw_panels
from everface.train.evaluate import horizon, metrics
from everface.train.evaluate.horizon import HELD, SHOWN, begin_blocks, drift, windows
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.stream import Studio

LOOP, WINDOW = 4, 3


@pytest.fixture(scope="module")
def studio(small_model: Path) -> Studio:  # noqa: F811
    return Studio(small_model, Deployment())


def sound() -> torch.Tensor:
    return 0.2 * torch.randn(LOOP * 12 * 640, generator=torch.Generator().manual_seed(2))


def test_windows_stand_at_powers_of_ten() -> None:
    near = [0, 42, 84, 126, 168]
    assert begin_blocks(10_000, 210, 42, 0.48) == [*near, 210, 2100, *(21_000 + n for n in near)]
    assert begin_blocks(5_000, 210, 42, 0.48) == [*near, 210, 2100, *(50 * 210 + n for n in near)]
    assert begin_blocks(1, 210, 42, 0.48) == [*near, *(210 + n for n in near)] and begin_blocks(1, 210, 200, 0.48) == [0, 210]


def test_windows_are_the_frames_of_a_plain_session(studio: Studio, small_model: Path) -> None:  # noqa: F811
    """The first bit for bit, and so the second, which the decoder comes to late."""
    begins, picture = [0, 3 * LOOP], torch.zeros(3, 64, 64)
    count = begins[-1] + WINDOW
    with studio.stream(picture, StreamConfig()) as stream:
        seen = list(windows(stream, chain.from_iterable(repeat(sound().split(8000))), begins, WINDOW))
    with Avatar(small_model) as avatar, avatar.open(picture) as session:
        assert session.push(sound().repeat(4)[: count * 12 * 640])
        session.end()
        frames = torch.cat([block.frames_THW3 for block in session.frames()])
    assert [w.first for w in seen] == begins
    for window in seen:
        assert torch.equal(window.frames_THW3, frames[12 * window.first :][: 12 * WINDOW])
        assert window.latents_16Fhw.shape == (16, 3 * WINDOW, 8, 8)


def test_a_run_that_is_stopped_leaves_the_windows_it_came_to(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reader = Reader().eval()
    monkeypatch.setattr(metrics, "fit_pose", partial(metrics.fit_pose, rounds=((32, 3),)))
    report = horizon.horizon(studio, reader, sound(), 0.1, tmp_path / "whole", window=WINDOW)
    assert report["complete"] and len(report["windows"]) == 2 and set(report["drift"]) == set(SHOWN)
    assert json.loads((tmp_path / "whole" / "horizon.json").read_text())["windows"] == report["windows"]
    assert Image.open(tmp_path / "whole" / "horizon.png").size[1] > 100 * len(SHOWN)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    look, calls = horizon.look, []
    monkeypatch.setattr(horizon, "look", lambda *args: calls.append(1) or (stop() if len(calls) > 1 else look(*args)))
    with pytest.raises(KeyboardInterrupt):
        horizon.horizon(studio, reader, sound(), 0.1, tmp_path / "part", window=WINDOW)
    part = json.loads((tmp_path / "part" / "horizon.json").read_text())
    assert not part["complete"] and not part["pass"] and part["windows"] == report["windows"][:1]
    assert "stopped after 1" in (tmp_path / "part" / "horizon.md").read_text()


def test_the_verdict_sees_each_way_to_drift() -> None:
    row = {key: 0.9 for key in SHOWN} | {"lag": 0.0, "fit_psnr": 28.0}
    assert all(d.get("pass", True) for d in drift([row], [row]).values())
    for key, held in HELD.items():
        far = row | {key: row[key] - 1.01 * held.room(row[key]) - (1.0 if key == "lag" else 0.0)}
        assert [k for k, d in drift([row, row], [far, row]).items() if not d.get("pass", True)] == [key]
        near = row | {key: row[key] - 0.9 * held.room(row[key])}
        assert all(d.get("pass", True) for d in drift([row, row], [near, far]).values())
    shown = drift([row, row | {"blinks": 3.9}], [row | {"blinks": 1.9}, row | {"blinks": 7.9}])["blinks"]
    assert "pass" not in shown and shown["mean_change"] == pytest.approx(2.5) and shown["error"] == pytest.approx(1.5)


def test_a_chart_draws_what_it_is_given(tmp_path: Path) -> None:
    """The curve goes up where the numbers do; what is not finite is left out."""
    path = draw_panels(tmp_path / "a.png", {"up": [(0, 0.0), (5, float("nan")), (10, 1.0)], "none": []}, "step", {"up": (0.4, 0.6)})
    image = Image.open(path).convert("RGB")
    blue = [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == (30, 90, 170)]
    (left, low), (right, high) = min(blue), max(blue)
    assert right - left > 600 and low - high > 60
