"""SyncNet: the search by hand, the towers on random weights, the loader, cepstra against the reference implementation's figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.genbench.conftest import Draw

from everface.genbench.metrics.measurement import NotAvailable
from everface.genbench.metrics.mfcc import mfcc
from everface.genbench.metrics.sync_search import EPSILON, SHIFT, search_offset
from everface.genbench.metrics.syncnet import SyncNetSync, face_crops
from everface.genbench.metrics.syncnet_network import SyncNet, load_syncnet


def by_hand(video: np.ndarray, audio: np.ndarray) -> tuple[float, float, int]:
    """Confidence, distance and offset from the definition, one number at a time."""
    means = []
    for shift in range(-SHIFT, SHIFT + 1):
        distances = []
        for t in range(len(video)):
            other = audio[t + shift] if 0 <= t + shift < len(audio) else np.zeros_like(audio[0])
            distances.append(np.sqrt(np.sum((video[t] - other + EPSILON) ** 2)))
        means.append(np.mean(distances))
    return float(np.sort(means)[SHIFT] - min(means)), float(min(means)), SHIFT - int(np.argmin(means))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("syncnet") / "syncnet.safetensors"
    save_file({name: value.contiguous() for name, value in SyncNet().state_dict().items()}, path)
    return path


def test_confidence_and_distance_agree_with_a_computation_by_hand(draw: Draw, weights: Path) -> None:
    metric = SyncNetSync.load(weights)
    window = replace(draw(0), frames_THW3=draw(0).frames_THW3[:21], pcm_S=draw(0).pcm_S[: 21 * 640])
    found = metric.measure(window)
    assert window.face is not None
    mouths, audio = metric.embed(face_crops(window.frames_THW3, window.face), window.pcm_S, 16)
    assert mouths.shape == audio.shape == (16, 1024)
    confidence, distance, offset = by_hand(mouths.double().numpy(), audio.double().numpy())
    assert found["sync_c"] == pytest.approx(confidence, abs=1e-4)
    assert found["sync_d"] == pytest.approx(distance, abs=1e-4)
    assert found["sync_offset"] == offset


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("late", [-5, -1, 0, 2, 4])
def test_the_search_finds_a_shift_with_its_sign(pad: bool, late: int) -> None:
    audio = torch.randn(80, 16, generator=torch.Generator().manual_seed(1))
    found = search_offset(audio.roll(late, 0), audio, pad)  # video t shows audio t - late: it is late
    assert found.offset == late and found.confidence > 1


def test_the_crop_is_the_one_that_the_network_was_trained_on() -> None:
    frames = torch.zeros(2, 100, 100, 3, dtype=torch.uint8)
    frames[:, 30:50, 40:60] = 200
    crop = face_crops(frames, (0.4, 0.3, 0.6, 0.5))  # half 10 around (50, 40): x 36..64, y 30..58
    assert crop.shape == (2, 224, 224, 3)
    rows, columns = (crop[0, :, :, 0] > 100).any(1).nonzero(), (crop[0, :, :, 0] > 100).any(0).nonzero()
    assert (rows.min() // 8, rows.max() // 8, columns.min() // 8, columns.max() // 8) == (0, 19, 4, 23)
    assert face_crops(frames, (0.0, 0.0, 0.2, 0.2))[0, 100, 2, 0] == 110  # beyond the edge


def test_without_weights_there_is_a_reason_and_no_number(tmp_path: Path, draw: Draw, weights: Path) -> None:
    with pytest.raises(NotAvailable, match="--syncnet"):
        load_syncnet(None)
    with pytest.raises(NotAvailable, match="cannot be read"):
        load_syncnet(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(NotAvailable, match="other weights"):
        load_syncnet(tmp_path / "other.safetensors")
    old = {name: value for name, value in load_file(weights).items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "old.safetensors")  # the published weights are older than these counters
    assert torch.equal(load_syncnet(tmp_path / "old.safetensors").state_dict()["netfcaud.0.weight"], old["netfcaud.0.weight"])
    with pytest.raises(NotAvailable, match='"face"'):
        SyncNetSync.load(weights).measure(replace(draw(0), face=None))


def test_cepstra_are_those_of_python_speech_features() -> None:
    """Frame 5 of `mfcc(tone, 16000)` by python_speech_features 0.6."""
    t = np.arange(4000)
    tone = (8000 * np.sin(2 * np.pi * 440 * t / 16000)).astype(np.int16)
    found = mfcc(torch.from_numpy(tone))
    assert found.shape == (24, 13)
    golden = [19.0658, 19.5109, 2.6439, -13.192, -26.1666, -32.5275, -28.6776, -17.6708, -2.3728, 10.7921, 18.8863, 18.6906, 12.381]
    assert found[5].tolist() == pytest.approx(golden, abs=2e-4)
