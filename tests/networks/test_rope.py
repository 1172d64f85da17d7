"""Rotary tables and rotation against golden data, far positions included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.kernels.fused.norm_rope import rotate
from everface.networks.transformer.framepack import MOTION_GROUPS
from everface.networks.transformer.rope import axis_pairs, frames_table, motion_table, sink_time, spaced_positions

FILES = {"rope_hd128_5x3": ((5, 3), 128)}


def block_of(name: str) -> int:
    found = re.search(r"block(\d+)", name)
    assert found
    return int(found[1])


def table_of(name: str, file: str, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """The rotations of the tokens that a golden tensor is for: of a noisy block, or of the sink while the reference rolls ahead of one."""
    (grid, d), block = FILES[file], block_of(name)
    if name.startswith("noisy."):
        return frames_table(3 * block, 3, grid, d, fp16=name.endswith("_fp16"))
    table = frames_table(sink_time(3 * block, int(name.split("rel")[1].split(".")[0])), 1, grid, d)
    return torch.cat((table, motion_table(grid, MOTION_GROUPS, d))) if "motion.cos_sin" in data else table


@pytest.mark.parametrize(("kind", "rotated", "source"), [("noisy.", "q_rot", "q"), ("cond.", "k_rot", "cond_k")], ids=["noisy", "sink"])
@pytest.mark.parametrize("file", FILES)
def test_tables_and_rotated_tokens(golden: Path, file: str, kind: str, rotated: str, source: str) -> None:
    data = load_file(golden / f"{file}.safetensors")
    names = [n for n in data if n.startswith(kind)]
    assert names
    for name in names:
        got, tolerance = table_of(name, file, data), 0.0 if name.endswith("_fp16") else 1e-6 if block_of(name) < 2000 else 1e-5
        if name.endswith(rotated):
            got, tolerance = rotate(data[source], got), 1e-5
        torch.testing.assert_close(got, data[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_motion_positions_of_the_official_grid() -> None:
    assert spaced_positions(44, 22).tolist() == [*range(0, 42, 2), 43]
    assert spaced_positions(44, 11).tolist() == [0, 4, 8, 12, 17, 21, 25, 30, 34, 38, 43]
    assert spaced_positions(24, 6).tolist() == [0, 4, 9, 13, 18, 23]


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
