"""Rotary tables and rotation against golden data, far positions included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.kernels.fused.norm_rope import rotate
from everface.model.framepack import MOTION_GROUPS
from everface.model.rope import axis_pairs, frames_table, motion_table, sink_time, spread

FILES = {"rope_hd64_4x8": ((4, 8), 64), "rope_hd128_5x3": ((5, 3), 128)}


def block_of(name: str) -> int:
    found = re.search(r"block(\d+)", name)
    assert found
    return int(found[1])


@pytest.mark.parametrize("file", FILES)
def test_noisy_tokens(golden: Path, file: str) -> None:
    grid, d = FILES[file]
    data = load_file(golden / f"{file}.safetensors")
    names = [n for n in data if n.startswith("noisy.")]
    assert names
    for name in names:
        block = block_of(name)
        fp16 = name.endswith("_fp16")
        table = frames_table(3 * block, 3, grid, d, fp16=fp16)
        wanted, tolerance = data[name], 0.0 if fp16 else 1e-6 if block < 2000 else 1e-5
        if name.endswith("q_rot"):
            table, tolerance = rotate(data["q"], table), 1e-5
        torch.testing.assert_close(table, wanted, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("file", FILES)
def test_sink_tokens(golden: Path, file: str) -> None:
    grid, d = FILES[file]
    data = load_file(golden / f"{file}.safetensors")
    names = [n for n in data if n.startswith("cond.")]
    assert names
    for name in names:
        block, rel = block_of(name), int(name.split("rel")[1].split(".")[0])
        table = frames_table(sink_time(3 * block, rel), 1, grid, d)
        if "motion.cos_sin" in data:
            table = torch.cat((table, motion_table(grid, MOTION_GROUPS, d)))
        wanted, tolerance = data[name], 1e-6 if block < 2000 else 1e-5
        if name.endswith("k_rot"):
            table, tolerance = rotate(data["cond_k"], table), 1e-5
        torch.testing.assert_close(table, wanted, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_motion_positions_of_the_official_grid() -> None:
    assert spread(44, 22).tolist() == [*range(0, 42, 2), 43]
    assert spread(44, 11).tolist() == [0, 4, 8, 12, 17, 21, 25, 30, 34, 38, 43]
    assert spread(24, 6).tolist() == [0, 4, 9, 13, 18, 23]


def test_released_head_splits_22_21_21() -> None:
    assert axis_pairs(128) == (22, 21, 21)


def test_a_month_into_the_stream_neighbours_still_differ_by_one_step() -> None:
    """Rotations of frames f and f+1 differ by the same turn at f = 0 and at f = 16 million."""
    first = 16_000_000
    near, far = (torch.view_as_complex(frames_table(f, 2, (1, 1), 128).double()) for f in (0, first))
    turn_near, turn_far = near[1] * near[0].conj(), far[1] * far[0].conj()
    torch.testing.assert_close(turn_far, turn_near, atol=1e-6, rtol=0)


def test_a_sink_never_comes_nearer_than_30() -> None:
    assert [sink_time(f, 4) for f in (0, 26, 27, 300)] == [30, 30, 31, 304]
