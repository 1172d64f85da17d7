"""Audio as callers push it: what a session accepts, with the values that arrive, and what it refuses, with the way to convert it."""

from __future__ import annotations

import array
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime import toy

from everface.core.config import Deployment
from everface.core.errors import BadInput
from everface.runtime.planning.placement import place
from everface.runtime.samples import MAX_PEAK, check_samples
from everface.runtime.start import start_pipeline

WAVE = np.sin(np.arange(1600) / 20).astype(np.float32)
BIG_ENDIAN = WAVE.astype(">f4")

REFUSED: dict[str, tuple[Any, str]] = {
    "bytes": (WAVE.tobytes(), "numpy.frombuffer"),
    "bytearray": (bytearray(WAVE.tobytes()), "numpy.frombuffer"),
    "memoryview": (memoryview(WAVE.tobytes()), "numpy.frombuffer"),
    "a list": (WAVE.tolist(), "numpy array or a tensor"),
    "a tuple": ((0.0, 0.1), "numpy array or a tensor"),
    "nothing": (None, "numpy array or a tensor"),
    "text": ("speech.wav", "numpy array or a tensor"),
    "a number": (0.5, "numpy array or a tensor"),
    "an array.array": (array.array("f", [0.0, 0.1]), "numpy array or a tensor"),
    "a numpy number": (np.float32(0.5), "numpy array or a tensor"),
    "big-endian": (BIG_ENDIAN, "byte order"),
    "big-endian integers": (WAVE.astype(">i2"), "byte order"),
    "no axis": (np.array(0.5, np.float32), "one axis"),
    "a tensor of no axis": (torch.tensor(0.5), "one axis"),
    "two channels": (np.zeros((1600, 2), np.float32), "one axis"),
    "a batch": (torch.zeros(1, 1600), "one axis"),
    "float64": (WAVE.astype(np.float64), "x.astype(numpy.float32)"),
    "a tensor of float64": (torch.zeros(10, dtype=torch.float64), "x.float()"),
    "float16": (WAVE.astype(np.float16), "x.astype(numpy.float32)"),
    "bfloat16": (torch.zeros(10, dtype=torch.bfloat16), "x.float()"),
    "16 bits": (np.zeros(10, np.int16), "x.astype(numpy.float32) / 32768"),
    "a tensor of 16 bits": (torch.zeros(10, dtype=torch.int16), "x.float() / 32768"),
    "32 bits": (np.zeros(10, np.int32), "/ 2147483648"),
    "8 bits": (np.zeros(10, np.uint8), "(x.astype(numpy.float32) - 128) / 128"),
    "truths": (np.zeros(10, bool), "not float32"),
    "complex": (WAVE.astype(np.complex64), "not float32"),
    "objects": (np.array([None, 1.0]), "not float32"),
    "no memory": (torch.zeros(10, device="meta"), "in memory"),
    "sparse": (torch.zeros(10).to_sparse(), "in memory"),
    "float at the scale of 16 bits": (WAVE * 32767, "32768"),
    "float at the scale of 8 bits": (WAVE * 127, "full scale is 1"),
    "far too loud, below zero": (np.minimum(WAVE, 0) * 8.1, "full scale is 1"),
    "not a number": (np.array([0, np.nan], np.float32), "not finite"),
    "infinite": (torch.tensor([0, -torch.inf]), "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_only_be_guessed_at_is_refused(case: str) -> None:
    audio, words = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        check_samples(audio, 16_000)
    text = str(caught.value)
    assert words in text and "\n" not in text and len(text) < 300




ACCEPTED: dict[str, Any] = {
    "an array": WAVE,
    "a tensor": torch.from_numpy(WAVE),
    "every second sample": np.repeat(WAVE, 2)[::2],
    "a channel of a stereo array": np.stack([WAVE, -WAVE], axis=1)[:, 0],
    "a channel of a stereo tensor": torch.from_numpy(np.stack([-WAVE, WAVE], axis=1))[:, 1],
    "backwards": WAVE[::-1].copy()[::-1],
    "read only, as numpy.frombuffer gives": np.frombuffer(WAVE.tobytes(), np.float32),
    "little-endian by name": WAVE.astype("<f4"),
    "with a gradient": torch.from_numpy(WAVE.copy()).requires_grad_(),
    "a parameter": torch.nn.Parameter(torch.from_numpy(WAVE.copy())),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_any_layout_in_memory_gives_the_same_samples(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_samples(ACCEPTED[case], 16_000)
    assert found.dtype == torch.float32 and not found.requires_grad and np.array_equal(found.numpy(), WAVE)


@pytest.mark.gpu
def test_audio_on_a_gpu_is_accepted() -> None:
    found = check_samples(torch.from_numpy(WAVE).cuda(), 16_000)
    assert np.array_equal(found.cpu().numpy(), WAVE)


def test_peaks_up_to_the_bound_are_accepted_as_they_are() -> None:
    for peak in (1.0, 1.5, MAX_PEAK):
        audio = np.array([0, peak, -peak], np.float32)
        assert np.array_equal(check_samples(audio, 16_000).numpy(), audio)
    assert check_samples(np.zeros(0, np.float32), 16_000).numel() == 0


def test_a_session_keeps_its_own_copy_and_its_clock() -> None:
    seen: list[torch.Tensor] = []

    def condition(index: int, window: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(window.clone())
        return toy.condition(index, window)

    with start_pipeline(place(toy.roles_of(3), "inline"), toy.MODEL, toy.SPEC, Deployment()) as pipeline:
        session = toy.open_session(pipeline, lookback_samples=0, condition=condition)
        with session as s:
            pushed = np.resize(WAVE, 7680)
            backwards = pushed[::-1].copy()[::-1]
            assert s.push_audio(backwards)
            backwards[:] = 0.9  # the caller uses its buffer again
            for audio, _ in REFUSED.values():
                with pytest.raises(BadInput):
                    s.push_audio(audio)
            assert s.accepted == 7680
            s.end_segment()
            assert [b.index for b in toy.frames(s)] == [0]
    assert np.array_equal(seen[0].numpy(), pushed)
