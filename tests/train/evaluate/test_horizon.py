"""Long streams: windows at powers of ten with the same audio, frames of a plain session, a verdict that can miss."""

from __future__ import annotations

import json
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from PIL import Image

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, StreamConfig
from everface.train.evaluate import horizon
from everface.train.evaluate.horizon import SHOWN, TOLERANCES, drawn_truth, drift, window_begins
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.stream_windows import decode_windows

LOOP, WINDOW = 4, 3


@pytest.fixture(scope="module")
def model(small_model: Path) -> OfflineModel:
    return OfflineModel(small_model, Deployment())


def audio() -> torch.Tensor:
    return 0.2 * torch.randn(LOOP * 12 * 640, generator=torch.Generator().manual_seed(2))


def test_windows_begin_at_powers_of_ten() -> None:
    near = [0, 42, 84, 126, 168]
    assert window_begins(10_000, 210, 42, 0.48) == [*near, 210, 2100, *(21_000 + n for n in near)]
    assert window_begins(5_000, 210, 42, 0.48) == [*near, 210, 2100, *(50 * 210 + n for n in near)]
    assert window_begins(1, 210, 42, 0.48) == [*near, *(210 + n for n in near)] and window_begins(1, 210, 200, 0.48) == [0, 210]


def test_windows_are_the_frames_of_a_plain_session(model: OfflineModel, small_model: Path) -> None:
    """Bit for bit, also where the decoder begins late."""
    begins, image = [0, 3 * LOOP], torch.zeros(3, 64, 64)
    count = begins[-1] + WINDOW
    with model.stream(image, StreamConfig()) as stream:
        seen = list(decode_windows(stream, chain.from_iterable(repeat(audio().split(8000))), begins, WINDOW))
    with Avatar(small_model) as avatar, avatar.open(image) as session:
        assert session.push_audio(audio().repeat(4)[: count * 12 * 640])
        session.end_segment()
        frames = torch.cat([block.frames_THW3 for block in session.frames()])
    assert [w.first for w in seen] == begins
    for window in seen:
        assert torch.equal(window.frames_THW3, frames[12 * window.first :][: 12 * WINDOW])
        assert window.latents_16Fhw.shape == (16, 3 * WINDOW, 8, 8)


def test_a_run_that_is_stopped_leaves_the_windows_it_has(
    model: OfflineModel, tmp_path: Path, untrained_reader: LipReader, fast_pose_fit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = horizon.evaluate_horizon(model, untrained_reader, drawn_truth(audio(), 64), audio(), 0.1, tmp_path / "whole", window=WINDOW)
    assert report["complete"] and len(report["windows"]) == 2 and set(report["drift"]) == set(SHOWN)
    assert json.loads((tmp_path / "whole" / "horizon.json").read_text())["windows"] == report["windows"]
    assert Image.open(tmp_path / "whole" / "horizon.png").size[1] > 100 * len(SHOWN)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    measure, calls = horizon.measure_window, []
    monkeypatch.setattr(horizon, "measure_window", lambda *args: calls.append(1) or (stop() if len(calls) > 1 else measure(*args)))
    with pytest.raises(KeyboardInterrupt):
        horizon.evaluate_horizon(model, untrained_reader, drawn_truth(audio(), 64), audio(), 0.1, tmp_path / "part", window=WINDOW)
    part = json.loads((tmp_path / "part" / "horizon.json").read_text())
    assert not part["complete"] and not part["pass"] and part["windows"] == report["windows"][:1]
    assert "stopped after 1" in (tmp_path / "part" / "horizon.md").read_text()


def test_the_verdict_sees_each_kind_of_drift() -> None:
    row = {key: 0.9 for key in SHOWN} | {"lag": 0.0, "fit_psnr": 28.0}
    assert all(d.get("pass", True) for d in drift([row], [row]).values())
    for key, tolerance in TOLERANCES.items():
        far = row | {key: row[key] - 1.01 * tolerance.room(row[key]) - (1.0 if key == "lag" else 0.0)}
        assert [k for k, d in drift([row, row], [far, row]).items() if not d.get("pass", True)] == [key]
        near = row | {key: row[key] - 0.9 * tolerance.room(row[key])}
        assert all(d.get("pass", True) for d in drift([row, row], [near, far]).values())
    shown = drift([row, row | {"blinks": 3.9}], [row | {"blinks": 1.9}, row | {"blinks": 7.9}])["blinks"]
    assert "pass" not in shown and shown["mean_change"] == pytest.approx(2.5) and shown["error"] == pytest.approx(1.5)
