"""`everface train data`: from a finished VAE run to clips that stage 1 can read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from everface.avatar.parts import DEFAULT_WEIGHTS
from everface.core.config import ModelConfig, VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.model.vae import VAE
from everface.train.bundle import bundle, mean_codec
from everface.train.codec import decoder
from everface.train.codec.decoder import WARM_UP, DecoderPlan, train_decoder, turns
from everface.train.codec.vae import vae_loss
from everface.train.data import generate as data
from everface.train.data.clips import MOVING_LATENTS, SHARD, STILL_FRAMES, STILL_LATENTS, Clips, read_clips
from everface.train.pretrain.plans import settled
from everface.train.synthetic.voices import write_wav

SMALL = VAEConfig(dim=8, dim_mult=(1, 1, 1, 1), encoder_blocks=(1, 0, 0, 0), decoder_blocks=(1, 0, 0, 0))


@pytest.fixture
def vae_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    run = tmp_path / "vae"
    run.mkdir()
    save_file({k: v.contiguous() for k, v in VAE(SMALL).state_dict().items()}, run / "vae.safetensors")
    (run / "vae.json").write_text(json.dumps(asdict(SMALL)))
    return run


def test_the_vae_of_a_run_comes_back(vae_run: Path) -> None:
    torch.manual_seed(0)
    expected = VAE(SMALL).state_dict()
    found = data.read_vae(vae_run).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_model_folder_has_a_vae_too() -> None:
    """So the bundled codec's clips, and another transformer beside it, need no file that a user does not have."""
    assert not (DEFAULT_WEIGHTS / "vae.json").exists()
    expected = ModelConfig.from_dict(json.loads((DEFAULT_WEIGHTS / "config.json").read_text())).vae
    assert data.read_vae(DEFAULT_WEIGHTS).config == expected and expected.mean != VAEConfig().mean


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="everface train vae"):
        data.read_vae(tmp_path)


def test_speech_is_made_once_and_clips_are_made(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def hum(folder: Path, seed: int) -> None:
        made.append(seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / "en-hum.wav", 0.1 * torch.sin(torch.arange(80_000) / 20))

    monkeypatch.setattr(data, "make_speech", hum)
    clips = data.make_data(tmp_path / "data", vae_run, count=1, seed=5, minutes=1)
    first = read_clips(clips)
    data.make_data(tmp_path / "data", vae_run, count=1, seed=5, minutes=1)
    assert made == [5]
    assert len(first) == 1 and first.latents_N16Thw.shape[1:] == (16, 2 + MOVING_LATENTS, 16, 16)
    assert torch.isfinite(first.latents_N16Thw).all()

    # The decoder goes on alone: the encoder, and so the clips' latents, stay what they were.
    seams: list[float] = []

    def loss(*args: Any, **more: Any) -> torch.Tensor:
        seams.append(more["seams"])
        return vae_loss(*args, **more)

    monkeypatch.setattr(decoder, "vae_loss", loss)
    plan = settled(DecoderPlan(minutes=0.04, seed=5), "decoder", ["clips=1", "seams=2.5"])
    before, after = load_file(vae_run / "vae.safetensors"), load_file(train_decoder(tmp_path / "run", vae_run, tmp_path / "data", plan))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith(("encoder.", "conv1.")))
    assert not torch.equal(before["decoder.head.2.weight"], after["decoder.head.2.weight"])
    assert data.read_vae(tmp_path / "run").config == data.read_vae(vae_run).config
    assert seams and set(seams) == {2.5}
    with pytest.raises(BadInput, match="decoder has no field 'seem': choose one of clips, ema"):
        settled(plan, "decoder", ["seem=2"])


