"""The trainer's window and the runtime's stream are the same function."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tests.train.miniature import small_dit

from everface.networks.motion import FACE, POSE, pose_of
from everface.train.data.clips import Clips
from everface.train.pretrain.plans import Stage1Plan
from everface.train.pretrain.window_model import WindowModel, own_steps, window_loss
from everface.train.pretrain.windows import TrainingWindow, draw_window
from everface.train.synthetic.characters import region_weight


def small_window(blocks: int, first_frame: int, sigma: float, channels: int = 12) -> TrainingWindow:
    g = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731  a name for a short expression
    return TrainingWindow(
        draw(1, 16, 3 * blocks, 8, 8), torch.full((1, blocks), sigma), draw(1, 16, 1, 8, 8), draw(1, 16, 19, 8, 8),
        draw(1, 1, channels, 5 + 12 * blocks), first_frame, tuple(range(11, 11 + blocks)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("history", "sigma", "patch", "motion"),
    [("own", 0.6, 2, 0), ("clean", 0.0, 2, 0), ("fixed", 0.557, 2, 0), ("own", 0.6, 1, 0), ("own", 0.6, 1, len(FACE)), ("clean", 0.0, 2, len(FACE))],
)
def test_window_equals_stream(history: str, sigma: float, patch: int, motion: int) -> None:
    """Six blocks at one noise level: the parallel window gives the velocities of the runtime's ring, filled by the blocks themselves
    or, for the ablation's histories, by another pass after each."""
    dit, window = small_dit(patch_size=(1, patch, patch), cond_dim=POSE), small_window(blocks=6, first_frame=0, sigma=0.6, channels=12 + motion)
    past = None
    if history != "own":
        past = torch.randn(window.x0_B16Fhw.shape, generator=torch.Generator().manual_seed(8))
        window = replace(window, past_B16Fhw=past, past_sigma=Stage1Plan(history=history, history_sigma=sigma).past_sigma)
        assert window.past_sigma == sigma
    with torch.no_grad():
        parallel = WindowModel(dit)(window.x0_B16Fhw, window)[0]
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, 8)))
        cache = dit.new_cache(8, 8)
        cache.prime(*dit.prefill_sink(window.reference_B16_1hw[0], window.motion_B16Thw[0], text_kv))
        for b in range(6):
            features = window.features_BLCF[0, :, :, 12 * b : 12 * b + 17]
            audio = dit.casual_audio_encoder.encode_block(features[:, :12, 5:], features[:, :12, :5])
            given = {"pose_16Fhw": pose_of(features[0, 12:, 5:])} if motion else {}
            block = slice(3 * b, 3 * b + 3)
            v = dit(window.x0_B16Fhw[0, :, block], dit.time(600.0), text_kv, audio, cache, block_index=b, sink_distance=11 + b, **given)
            torch.testing.assert_close(v, parallel[:, block], atol=2e-5, rtol=1e-4)
            if past is not None:
                dit(past[0, :, block], dit.time(1000 * sigma), text_kv, audio, cache, block_index=b, sink_distance=11 + b, **given)


def test_own_steps_are_a_stream_of_rings() -> None:
    """A clip that comes to the third level by the model's own steps is where a stream with a ring per step is before its third step; one at the second
    level is a step behind, and a clip that is not `own_B` stays noise."""
    dit, levels = small_dit(), (0.9, 0.7, 0.4, 0.0)
    one = small_window(blocks=3, first_frame=0, sigma=0.4)
    window = replace(one.of(torch.tensor([0, 0, 0]), 0.4), own_B=torch.tensor([True, True, False]), levels=levels)
    window.sigma_Bn[1] = 0.7
    noise = torch.randn(one.x0_B16Fhw.shape, generator=torch.Generator().manual_seed(4))
    arrived = own_steps(WindowModel(dit), noise.repeat(3, 1, 1, 1, 1), window)
    text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, 8)))
    caches = [dit.new_cache(8, 8) for _ in levels[:2]]
    with torch.no_grad():
        for cache in caches:
            cache.prime(*dit.prefill_sink(one.reference_B16_1hw[0], one.motion_B16Thw[0], text_kv))
        for b in range(3):
            features, block = one.features_BLCF[0, :, :, 12 * b : 12 * b + 17], slice(3 * b, 3 * b + 3)
            audio, x = dit.casual_audio_encoder.encode_block(features[..., 5:], features[..., :5]), noise[0, :, block]
            for cache, sigma, following, clip in zip(caches, levels, levels[1:], (1, 0), strict=False):
                x = x + (following - sigma) * dit(x, dit.time(1000 * sigma), text_kv, audio, cache, block_index=b, sink_distance=11 + b)
                torch.testing.assert_close(arrived[clip, :, block], x, atol=2e-5, rtol=1e-4)
    assert torch.equal(arrived[2], noise[0])


