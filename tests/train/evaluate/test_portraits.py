"""Portraits that nobody made for a model: a row of the sheet and a line of figures each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.genbench.test_dlib import LANDMARKS, window

from everface.core.errors import BadInput
from everface.train.evaluate import portraits
from everface.train.evaluate.portraits import SHOWN, evaluate_portraits, read_face
from everface.train.synthetic.voices import write_wav


def test_each_has_a_row_and_its_figures(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portraits, "can_find_faces", lambda: False)
    rng = np.random.default_rng(0)
    for n in range(2):
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), np.uint8)).save(tmp_path / f"{n}.png")
    write_wav(tmp_path / "voice.wav", 0.1 * torch.randn(16_000))
    rows = evaluate_portraits([tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "voice.wav", tmp_path / "out", small_model, 0.9)
    assert [row.image for row in rows] == ["0.png", "1.png"] and rows[0].face_found is rows[0].distance is None
    assert all(row.codec_psnr > 0 and row.detail > 0 for row in rows) and rows[0].detail != rows[1].detail
    with Image.open(tmp_path / "out" / "portraits.jpg") as sheet:
        assert sheet.size[0] / sheet.size[1] == (SHOWN + 2) / 2
    assert len(json.loads((tmp_path / "out" / "portraits.json").read_text())) == 2
    assert (tmp_path / "out" / "portraits.md").read_text().count("\n") == 4
    with pytest.raises(BadInput, match=r"no\.dat is not there"):
        evaluate_portraits([], tmp_path / "voice.wav", tmp_path, small_model, landmarks=tmp_path / "no.dat")


def test_dlib_reads_a_persons_lips() -> None:
    pytest.importorskip("dlib")
    if not LANDMARKS.is_file():
        pytest.skip(f"{LANDMARKS} is missing: install libdlib-data")
    frames_THW3, pcm_S = window().frames_THW3.numpy()[:100], window().pcm_S[:64_000]
    found, follow = read_face(frames_THW3, pcm_S, LANDMARKS)
    assert found == 1 and follow is not None and follow > 0.5
    assert read_face(frames_THW3, pcm_S.flip(0), LANDMARKS)[1] < 0.3  # pyright: ignore[reportOptionalOperand]  it was found just now
    assert read_face(np.zeros_like(frames_THW3[:10]), pcm_S, LANDMARKS) == (0, None)
