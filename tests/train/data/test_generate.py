"""`everface train data`: from a finished VAE run to clips that training can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.miniature import SMALL_VAE, write_hum

from everface.core.config import ModelConfig, VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.video.vae import VAE
from everface.train.data import generate
from everface.train.data.clips import MOVING_LATENTS, SHARD_CLIPS, read_clips
from everface.train.data.generate import make_data
from everface.train.data.vae_files import read_vae


def test_the_vae_of_a_run_comes_back(vae_run: Path) -> None:
    torch.manual_seed(0)
    expected = VAE(SMALL_VAE).state_dict()
    found = read_vae(vae_run).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_model_folder_has_a_vae_too() -> None:
    """So that clips for the bundled codec need no file that a user does not have."""
    assert not (DEFAULT_WEIGHTS / "vae.json").exists()
    expected = ModelConfig.from_dict(json.loads((DEFAULT_WEIGHTS / "config.json").read_text())).vae
    assert read_vae(DEFAULT_WEIGHTS).config == expected and expected.mean != VAEConfig().mean


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="everface train vae"):
        read_vae(tmp_path)


def test_speech_is_made_once_and_clips_are_made(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def hum(folder: Path, seed: int) -> None:
        made.append(seed)
        write_hum(folder)

    monkeypatch.setattr(generate, "make_speech", hum)
    clips = make_data(tmp_path / "data", vae_run, count=1, seed=5, minutes=1)
    first = read_clips(clips)
    make_data(tmp_path / "data", vae_run, count=1, seed=5, minutes=1)
    assert made == [5]
    assert len(first) == 1 and first.latents_N16Thw.shape[1:] == (16, 2 + MOVING_LATENTS, 16, 16)
    assert torch.isfinite(first.latents_N16Thw).all()


def test_several_processes_make_the_clips_of_one(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        write_hum(tmp_path / folder / "speech")
        (tmp_path / folder / "speech" / "complete").touch()
    count = SHARD_CLIPS + 1  # two shards, the second of one clip
    for folder in ("one", "two"):  # the long shard is there already: only the other is made
        (tmp_path / folder / "clips").mkdir()
        save_file({"latents": torch.zeros(SHARD_CLIPS, 1)}, tmp_path / folder / "clips" / "00000.safetensors")
    monkeypatch.setattr(generate, "cores", lambda: 1)
    one = make_data(tmp_path / "one", vae_run, count, seed=5, minutes=2)
    monkeypatch.setattr(generate, "cores", lambda: 2)
    two = make_data(tmp_path / "two", vae_run, count, seed=5, minutes=2)
    made = [load_file(folder / f"{SHARD_CLIPS:05d}.safetensors") for folder in (one, two)]
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][k], made[1][k]) for k in made[0])
    assert len(made[1]["latents"]) == 1 and not list(two.glob("*.partial"))


def test_a_process_that_fails_is_reported(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "speech").mkdir(parents=True)
    (tmp_path / "data" / "speech" / "complete").touch()  # and no speech in it
    monkeypatch.setattr(generate, "cores", lambda: 2)
    with pytest.raises(Unavailable, match="the same command"):
        make_data(tmp_path / "data", vae_run, count=2 * SHARD_CLIPS, seed=5, minutes=2)