def test_the_loss_of_own_steps_is_that_of_the_x0_they_lead_to() -> None:
    """With a clip at the second level, by hand: the squared error of x0 over the squared level."""
    model, one = WindowModel(small_dit()), small_window(blocks=2, first_frame=0, sigma=0.7)
    window = replace(one, own_B=torch.tensor([True]), levels=(1.0, 0.7, 0.0))
    with torch.no_grad():
        loss = window_loss(model, window, torch.ones(8, 8), torch.Generator().manual_seed(2))
        noise = torch.randn(one.x0_B16Fhw.shape, generator=torch.Generator().manual_seed(2))
        x = noise - 0.3 * model(noise, one.of(torch.tensor([0]), 1.0))
        x0 = x - 0.7 * model(x, one)
    torch.testing.assert_close(loss, ((x0 - one.x0_B16Fhw) / 0.7).square().mean())


def test_later_blocks_do_not_leak() -> None:
    """Changing the last block changes nothing before it, and does change itself."""
    model, window = WindowModel(small_dit()), small_window(blocks=3, first_frame=600, sigma=0.8)
    x = window.x0_B16Fhw.clone()
    with torch.no_grad():
        before = model(x, window)
        x[:, :, 6:] += 1
        after = model(x, window)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert (before[:, :, 6:] - after[:, :, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("plan", [Stage1Plan(), Stage1Plan(history="clean")], ids=["own", "clean"])
def test_window_of_clips_and_loss_falls(plan: Stage1Plan) -> None:
    """A window is cut so that audio and frames stay aligned, and a few steps of descent lower the loss on it."""
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 16, 20, 8, 8, generator=g).half()
    features = torch.arange(77).float().expand(4, 1, 12, 77).half()
    clips = Clips(latents, features)
    window = draw_window(clips, batch=2, blocks=4, block_frames=3, rng=random.Random(5), device="cpu", plan=plan)
    offset = int(window.features_BLCF[0, 0, 0, 0]) // 4
    assert window.features_BLCF.shape[-1] == 5 + 48
    assert any(torch.equal(window.x0_B16Fhw[0], z[:, 2 + offset : 14 + offset].float()) for z in latents)

    model = WindowModel(small_dit())
    weight = region_weight(8, 8, 4.0, 3.0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = window_loss(model, window, weight, torch.Generator().manual_seed(1))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_every_block_of_the_bidirectional_window_sees_the_others_and_checkpointing_changes_nothing() -> None:
    window = small_window(blocks=3, first_frame=600, sigma=0.8)
    model, recomputing = WindowModel(small_dit(), bidirectional=True), WindowModel(small_dit(), bidirectional=True, checkpoint_activations=True)
    x = window.x0_B16Fhw.clone()
    with torch.no_grad():
        before = model(x, window)
        x[:, :, 6:] += 1
        assert (model(x, window) - before)[:, :, :3].abs().max() > 1e-3
    grads = []
    for m in (model, recomputing):
        m(x, window).square().mean().backward()
        grads.append([p.grad for p in m.parameters() if p.grad is not None])
    assert len(grads[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
