"""The VAE: its loss at the edges of latents, its crops, and a miniature run, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.core.config import VAEConfig
from everface.networks.video.vae import VAE
from everface.train.codec.crops import draw_crops
from everface.train.codec.loss import codec_loss, motion_weight, reconstruction_quality
from everface.train.codec.model import TINY_VAE
from everface.train.codec.vae import VAEPlan, train_vae


def test_a_lost_color_costs_more_than_as_much_of_light() -> None:
    video = torch.zeros(1, 3, 5, 16, 16)

    def extra(*rgb: float, sign: torch.Tensor | None = None) -> float:
        out = torch.tensor(rgb).view(1, 3, 1, 1, 1).expand_as(video) * (1 if sign is None else sign)
        one = torch.ones(1, 1, 1, 1, 1)
        return (codec_loss(out, video, one, color_weight=1.0) - codec_loss(out, video, one)).item()

    checkered = (-1.0) ** torch.arange(16).add(torch.arange(16)[:, None])
    assert extra(0.1, 0.1, 0.1) == pytest.approx(0) and extra(0.1, -0.1, 0.1, sign=checkered) == pytest.approx(0, abs=1e-6)
    assert extra(0.05, -0.1, 0.05) > 0.5 > 0.05 > extra(0.01, -0.02, 0.01) > 0
    gray, green = (reconstruction_quality(video + torch.tensor(rgb).view(1, 3, 1, 1, 1), video) for rgb in ((0.1, 0.1, 0.1), (0.05, -0.1, 0.05)))
    assert gray["psnr"] < green["psnr"] and gray["color"] > 100 > 30 > green["color"]


def test_what_moves_weighs_more_wherever_it_is() -> None:
    video = torch.zeros(2, 3, 8, 48, 48)
    video[0, :, ::2, 8:24, 8:24] = 1.0
    video[1, :, ::2, 30:40] = 0.04  # grain of a sensor is less than a movement
    moving, still = (motion_weight(one[None], 15.0)[0] for one in video)
    assert torch.equal(still, torch.ones_like(still)) and moving.mean().item() == pytest.approx(1)
    assert moving[0, 0, 16, 16] / moving[0, 0, 40, 40] == pytest.approx(16)


def test_a_jump_between_latents_costs_more_than_one_inside() -> None:
    """An error that begins with frame `at`: frame 0 is a latent of its own, or the first of four inside a stream."""

    def cost(at: int, lead: int, edge_weight: float = 3.0) -> float:
        out = torch.zeros(1, 3, 13, 4, 4)
        out[:, :, at:] = 0.1
        loss = codec_loss(out, torch.zeros_like(out), torch.ones(1, 1, 1, 1, 1), lead, edge_weight)
        return loss.item() - 0.5 * (13 - at) / 13  # without the part that depends on its length

    for lead, edges in ((1, (1, 5, 9)), (0, (4, 8, 12))):
        costs = {at: cost(at, lead) for at in range(1, 13)}
        inside = min(costs.values())
        assert all((value > inside + 0.02) == (at in edges) for at, value in costs.items()), costs
    assert cost(5, 1, edge_weight=6.0) - cost(6, 1) == pytest.approx(2.5 * (cost(5, 1) - cost(6, 1)))


def test_crops_reach_the_edges_of_the_image() -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    clips = torch.stack([y, x, y]).to(torch.uint8)[None, :, None].expand(2, 3, 21, 128, 128)
    g = torch.Generator().manual_seed(3)
    lowest = []
    for _ in range(200):
        video, _ = draw_crops(clips, torch.ones(128, 128), False, g)
        if video.shape[-1] == 64:  # the larger ones reach them anyway
            lowest += ((video[:, 0, 0].amax((1, 2)) + 1) * 127.5).round().int().tolist()
    assert min(lowest) == 63 and max(lowest) == 127  # whole rows of the image, never beyond it
    assert sum(row == 127 for row in lowest) > 0.06 * len(lowest)  # a 65th if drawn evenly


@pytest.mark.long
def test_vae_training_lowers_the_loss_resumes_and_leaves_a_model(tmp_path: Path) -> None:
    config = replace(TINY_VAE, dim=4, dim_mult=(1, 2, 2, 2))
    plan = VAEPlan(iterations=3, clips=16, held_out=4, single_frames=1.0, warmup_steps=2)
    train_vae(tmp_path, plan, config)
    path = train_vae(tmp_path, replace(plan, iterations=24), config)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 24]
    assert rows[1]["loss"] < rows[0]["loss"] and rows[1]["psnr"] > rows[0]["psnr"] > 5
    VAE(VAEConfig.from_dict(json.loads((tmp_path / "vae.json").read_text()))).load_state_dict(load_file(path), strict=True)
    assert (tmp_path / "log.png").exists()
