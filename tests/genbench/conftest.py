"""Drawn characters whose mouths are known to be in sync with their audio, as windows and as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from everface.genbench.build import drawn_face
from everface.genbench.manifest import BenchmarkSet, Sample, write_manifest
from everface.genbench.windows import ClipWindow
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.train.synthetic.characters import render, to_uint8
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, neutral, sample_motion
from everface.train.synthetic.voices import read_wav, write_wav

FRAMES = 125
Draw = Callable[[int], ClipWindow]


@cache
def draw_window(seed: int) -> ClipWindow:
    """Five seconds of a character; `seed` says who. The audio is the bundled speech."""
    generator = torch.Generator().manual_seed(4_100_000_000 + seed)
    pcm_S = read_wav(DEFAULT_WEIGHTS / "speech.wav")[16_000:][: FRAMES * 640]
    id_P = sample_identity(1, generator)
    with torch.no_grad():
        rgb = render(id_P, sample_motion(*mouth_targets(pcm_S), generator), 128)
        reference = render(id_P, neutral(1), 128)[0]
    frames = to_uint8(rgb).permute(0, 2, 3, 1).contiguous()
    return ClipWindow(frames, pcm_S, torch.zeros(0), to_uint8(reference).permute(1, 2, 0), 0.0, drawn_face(), "drawn")


@pytest.fixture(scope="session")
def draw() -> Draw:
    return draw_window


def late_audio(window: ClipWindow, frames: int) -> ClipWindow:
    """The same video with its audio so many frames later; negative: earlier."""
    pcm_S, silence = window.pcm_S, torch.zeros(abs(frames) * 640)
    moved = torch.cat([silence, pcm_S[: len(pcm_S) - len(silence)]]) if frames > 0 else torch.cat([pcm_S[len(silence) :], silence])
    return replace(window, pcm_S=moved)


@pytest.fixture
def small_set(tmp_path: Path, draw: Draw) -> BenchmarkSet:
    """Two samples on disk."""
    folder, samples = tmp_path / "set", []
    folder.mkdir()
    for i in range(2):
        window = draw(i)
        Image.fromarray(window.reference_HW3.numpy()).save(folder / f"{i}.png")
        write_wav(folder / f"{i}.wav", window.pcm_S)
        samples.append(Sample(f"s-{i}", f"{i}.png", f"{i}.wav", FRAMES / 25, face=window.face, truth="drawn"))
    write_manifest(folder, samples)
    return BenchmarkSet(folder, samples)
