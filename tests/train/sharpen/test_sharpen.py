"""A decoder that is trained with a critic."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.motion import FACE
from everface.train.data.vae_files import read_vae
from everface.train.engine.optimizer import Optimizer
from everface.train.sharpen.__main__ import SharpenPlan, sharpen
from everface.train.sharpen.critic import PAST, STRIDE, Critic, balanced_gradient, critic_loss, fooling_loss
from everface.train.sharpen.crops import ClipLatents, CropSize, draw_crops

MOVING = 8


def write_clips(folder: Path, count: int, side: int) -> list[Path]:
    """Clips of people whose first color is the number of the frame, the second and third the row and the column; the last is a drawn character."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    images = np.stack([np.stack([np.full_like(rows, t), rows, columns], -1) for t in range(5 + MOVING)])
    for n in range(count):
        rest = {"features": np.zeros((1, 320 + len(FACE), 5 + MOVING), np.float16), "audio": np.zeros(MOVING * 640, np.float32)}
        if n + 1 < count:
            rest["opening"] = np.linspace(0, 1, MOVING, dtype=np.float32)
        np.savez(folder / f"{n:05d}.npz", allow_pickle=False, **rest)
        np.save(folder / f"{n:05d}.npy", images)
    return sorted(folder.glob("*.npy"))


def test_a_critic_learns_to_tell_soft_crops_from_sharp_ones() -> None:
    torch.manual_seed(0)
    critic = Critic(8)
    optimizer, g = Optimizer(critic, betas=(0.5, 0.99), muon=False), torch.Generator().manual_seed(0)

    def crops() -> tuple[torch.Tensor, torch.Tensor]:
        sharp = torch.randn(2, 3, PAST + 1, 32, 32, generator=g).clamp(-1, 1)
        return sharp, torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))

    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = critic_loss(critic, *crops())
        loss.backward()
        optimizer.step(4e-3)
        losses.append(loss.item())
    assert losses[0] > 1.8 and max(losses[-5:]) < 1
    sharp, soft = crops()
    assert critic(sharp).shape == (2, 1, 1, 32 // STRIDE, 32 // STRIDE)
    weight = torch.zeros(2, 1, 1, 32, 32)
    assert fooling_loss(critic, soft, weight).item() == 0 and fooling_loss(critic, soft, weight + 1) > fooling_loss(critic, sharp, weight + 1)


def test_the_critics_gradient_has_a_share_of_the_others_norm() -> None:
    pixels = torch.randn(50, requires_grad=True)
    first, second = torch.randn(2, 50)
    got = balanced_gradient((first * pixels).sum(), 1000 * (second * pixels).sum(), pixels, 0.5) - first
    assert got.norm().item() == pytest.approx(0.5 * first.norm().item(), rel=1e-4)
    assert torch.nn.functional.cosine_similarity(got, second, 0).item() == pytest.approx(1, abs=1e-4)


def test_crops_and_latents_are_of_the_same_place_and_time(tmp_path: Path) -> None:
    clips, cell, side = write_clips(tmp_path / "frames", 3, 128), 16, 64
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    known = [torch.stack([torch.stack([torch.full_like(rows, t), rows, columns]) for t in range(4)], 1).half() for _ in clips]
    latents = ClipLatents({f"{n:05d}": z for n, z in enumerate(known)}, {f"{n:05d}": known[n][:, 2:] + 100 for n in range(2)})
    seen = set()
    for seed in range(20):
        z, true = draw_crops(tmp_path / "frames", latents, CropSize(2, side, 1), cell, random.Random(seed))
        assert z.shape == (2, 3, 3, side // cell, side // cell) and true.shape == (2, 3, 5, side, side)
        pixels = (true + 1) * 127.5
        for one_z, one in zip(z, pixels, strict=True):
            before, latent = one_z[0, 1:, 0, 0].tolist()
            seen.add((before, latent))
            number = latent % 100
            assert one_z[0, 0, 0, 0] == 0 and number in (2, 3)
            assert one[0, :, 0, 0].round().tolist() == [4 * (number - 1) + t for t in range(5)]  # frame 1 + 4 (k - 1) is the first of latent k
            assert one[1:, 0, 0, 0].round().tolist() == (cell * (one_z[1:, 0, 0, 0])).tolist()
    assert seen == {(1, 2), (2, 3), (1, 102), (102, 103)}


@pytest.mark.long
def test_the_bundled_decoder_is_trained_in_two_calls(tmp_path: Path) -> None:
    frames, run = tmp_path / "frames", tmp_path / "run"
    write_clips(frames, 9, 256)
    plan = SharpenPlan(iterations=3, held_out=1, critic_from=0.3, crops=CropSize(2, 64))
    assert not sharpen(run, DEFAULT_WEIGHTS, frames, plan, "cpu", time.monotonic())
    assert not (run / "model").exists()
    for kind in ("npz", "npy"):  # another clip is rendered meanwhile, out of turn
        (frames / f"00000a.{kind}").write_bytes((frames / f"00003.{kind}").read_bytes())
    made = load_file(run / "latents.safetensors")
    assert len([n for n in made if n.startswith("known.")]) == 8 and len([n for n in made if n.startswith("made.")]) == 7
    assert sharpen(run, DEFAULT_WEIGHTS, frames, plan, "cpu")
    before, after = (load_file(folder / "vae.safetensors") for folder in (DEFAULT_WEIGHTS, run / "model"))
    assert before.keys() == after.keys() and all(before[n].dtype == after[n].dtype for n in before)
    changed = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"decoder", "conv2"}
    assert isinstance(read_vae(run / "model").config, VAEConfig) and (run / "model" / "config.json").read_text() == (DEFAULT_WEIGHTS / "config.json").read_text()


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    write_clips(tmp_path / "frames", 3, 32)
    with pytest.raises(BadInput, match="has 2 rendered clips to learn from, and 8 are needed"):
        sharpen(tmp_path / "run", DEFAULT_WEIGHTS, tmp_path / "frames", SharpenPlan(held_out=1), "cpu")
