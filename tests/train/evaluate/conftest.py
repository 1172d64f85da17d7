"""Lip readers and a clip for the tests of measures, and a pose fit that is fast instead of good."""

from __future__ import annotations

import fcntl
import os
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.miniature import syllables

from everface.train.evaluate.readers import pose_fit
from everface.train.evaluate.readers.lip_reader import LipReader, train_lip_reader
from everface.train.synthetic.characters import render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, sample_motion

SIZE = 64


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> LipReader:
    """Trained once, whichever of the test processes needs it first."""
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.getbasetemp()
    path = shared / "lip_reader.safetensors"
    with open(shared / "lip_reader.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            save_file(train_lip_reader(seed=0, iterations=160, size=SIZE, batch=36).state_dict(), path)
    made = LipReader().eval()
    made.load_state_dict(load_file(path))
    return made


@pytest.fixture
def untrained_reader() -> LipReader:
    torch.manual_seed(0)
    return LipReader().eval()


@pytest.fixture(scope="session")
def clip() -> torch.Tensor:
    """Four seconds of a character, rgb_T3HW."""
    open_T, wide_T = mouth_targets(syllables(4, 3, rate=4, power=3))
    generator = torch.Generator().manual_seed(1)
    anim_TA = sample_motion(open_T, wide_T, generator)
    return render(sample_identity(1, generator), anim_TA, SIZE)


@pytest.fixture
def fast_pose_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_fit, "fit_pose", partial(pose_fit.fit_pose, rounds=((32, 3),)))
