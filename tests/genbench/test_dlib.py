"""Our scorer of sync, which was trained on drawn mouths, on a rendered person, and beside dlib's 68 landmarks, which know nothing of it.

The video is of a person of `train/heads` (seed 4), whose mouth follows phonemes. How far dlib finds the inner lips apart follows how loud the audio
is, so its lag is found without any network of ours. dlib is not used on drawn faces: it finds them in about half of the frames only.

dlib needs the package dlib-bin, and Debian's libdlib-data with the landmarks' weights; skipped without.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.genbench.conftest import late_audio

from everface.genbench.manifest import BenchmarkSet, Sample
from everface.genbench.metrics.av_sync import AVSync
from everface.genbench.windows import ClipWindow, read_windows

VIDEO = Path(__file__).parent / "data" / "speaking_head.mp4"
IMAGE = Path(__file__).parents[2] / "python/everface/default/mia.png"  # a reference is read, but not used here
LANDMARKS = Path("/usr/share/dlib/shape_predictor_68_face_landmarks.dat")
FACE = (0.25, 0.305, 0.765, 0.82)  # as dlib finds it
OWN_LAG = 1  # frames that this person's mouth is behind the loudness of its speech
SHIFTS = range(-5, 6)
MAX_LAG = 8


@cache
def window() -> ClipWindow:
    sample = Sample("head", str(IMAGE), str(VIDEO), 10.0, face=FACE)
    return next(read_windows(VIDEO, sample, BenchmarkSet(Path("/"), [sample])))


@cache
def lip_gaps() -> np.ndarray:
    """Distance of the inner lips over that of the eyes' outer corners, by dlib, in every frame."""
    dlib = pytest.importorskip("dlib")
    if not LANDMARKS.is_file():
        pytest.skip(f"{LANDMARKS} is missing: install libdlib-data")
    detector, predictor, gaps, box = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(LANDMARKS)), [], None
    for n, frame in enumerate(window().frames_THW3.numpy()):
        if n % 5 == 0:
            (box,) = detector(frame, 0)  # exactly one face
        points = np.array([(point.x, point.y) for point in predictor(frame, box).parts()], float)
        gaps.append((points[65:68, 1] - points[61:64, 1]).mean() / np.hypot(*(points[45] - points[36])))
    return np.array(gaps)


def lag_behind_loudness(window: ClipWindow) -> tuple[int, float]:
    """The lag in frames at which the lip gap agrees best with the loudness, and the correlation there; positive: the mouth is late."""
    gaps = lip_gaps()
    T = len(gaps)
    loudness = np.convolve(window.pcm_S.reshape(T, -1).square().mean(1).sqrt().numpy(), np.ones(3) / 3, "same")
    agree = {s: np.corrcoef(gaps[max(s, 0) : T + min(s, 0)], loudness[max(-s, 0) : T - max(s, 0)])[0, 1] for s in range(-MAX_LAG, MAX_LAG + 1)}
    lag = max(agree, key=lambda s: agree[s])
    return lag, float(agree[lag])


@pytest.mark.parametrize("late", SHIFTS)
def test_our_scorer_finds_moved_audio_of_a_rendered_person(late: int) -> None:
    assert AVSync().measure(late_audio(window(), late))["av_offset"] == OWN_LAG - late


def test_other_audio_is_less_sure() -> None:
    right, wrong = (AVSync().measure(w) for w in (window(), replace(window(), pcm_S=window().pcm_S.flip(0))))
    assert right["av_confidence"] > wrong["av_confidence"] and right["av_distance"] < wrong["av_distance"]


def test_dlib_agrees_with_our_scorer() -> None:
    for late in SHIFTS:
        moved = late_audio(window(), late)
        lag, agree = lag_behind_loudness(moved)
        assert lag == AVSync().measure(moved)["av_offset"] and agree > 0.5