def test_two_decoders_of_one_codec_have_a_mean_and_two_codecs_have_none(vae_run: Path, tmp_path: Path) -> None:
    held = load_file(vae_run / "vae.safetensors")
    for name, part in (("longer", "decoder.head.2.bias"), ("other", "conv1.bias")):
        (tmp_path / name).mkdir()
        save_file(held | {part: held[part] + 1}, tmp_path / name / "vae.safetensors")
        (tmp_path / name / "vae.json").write_text((vae_run / "vae.json").read_text())
    config, mean = mean_codec([vae_run, tmp_path / "longer"])
    assert config == SMALL and mean.keys() == held.keys()
    assert torch.equal(mean["decoder.head.2.bias"], (held["decoder.head.2.bias"] + (held["decoder.head.2.bias"] + 1)) / 2)
    assert torch.equal(mean["conv1.bias"], held["conv1.bias"])
    with pytest.raises(BadInput, match=r"^[^ ]* and [^ ]* are different codecs"):
        bundle([vae_run, tmp_path / "other"], tmp_path, tmp_path / "model")


def test_a_process_a_core_makes_the_clips_that_one_makes(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "speech").mkdir(parents=True)
        write_wav(tmp_path / folder / "speech" / "en-hum.wav", 0.1 * torch.sin(torch.arange(80_000) / 20))
        (tmp_path / folder / "speech" / "complete").touch()
    count = SHARD + 1  # two shards, the second of one clip
    for folder in ("one", "two"):  # the long shard is there already: it is the other that tells who made it
        (tmp_path / folder / "clips").mkdir()
        save_file({"latents": torch.zeros(SHARD, 1)}, tmp_path / folder / "clips" / "00000.safetensors")
    monkeypatch.setattr(data, "cores", lambda: 1)
    one = data.make_data(tmp_path / "one", vae_run, count, seed=5, minutes=2)
    monkeypatch.setattr(data, "cores", lambda: 2)
    two = data.make_data(tmp_path / "two", vae_run, count, seed=5, minutes=2)
    made = [load_file(folder / f"{SHARD:05d}.safetensors") for folder in (one, two)]
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][k], made[1][k]) for k in made[0])
    assert len(made[1]["latents"]) == 1 and not list(two.glob("*.partial"))


def test_a_process_that_fails_is_told(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "speech").mkdir(parents=True)
    (tmp_path / "data" / "speech" / "complete").touch()  # and no speech in it
    monkeypatch.setattr(data, "cores", lambda: 2)
    with pytest.raises(Unavailable, match="the same command"):
        data.make_data(tmp_path / "data", vae_run, count=2 * SHARD, seed=5, minutes=2)


def test_streams_of_the_decoder_run_as_the_runtime_decodes_them() -> None:
    """Two latents at a time, from their still picture on: the same frames as in one call, none left out, none twice."""
    torch.manual_seed(0)
    vae = VAE(SMALL)
    latents, count = torch.randn(3, 16, STILL_LATENTS + 4, 4, 4), STILL_FRAMES + 16
    clips = Clips(latents, torch.zeros(3, 1, 1, 1))
    frames = (torch.arange(count) + 30 * torch.arange(3)[:, None]).to(torch.uint8)[:, None, :, None, None].expand(3, 3, count, 32, 32)
    under_way = turns(vae, clips, frames[1:], 1, seed=0, device="cpu")
    first = next(under_way)
    out, seen = [], []
    while not first.over():
        made, truth = first.step(vae, 0.0, torch.Generator())
        out.append(made[:, :, 1:].detach())
        seen.append(truth[:, 0, :, 0, 0].add(1).mul(127.5).round().int())
        assert made.requires_grad and not made[:, :, :1].detach().isnan().any()
    still = torch.cat([first.z_B16Thw[:, :, :1], first.z_B16Thw[:, :, 1:2].expand(-1, -1, WARM_UP - 1, -1, -1)], dim=2)
    whole = vae.decode(torch.cat([still, first.z_B16Thw[:, :, STILL_LATENTS:]], dim=2)).detach()[:, :, -16:]
    torch.testing.assert_close(torch.cat(out, dim=2), whole, atol=1e-5, rtol=1e-5)
    base = seen[0][:, :1] - (STILL_FRAMES - 1)
    assert torch.equal(seen[0] - base, torch.arange(4, 13).expand(2, -1)) and torch.equal(seen[1] - base, torch.arange(12, 21).expand(2, -1))
    assert set(base.flatten().tolist()) <= {30, 60}  # the first clip is not among those that are learned
    assert next(under_way) is not first
