"""The optimiser, the average and the checkpoint; then both training loops at miniature size, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.pretrain.test_windows import SMALL
from torch import nn

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.model.dit import DiT
from everface.model.vae import VAE
from everface.train.codec.vae import TINY_VAE, VAEPlan, draw_batch, grown, new_vae, train_vae, vae_loss
from everface.train.engine.optimizer import Ema, Optimiser, Progress, orthogonalise, read_checkpoint, write_checkpoint
from everface.train.pretrain.plans import Stage1
from everface.train.pretrain.stage1 import train_stage1
from everface.weights.load import load_into


def test_orthogonalise_evens_out_the_singular_values() -> None:
    g = torch.Generator().manual_seed(0)
    for rows, cols in ((16, 48), (48, 16), (32, 32)):
        x = torch.randn(3, rows, cols, generator=g) * torch.logspace(0, -1, cols)
        values = torch.linalg.svdvals(orthogonalise(x))
        assert values.max() < 1.35 and values.median() > 0.6
        assert torch.linalg.svdvals(x).max() / torch.linalg.svdvals(x).min() > values.max() / values.min()


def test_a_jump_between_latents_costs_more_than_one_inside() -> None:
    """An error that sets in with frame `at`: frame 0 is a latent of its own, or the first of four where a stream goes on."""

    def cost(at: int, lead: int, seams: float = 3.0) -> float:
        out = torch.zeros(1, 3, 13, 4, 4)
        out[:, :, at:] = 0.1
        loss = vae_loss(out, torch.zeros_like(out), torch.ones(1, 1, 1, 1, 1), lead, seams)
        return loss.item() - 0.5 * (13 - at) / 13  # but for its length

    for lead, seams in ((1, (1, 5, 9)), (0, (4, 8, 12))):
        costs = {at: cost(at, lead) for at in range(1, 13)}
        inside = min(costs.values())
        assert all((value > inside + 0.02) == (at in seams) for at, value in costs.items()), costs
    assert cost(5, 1, seams=6.0) - cost(6, 1) == pytest.approx(2.5 * (cost(5, 1) - cost(6, 1)))


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 12))
    x = torch.randn(64, 12)
    return net, x, torch.tanh(x.flip(1)) + x.roll(3, 1)


def descend(net: nn.Module, x: torch.Tensor, y: torch.Tensor, optimiser: Optimiser, ema: Ema, steps: int) -> float:
    for _ in range(steps):
        loss = (net(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(2e-2)
        ema.update(net)
    return loss.item()


def test_descent_and_a_checkpoint_that_goes_on_bit_for_bit(tmp_path: Path) -> None:
    net, x, y = problem()
    optimiser, ema = Optimiser(net), Ema(net, 0.9)
    first = descend(net, x, y, optimiser, ema, 1)
    descend(net, x, y, optimiser, ema, 39)
    write_checkpoint(tmp_path, net, ema, optimiser, Progress(40, 12.5))
    last = descend(net, x, y, optimiser, ema, 10)
    assert last < 0.2 * first

    other, _, _ = problem()
    optimiser_2, ema_2 = Optimiser(other), Ema(other, 0.9)
    assert read_checkpoint(tmp_path, other, ema_2, optimiser_2) == Progress(40, 12.5)
    assert descend(other, x, y, optimiser_2, ema_2, 10) == last
    for n, p in net.named_parameters():
        assert torch.equal(p, other.get_parameter(n)) and torch.equal(ema.weights[n], ema_2.weights[n])


def test_swapped_weights_come_back() -> None:
    net, x, y = problem()
    ema = Ema(net, 0.9)
    descend(net, x, y, Optimiser(net), ema, 5)
    own = net(x)
    with ema.swapped(net):
        assert not torch.equal(net(x), own)
    assert torch.equal(net(x), own)


def test_vae_training_falls_resumes_and_leaves_a_model(tmp_path: Path) -> None:
    config = replace(TINY_VAE, dim=4, dim_mult=(1, 2, 2, 2))
    plan = VAEPlan(iterations=3, clips=16, unseen=4, singles=1.0, warmup_steps=2)
    train_vae(tmp_path, plan, config)
    path = train_vae(tmp_path, replace(plan, iterations=24), config)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 24]
    assert rows[1]["loss"] < rows[0]["loss"] and rows[1]["psnr"] > rows[0]["psnr"] > 5
    VAE(VAEConfig.from_dict(json.loads((tmp_path / "vae.json").read_text()))).load_state_dict(load_file(path), strict=True)
    assert (tmp_path / "log.png").exists()


def test_a_deeper_encoder_begins_as_the_one_it_goes_on_from() -> None:
    config = VAEConfig(dim=4, dim_mult=(1, 2, 2, 2), encoder_blocks=(1, 0, 1, 1), decoder_blocks=(1, 0, 0, 1))
    torch.manual_seed(5)
    old, deep = VAE(config), new_vae(replace(config, encoder_blocks=(2, 0, 3, 2)))
    load_into(deep, grown(old.state_dict(), deep))
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    z = old.encode(video)
    assert torch.equal(deep.encode(video), z) and torch.equal(deep.decode(z), old.decode(z))
    with pytest.raises(BadInput, match="can be deepened, not cut"):
        grown(deep.state_dict(), old)
    torch.manual_seed(6)
    for p in deep.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    assert not torch.allclose(deep.encode(video), z, atol=0.1)


def test_crops_reach_the_edges_of_the_picture() -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    clips = torch.stack([y, x, y]).to(torch.uint8)[None, :, None].expand(2, 3, 21, 128, 128)
    g = torch.Generator().manual_seed(3)
    lowest = []
    for _ in range(200):
        video, _ = draw_batch(clips, torch.ones(128, 128), False, g)
        if video.shape[-1] == 64:  # the larger ones reach them anyway
            lowest += ((video[:, 0, 0].amax((1, 2)) + 1) * 127.5).round().int().tolist()
    assert min(lowest) == 63 and max(lowest) == 127  # whole rows of the picture, never beyond it
    assert sum(row == 127 for row in lowest) > 0.06 * len(lowest)  # a 65th if drawn evenly


def test_stage1_falls_resumes_and_leaves_a_model(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    clips = {"latents": torch.randn(80, 16, 18, 8, 8, generator=g).half(), "features": torch.randn(80, 1, 12, 69, generator=g).half()}
    (tmp_path / "clips").mkdir()
    save_file(clips, tmp_path / "clips" / "00000.safetensors")
    plan = Stage1(iterations=12, warmup_steps=3, curriculum=((0.0, 2, 2), (0.5, 5, 1)))
    train_stage1(tmp_path / "run", tmp_path / "clips", plan, SMALL)
    path = train_stage1(tmp_path / "run", tmp_path / "clips", replace(plan, iterations=24), SMALL)
    DiT(SMALL).load_state_dict(load_file(path), strict=True)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["block_frames"] == SMALL.block_frames
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [12, 24] and rows[1]["loss"] < rows[0]["loss"]
