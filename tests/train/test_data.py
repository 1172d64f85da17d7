"""`everface train data`: from a finished VAE run to clips that stage 1 can read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everface.core.config import VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.model.vae import VAE
from everface.train import data
from everface.train.clips import MOVING_LATENTS, SHARD, read_clips
from everface.train.decoder import DecoderPlan, train_decoder
from everface.train.voices import write_wav

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
    plan = DecoderPlan(minutes=0.04, clips=1, seed=5)
    before, after = load_file(vae_run / "vae.safetensors"), load_file(train_decoder(tmp_path / "run", vae_run, tmp_path / "data", plan))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith(("encoder.", "conv1.")))
    assert not torch.equal(before["decoder.head.2.weight"], after["decoder.head.2.weight"])
    assert data.read_vae(tmp_path / "run").config == data.read_vae(vae_run).config


def test_a_process_a_core_makes_the_clips_that_one_makes(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "speech").mkdir(parents=True)
        write_wav(tmp_path / folder / "speech" / "en-hum.wav", 0.1 * torch.sin(torch.arange(80_000) / 20))
        (tmp_path / folder / "speech" / "complete").touch()
    count = SHARD + 1  # two shards, the second of one clip
    for folder in ("one", "two"):  # the long shard is there already: it is the other that tells who made it
        (tmp_path / folder / "clips").mkdir()
        save_file({"latents": torch.zeros(SHARD, 1)}, tmp_path / folder / "clips" / "00000.safetensors")
    monkeypatch.setattr(data.os, "cpu_count", lambda: 1)
    one = data.make_data(tmp_path / "one", vae_run, count, seed=5, minutes=2)
    monkeypatch.setattr(data.os, "cpu_count", lambda: 2)
    two = data.make_data(tmp_path / "two", vae_run, count, seed=5, minutes=2)
    made = [load_file(folder / f"{SHARD:05d}.safetensors") for folder in (one, two)]
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][k], made[1][k]) for k in made[0])
    assert len(made[1]["latents"]) == 1 and not list(two.glob("*.partial"))


def test_a_process_that_fails_is_told(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "speech").mkdir(parents=True)
    (tmp_path / "data" / "speech" / "complete").touch()  # and no speech in it
    monkeypatch.setattr(data.os, "cpu_count", lambda: 2)
    with pytest.raises(Unavailable, match="the same command"):
        data.make_data(tmp_path / "data", vae_run, count=2 * SHARD, seed=5, minutes=2)
