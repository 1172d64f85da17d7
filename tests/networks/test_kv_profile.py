"""What the heads keep of their keys: slots of a ring that wraps, and the choice that a profile makes."""

from __future__ import annotations

import itertools

import pytest
import torch

from everface.core.config import DiTConfig
from everface.core.errors import BadWeights
from everface.kernels.attention.block_causal import mask_of
from everface.networks.transformer.kv_profile import NEVER, KeptKeys, KVProfile

SINK, FRAME, FRAMES, WINDOW = 5, 2, 3, 4  # frames of a block, blocks of a window
BLOCK = FRAME * FRAMES
CFG = DiTConfig(dim=16, ffn_dim=8, num_heads=2, num_layers=3, audio_inject_layers=())


def profile(seed: int = 0, steps: int = 4) -> KVProfile:
    """Errors that fall with every frame and with the sink."""
    random = torch.Generator().manual_seed(seed)
    falls = torch.rand(steps, CFG.num_layers, CFG.num_heads, 2, 1 + WINDOW * FRAMES, generator=random, dtype=torch.float64)
    error = falls.flip(-1).cumsum(-1).flip(-1)
    error[..., 0, :] += error[..., 1, :1]
    error[..., 0, 0] = NEVER
    return KVProfile(SINK, FRAME, torch.rand(steps, CFG.num_layers, CFG.num_heads, 1 + WINDOW, generator=random).double(), error)


@pytest.mark.parametrize("run", range(9))
def test_the_newest_frames_are_found_wherever_the_ring_is(run: int) -> None:
    """Every number of frames, in a ring that fills and wraps; the position as a number and as a tensor."""
    start, used = SINK + BLOCK * (run % WINDOW), SINK + BLOCK * min(run + 1, WINDOW)
    frames = torch.arange(1 + WINDOW * FRAMES)
    kept = KeptKeys(torch.stack((frames >= 0, frames < 0)), frames.expand(2, -1))
    written = {slot: b for b in range(run + 1) for slot in range(SINK + BLOCK * (b % WINDOW), SINK + BLOCK * (b % WINDOW + 1))}
    oldest = sorted(written, key=lambda slot: (written[slot], slot))
    for at in (start, torch.tensor(start)):
        ranges = kept.ranges(SINK, FRAME, BLOCK, at, used)
        assert ranges.dtype == torch.int32 and ranges.is_contiguous()
        for layer, n in itertools.product(range(2), frames.tolist()):
            newest = oldest[max(0, len(oldest) - n * FRAME) :]
            want = {*range(SINK if layer == 0 else 0), *newest}
            assert set(mask_of(ranges[layer, n : n + 1], used)[0].nonzero().flatten().tolist()) == want
            assert int(ranges[layer, n, :, 1].sum()) == len(want), "no slot twice"


@pytest.mark.parametrize("keep", [0.9, 0.66, 0.4, 0.2])
def test_every_step_keeps_its_share_with_less_error_than_all_heads_alike(keep: float) -> None:
    measured = profile()
    for step, kept in enumerate(measured.choose(keep)):
        share = measured.share(kept)
        assert keep - 0.25 < share <= keep  # of few heads, each with few choices
        error = measured.error_SLH2F[step].flatten(-2).gather(-1, (kept.sink_LH * 13 + kept.frames_LH)[..., None]).sum()
        alike = int((share * measured.keys - SINK) // FRAME)
        assert error <= measured.error_SLH2F[step, ..., 1, max(alike, 0)].sum()


def test_a_head_that_looks_only_at_the_sink_keeps_only_the_sink() -> None:
    measured = profile()
    measured.error_SLH2F[0, 1, 0, 1] = 0.0
    kept = measured.choose(0.7)[0]
    assert bool(kept.sink_LH[1, 0]) and int(kept.frames_LH[1, 0]) == 0


def test_every_head_keeps_something() -> None:
    for kept in profile().choose(0.0):
        assert bool((kept.sink_LH | (kept.frames_LH > 0)).all())


def test_a_profile_survives_its_file_and_no_other_model_takes_it() -> None:
    measured = profile()
    raw = measured.to_dict()
    again = KVProfile.from_dict(raw, CFG, 4)
    torch.testing.assert_close(again.error_SLH2F, measured.error_SLH2F, rtol=1e-2, atol=0)
    for wrong in (raw | {"error": raw["error"][:3]}, raw | {"mass": []}, {"sink": 5}, raw | {"frame": None}, raw | {"error": [[1], 2]}):
        with pytest.raises(BadWeights):
            KVProfile.from_dict(wrong, CFG, 4)
