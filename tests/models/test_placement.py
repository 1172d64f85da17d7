"""The central promise: whatever the placement, the stream is the sequential one, bit for bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.models.latents import MODEL

from everface.core.config import Deployment, StreamConfig
from everface.media.image import fit_image, read_image
from everface.models.live_avatar.builders import build_conditioner, build_dit
from everface.models.live_avatar.conditions import Noise
from everface.models.live_avatar.model import LiveAvatar
from everface.networks.transformer.schedule import Schedule, sink_distance
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

BLOCKS, SEED, LATENT = 12, 11, (16, 8, 8)
STREAM = StreamConfig(seed=SEED)
DEPLOYMENT = Deployment(threads=1, timeout_s=240)


def sound() -> torch.Tensor:
    return 0.1 * torch.randn(BLOCKS * 12 * 640, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def sequential(model: Path, face: Path, sampler: str) -> torch.Tensor:
    """Block after block, step after step, in plain Python without the runtime. Returns latents [blocks, 16, 3, h, w]."""
    conditioner = build_conditioner(model, None, DEPLOYMENT)
    _, dit = build_dit(model, None, DEPLOYMENT)
    opening = conditioner.initial_state(fit_image(read_image(face), (64, 64)), STREAM)
    schedule, noise = Schedule.for_sampler(sampler), Noise(SEED, LATENT, 3, 4)
    text_kv = dit.text_kv(dit.embed_text(opening["text"]))
    caches = [dit.new_cache(8, 8) for _ in range(schedule.steps)]
    pcm = torch.cat([torch.zeros(conditioner.lookback_samples), sound()])
    reference, out = opening["reference"], []
    for b in range(BLOCKS):
        if b in (0, 4):
            reference = reference if b == 0 else out[0][:, :1]
            for cache in caches:
                cache.prime(*dit.prefill_sink(reference, opening["motion"], text_kv))
        window = pcm[b * 7680 : b * 7680 + conditioner.lookback_samples + 7680]
        tokens = conditioner.block(window, "everface")
        audio = tokens["audio_local"], tokens["audio_global"]
        x = noise(b)
        for s, t in enumerate(schedule.timesteps):
            v = dit(x, dit.time(t), text_kv, audio, caches[s], block_index=b, sink_distance=sink_distance(SEED, b, s))
            x = schedule.advance(x, v, s)
        out.append(x)
    return torch.stack(out)


def streamed(model: Path, face: Path, placement: str, sampler: str, refresh: bool = True) -> torch.Tensor:
    """The same through stages, transports and a session."""
    stream = StreamConfig(seed=SEED, sampler=sampler, refresh_sink=refresh)
    live_avatar = LiveAvatar(model, None, DEPLOYMENT)
    placed = place(live_avatar.roles(stream), placement)
    with closing(Scheduler(start_pipeline(placed, MODEL, live_avatar.spec(stream), DEPLOYMENT))) as scheduler:
        session = scheduler.open_session(live_avatar.session(face, stream)).wait_open()
        assert session.push_audio(sound())
        session.end_segment()
        parts = [block.frames_THW3.flatten().view(torch.float32).reshape(16, 3, 8, 8) for block in session.frames()]
    return torch.stack(parts)


@pytest.fixture(scope="module")
def truth(small_model: Path, face: Path) -> torch.Tensor:
    return sequential(small_model, face, "official")


@pytest.mark.parametrize("placement", ["inline", "2", *(pytest.param(n, marks=pytest.mark.long) for n in "34"), "5"])
def test_every_placement_computes_the_sequential_bits(small_model: Path, face: Path, truth: torch.Tensor, placement: str) -> None:
    latents = streamed(small_model, face, placement, "official")
    assert latents.shape == truth.shape == (BLOCKS, 16, 3, 8, 8)
    assert torch.isfinite(truth).all() and truth.std() > 0.1
    assert torch.equal(latents, truth), f"largest difference {(latents - truth).abs().max():.3g}"


def test_skip_null_in_four_processes(small_model: Path, face: Path) -> None:
    assert torch.equal(streamed(small_model, face, "4", "skip-null"), sequential(small_model, face, "skip-null"))


def test_the_sink_refresh_matters(small_model: Path, face: Path, truth: torch.Tensor) -> None:
    """Without it the first clip is the same and everything after differs: the equality above includes the refresh."""
    without = streamed(small_model, face, "inline", "official", refresh=False)
    assert torch.equal(without[:4], truth[:4])
    assert not torch.equal(without[4], truth[4])


def test_correlated_noise_is_normal_and_follows_itself() -> None:
    plain, slow = Noise(SEED, LATENT, 3, 4), Noise(SEED, LATENT, 3, 4, correlation=0.9)
    assert torch.equal(slow(0)[:, 0], plain(0)[:, 0])  # the first frame has nothing to follow
    frames = torch.cat([slow(b) for b in range(1, 40)], dim=1)
    assert abs(frames.std().item() - 1) < 0.05
    a, b = frames[:, :-1].flatten(), frames[:, 1:].flatten()
    assert abs((a * b).mean().item() - 0.9) < 0.05
    again = Noise(SEED, LATENT, 3, 4, correlation=0.9)
    again(0)
    assert torch.equal(again(1), frames[:, :3])  # the seed decides
