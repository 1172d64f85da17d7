"""The trainer's window and the runtime's stream are the same function; the data and the loss make sense."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from everface.core.config import DiTConfig
from everface.model.dit import DiT
from everface.model.rope import SINK_TIME, sink_time
from everface.model.schedule import sigmas
from everface.train.data.clips import Clips
from everface.train.pretrain.plans import Stage1
from everface.train.pretrain.windows import (
    Window,
    WindowModel,
    draw_noise,
    draw_sigmas,
    draw_window,
    noised_past,
    region_weight,
    window_loss,
)

SMALL = DiTConfig(
    dim=48, ffn_dim=64, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=1, audio_dim=12, audio_inject_layers=(0, 2),
    wav2vec_layers=1,
)  # fmt: skip


def small_model(seed: int = 0) -> DiT:
    torch.manual_seed(seed)
    dit = DiT(SMALL)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return dit.eval()


def small_window(blocks: int, first_frame: int, sigma: float) -> Window:
    g = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    return Window(
        draw(1, 16, 3 * blocks, 8, 8), torch.full((1, blocks), sigma), draw(1, 16, 1, 8, 8), draw(1, 16, 19, 8, 8),
        draw(1, 1, 12, 5 + 12 * blocks), first_frame, tuple(range(11, 11 + blocks)),
    )  # fmt: skip


@pytest.mark.parametrize(("history", "sigma"), [("own", 0.6), ("clean", 0.0), ("fixed", 0.557)])
def test_window_equals_stream(history: str, sigma: float) -> None:
    """Six blocks at one noise level: the parallel window gives the velocities of the runtime's ring, filled by the blocks themselves
    or, for the ablation's histories, by a pass of its own after each."""
    dit, window = small_model(), small_window(blocks=6, first_frame=0, sigma=0.6)
    past = None
    if history != "own":
        past = torch.randn(window.x0_B16Fhw.shape, generator=torch.Generator().manual_seed(8))
        window = replace(window, past_B16Fhw=past, past_sigma=Stage1(history=history, history_sigma=sigma).past_sigma)
        assert window.past_sigma == sigma
    with torch.no_grad():
        parallel = WindowModel(dit)(window.x0_B16Fhw, window)[0]
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, 8)))
        cache = dit.new_cache(8, 8)
        cache.prime(*dit.prefill_sink(window.reference_B16_1hw[0], window.motion_B16Thw[0], text_kv))
        for b in range(6):
            features = window.features_BLCF[0, :, :, 12 * b : 12 * b + 17]
            audio = dit.casual_audio_encoder.encode_block(features[..., 5:], features[..., :5])
            block = slice(3 * b, 3 * b + 3)
            v = dit(window.x0_B16Fhw[0, :, block], dit.time(600.0), text_kv, audio, cache, block_index=b, sink_distance=11 + b)
            torch.testing.assert_close(v, parallel[:, block], atol=2e-5, rtol=1e-4)
            if past is not None:
                dit(past[0, :, block], dit.time(1000 * sigma), text_kv, audio, cache, block_index=b, sink_distance=11 + b)


def test_a_student_of_another_way_is_trained_for_it() -> None:
    """Each of the ablation's fields bends the windows as it bends the stream, and nothing else of them."""
    g = torch.Generator().manual_seed(0)
    clips = Clips(torch.randn(4, 16, 20, 8, 8, generator=g).half(), torch.randn(4, 1, 12, 77, generator=g).half())

    def drawn(seed: int, **ways: Any) -> Window:
        return draw_window(clips, 2, 4, 3, random.Random(seed), "cpu", Stage1(near=0.0, **ways))

    def differing(seed: int, **ways: Any) -> set[str]:
        plain, bent = asdict(drawn(seed)), asdict(drawn(seed, **ways))
        return {k for k in plain if not (torch.equal(plain[k], bent[k]) if isinstance(plain[k], torch.Tensor) else plain[k] == bent[k])}

    window = drawn(0, rolling=False)
    assert {sink_time(window.first_frame + 3 * b, d) for b, d in enumerate(window.sink_distances)} == {SINK_TIME}
    assert differing(0, rolling=False) == {"sink_distances"}
    clean, fixed = drawn(0, history="clean"), drawn(0, history="fixed", history_sigma=0.557)
    assert clean.past_B16Fhw is not None and fixed.past_B16Fhw is not None
    assert torch.equal(clean.past_B16Fhw, clean.x0_B16Fhw) and clean.past_sigma == 0.0
    noise = (fixed.past_B16Fhw - 0.443 * fixed.x0_B16Fhw) / 0.557
    assert fixed.past_sigma == 0.557 and abs(noise.std() - 1) < 0.02 and abs((noise * fixed.x0_B16Fhw).mean()) < 0.02
    references = [drawn(seed, refresh=refresh).reference_B16_1hw for refresh in (True, False) for seed in range(40)]
    still = clips.latents_N16Thw[:, :, :1].float()
    moving = [not any(torch.equal(r, s) for r in rows for s in still) for rows in references]
    assert sum(moving[:40]) > 10 and not any(moving[40:])
    for steps in (2, 3):
        sigma = draw_sigmas(400, 5, random.Random(0), Stage1(steps=steps, on_levels=1.0))
        assert set(sigma.unique().tolist()) == set(torch.tensor(sigmas(steps)[:-1]).tolist())
        assert 0.01 < (sigma == sigma.min()).float().mean() < 0.08


