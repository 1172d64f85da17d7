"""The decoder alone on long streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.miniature import SMALL_VAE, write_hum

from everface.core.errors import BadInput
from everface.networks.video.vae import VAE
from everface.train.codec import decoder
from everface.train.codec.decode_stream import WARM_UP_LATENTS, interleave_streams
from everface.train.codec.decoder import DecoderPlan, train_decoder
from everface.train.codec.loss import codec_loss
from everface.train.data.clips import STILL_FRAMES, STILL_LATENTS, Clips
from everface.train.data.generate import make_data
from everface.train.data.vae_files import read_vae
from everface.train.engine.plan import with_settings


def test_training_changes_the_decoder_and_leaves_the_encoder(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the latents of the clips stay valid, to the bit."""
    write_hum(tmp_path / "data" / "speech")
    (tmp_path / "data" / "speech" / "complete").touch()
    make_data(tmp_path / "data", vae_run, count=1, seed=5, minutes=1)
    weights: list[float] = []

    def loss(*args: Any, **more: Any) -> torch.Tensor:
        weights.append(more["edge_weight"])
        return codec_loss(*args, **more)

    monkeypatch.setattr(decoder, "codec_loss", loss)
    plan = with_settings(DecoderPlan(minutes=0.04, seed=5), "decoder", ["clips=1", "edge_weight=2.5"])
    before, after = load_file(vae_run / "vae.safetensors"), load_file(train_decoder(tmp_path / "run", vae_run, tmp_path / "data", plan))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith(("encoder.", "conv1.")))
    assert not torch.equal(before["decoder.head.2.weight"], after["decoder.head.2.weight"])
    assert read_vae(tmp_path / "run").config == read_vae(vae_run).config
    assert weights and set(weights) == {2.5}
    with pytest.raises(BadInput, match="decoder has no field 'edge': choose one of clips, decay_from"):
        with_settings(plan, "decoder", ["edge=2"])


def test_streams_of_the_decoder_run_as_the_runtime_decodes_them() -> None:
    """Two latents at a time, from the still image on: the same frames as in one call, none missing, none twice."""
    torch.manual_seed(0)
    vae = VAE(SMALL_VAE)
    latents, count = torch.randn(3, 16, STILL_LATENTS + 4, 4, 4), STILL_FRAMES + 16
    clips = Clips(latents, torch.zeros(3, 1, 1, 1))
    frames = (torch.arange(count) + 30 * torch.arange(3)[:, None]).to(torch.uint8)[:, None, :, None, None].expand(3, 3, count, 32, 32)
    under_way = interleave_streams(vae, clips, frames[1:], 1, seed=0, device="cpu")
    first = next(under_way)
    out, seen = [], []
    while not first.is_over():
        made, truth = first.step(vae, 0.0, torch.Generator())
        out.append(made[:, :, 1:].detach())
        seen.append(truth[:, 0, :, 0, 0].add(1).mul(127.5).round().int())
        assert made.requires_grad and not made[:, :, :1].detach().isnan().any()
    still = torch.cat([first.z_B16Thw[:, :, :1], first.z_B16Thw[:, :, 1:2].expand(-1, -1, WARM_UP_LATENTS - 1, -1, -1)], dim=2)
    whole = vae.decode(torch.cat([still, first.z_B16Thw[:, :, STILL_LATENTS:]], dim=2)).detach()[:, :, -16:]
    torch.testing.assert_close(torch.cat(out, dim=2), whole, atol=1e-5, rtol=1e-5)
    base = seen[0][:, :1] - (STILL_FRAMES - 1)
    assert torch.equal(seen[0] - base, torch.arange(4, 13).expand(2, -1)) and torch.equal(seen[1] - base, torch.arange(12, 21).expand(2, -1))
    assert set(base.flatten().tolist()) <= {30, 60}  # the held-out clip is not among those
    assert next(under_way) is not first
