"""The trainer's window and the runtime's stream are the same function; the data and the loss make sense."""

from __future__ import annotations

import random

import torch

from everface.core.config import DiTConfig
from everface.model.dit import DiT
from everface.train.clips import Clips
from everface.train.forcing import Window, WindowModel, draw_sigmas, draw_window, region_weight, window_loss

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
        draw(1, 1, 12, 5 + 12 * blocks), first_frame, 11,
    )  # fmt: skip


def test_window_equals_stream() -> None:
    """Six blocks at one noise level: the parallel window and the ring of the runtime give the same velocities."""
    dit, window = small_model(), small_window(blocks=6, first_frame=0, sigma=0.6)
    with torch.no_grad():
        parallel = WindowModel(dit)(window.x0_B16Fhw, window)[0]
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, 8)))
        cache = dit.new_cache(8, 8)
        sink_k, sink_v = dit.prefill_sink(window.reference_B16_1hw[0], window.motion_B16Thw[0], text_kv)
        cache.sink_k_LCHd.copy_(sink_k)
        cache.sink_v_LCHd.copy_(sink_v)
        for b in range(6):
            features = window.features_BLCF[0, :, :, 12 * b : 12 * b + 17]
            audio = dit.casual_audio_encoder.encode_block(features[..., 5:], features[..., :5])
            x = window.x0_B16Fhw[0, :, 3 * b : 3 * b + 3]
            v = dit(x, dit.time(600.0), text_kv, audio, cache, block_index=b, sink_distance=11)
            torch.testing.assert_close(v, parallel[:, 3 * b : 3 * b + 3], atol=2e-5, rtol=1e-4)


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


def test_window_of_clips_and_loss_falls() -> None:
    """A window is cut so that sound and picture stay aligned, and a few steps of descent lower the loss on it."""
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 16, 20, 8, 8, generator=g).half()
    features = torch.arange(77).float().expand(4, 1, 12, 77).half()
    clips = Clips(latents, features)
    window = draw_window(clips, batch=2, blocks=4, block_frames=3, rng=random.Random(5), device="cpu")
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
    sigma = draw_sigmas(400, 5, random.Random(0))
    known = torch.tensor([1.0, 0.8576923, 0.6021505, 0.0089286])
    on_level = (sigma[..., None] - known).abs().min(-1).values < 1e-6
    assert 0.78 < on_level.float().mean() < 0.92
    assert (sigma == sigma[:, :1]).all(1).float().mean() > 0.45
    assert sigma.min() >= 0 and sigma.max() <= 1