def test_later_blocks_do_not_leak() -> None:
    """Changing the last block changes nothing before it, and does change itself."""
    model, window = WindowModel(small_model()), small_window(blocks=3, first_frame=600, sigma=0.8)
    x = window.x0_B16Fhw.clone()
    with torch.no_grad():
        before = model(x, window)
        x[:, :, 6:] += 1
        after = model(x, window)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert (before[:, :, 6:] - after[:, :, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("plan", [Stage1(), Stage1(history="clean")], ids=["own", "clean"])
def test_window_of_clips_and_loss_falls(plan: Stage1) -> None:
    """A window is cut so that sound and picture stay aligned, and a few steps of descent lower the loss on it."""
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 16, 20, 8, 8, generator=g).half()
    features = torch.arange(77).float().expand(4, 1, 12, 77).half()
    clips = Clips(latents, features)
    window = draw_window(clips, batch=2, blocks=4, block_frames=3, rng=random.Random(5), device="cpu", plan=plan)
    offset = int(window.features_BLCF[0, 0, 0, 0]) // 4
    assert window.features_BLCF.shape[-1] == 5 + 48
    assert any(torch.equal(window.x0_B16Fhw[0], z[:, 2 + offset : 14 + offset].float()) for z in latents)

    model = WindowModel(small_model())
    weight = region_weight(8, 8)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = window_loss(model, window, weight, torch.Generator().manual_seed(1))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_sigmas_are_mostly_the_samplers() -> None:
    sigma = draw_sigmas(400, 5, random.Random(0), Stage1())
    known = torch.tensor([1.0, 0.8576923, 0.6021505, 0.0089286])
    on_level = (sigma[..., None] - known).abs().min(-1).values < 1e-6
    assert 0.78 < on_level.float().mean() < 0.92
    assert (sigma == sigma[:, :1]).all(1).float().mean() > 0.45
    assert sigma.min() >= 0 and sigma.max() <= 1


def test_the_papers_levels_are_independent_and_anywhere() -> None:
    sigma = draw_sigmas(400, 7, random.Random(0), Stage1(on_levels=0.0, shared=0.0))
    assert (sigma == sigma[:, :1]).all(1).sum() == 0
    assert abs(torch.corrcoef(sigma.T)[0, 1:]).max() < 0.15
    u = sigma / (3 - 2 * sigma)  # unshifted: uniform
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005


def test_noise_that_changes_slowly_is_normal_in_every_frame() -> None:
    noise = draw_noise(torch.Size((4, 16, 9, 16, 16)), torch.Generator().manual_seed(0), 0.8)
    assert (noise.std(dim=(0, 1, 3, 4)) - 1).abs().max() < 0.03
    following = (noise[:, :, 1:] * noise[:, :, :-1]).mean(dim=(0, 1, 3, 4))
    assert (following - 0.8).abs().max() < 0.03


def test_the_scaffold_noises_every_motion_frame_on_its_own() -> None:
    past = torch.arange(1.0, 9.0)[None, None, :, None, None].expand(2, 16, 8, 12, 12)
    motion = noised_past(past, random.Random(0))
    assert motion.shape == (2, 16, 19, 12, 12)
    sigma = motion.std(dim=(1, 3, 4))  # of a flat picture, the noise alone
    assert sigma.min() < 0.25 and sigma.max() > 0.75 and (sigma[:, 1:] - sigma[:, :-1]).abs().min() > 1e-4
    clean = motion.mean(dim=(1, 3, 4)) / (1 - sigma)
    good = sigma < 0.5
    truth = torch.cat([torch.ones(12), torch.arange(2.0, 9.0)]).expand(2, -1)  # the first is repeated, the newest comes last
    assert (clean - truth)[good].abs().max() < 0.2


def test_every_block_of_the_full_window_sees_the_others_and_checkpointing_changes_nothing() -> None:
    window = small_window(blocks=3, first_frame=600, sigma=0.8)
    model, again = WindowModel(small_model(), full=True), WindowModel(small_model(), full=True, again=True)
    x = window.x0_B16Fhw.clone()
    with torch.no_grad():
        before = model(x, window)
        x[:, :, 6:] += 1
        assert (model(x, window) - before)[:, :, :3].abs().max() > 1e-3
    grads = []
    for m in (model, again):
        m(x, window).square().mean().backward()
        grads.append([p.grad for p in m.parameters() if p.grad is not None])
    assert len(grads[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
