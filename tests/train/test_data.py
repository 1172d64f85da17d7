"""`everface train data`: from a finished VAE run to clips that stage 1 can read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.model.vae import VAE
from everface.train import data
from everface.train.clips import MOVING_LATENTS, read_clips
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
