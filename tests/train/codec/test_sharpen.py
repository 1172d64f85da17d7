"""The decoder against a critic of patches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.miniature import SMALL_VAE

from everface.networks.video.vae import VAE
from everface.train.codec.model import new_vae
from everface.train.codec.sharpen import PatchCritic, SharpenPlan, balanced_gradient, critic_loss, sharpen
from everface.train.codec.training import write_vae
from everface.train.data.clips import STILL_FRAMES, STILL_LATENTS, Clips

CLIPS, MOVING = 3, 6
PLAN = SharpenPlan(iterations=4, critic_alone=2, critic_width=4)


@pytest.fixture
def clips() -> Clips:
    torch.manual_seed(0)
    return Clips(torch.randn(CLIPS, 16, STILL_LATENTS + MOVING, 8, 8), torch.zeros(CLIPS, 1, 1, 1))


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (CLIPS, 3, STILL_FRAMES + 4 * MOVING, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vae_run(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    (tmp_path / "vae").mkdir()
    write_vae(tmp_path / "vae", new_vae(SMALL_VAE).state_dict(), SMALL_VAE)
    return tmp_path / "vae"


def test_the_decoder_changes_once_the_critic_has_learned(clips: Clips, frames: torch.Tensor, vae_run: Path, tmp_path: Path) -> None:
    run, asked = tmp_path / "run", []

    def measure(vae: VAE) -> dict[str, float]:
        asked.append(vae)
        return {"psnr": 1.0}

    before = load_file(vae_run / "vae.safetensors")
    alone = SharpenPlan(iterations=2, critic_alone=2, critic_width=4)
    assert sharpen(run, vae_run, clips, frames, alone, "cpu", measure) == 1
    assert all(torch.equal(t, before[n]) for n, t in load_file(run / "vae.safetensors").items())
    assert sharpen(run, vae_run, clips, frames, PLAN, "cpu", measure) == 1  # goes on
    after = load_file(run / "vae.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(("encoder.", "conv1.")))
    assert not torch.equal(before["decoder.head.2.weight"], after["decoder.head.2.weight"])
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and {"critic", "loss"} <= rows[-1].keys() and not asked


def test_a_critic_learns_to_tell_soft_from_sharp() -> None:
    torch.manual_seed(0)
    critic, sharp = PatchCritic(8), torch.rand(2, 3, 4, 32, 32) * 2 - 1
    soft = torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))
    assert critic(sharp).shape == (6, 1, 4, 4)
    optimizer, first = torch.optim.Adam(critic.parameters(), 2e-3), critic_loss(critic, sharp, soft).item()
    for _ in range(60):
        optimizer.zero_grad()
        critic_loss(critic, sharp, soft).backward()
        optimizer.step()
    assert critic_loss(critic, sharp, soft).item() < 0.5 * first and critic(sharp).mean() > critic(soft).mean()


def test_the_critic_is_heard_as_much_as_the_plan_says() -> None:
    made = torch.randn(2, 3, requires_grad=True)
    a, b = made.square().sum(), 1e-4 * made.sum()
    gradient = balanced_gradient(made, a, b, 0.5)
    part = gradient - 2 * made.detach()
    assert torch.allclose(part.norm(), (2 * made.detach()).norm() / 2) and (part > 0).all()
    assert torch.equal(balanced_gradient(made, a, 0 * made.sum(), 0.5), 2 * made.detach())
