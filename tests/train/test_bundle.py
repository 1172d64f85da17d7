"""Model folders from finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.miniature import SMALL_DIT, SMALL_VAE, write_clips

from everface.core.config import ModelConfig
from everface.core.errors import BadInput
from everface.networks.familiarity import FILE, Familiarity
from everface.train.bundle import average_codecs, bundle, draw_portrait, read_portraits
from everface.train.evaluate.ablate import trained_with
from everface.train.pretrain.plans import Stage1Plan
from everface.train.pretrain.stage1 import train_stage1
from everface.weights.files import open_file


def test_two_decoders_of_one_codec_have_a_mean_and_two_codecs_have_none(vae_run: Path, tmp_path: Path) -> None:
    held = load_file(vae_run / "vae.safetensors")
    for name, part in (("longer", "decoder.head.2.bias"), ("other", "conv1.bias")):
        (tmp_path / name).mkdir()
        save_file(held | {part: held[part] + 1}, tmp_path / name / "vae.safetensors")
        (tmp_path / name / "vae.json").write_text((vae_run / "vae.json").read_text())
    config, mean = average_codecs([vae_run, tmp_path / "longer"])
    assert config == SMALL_VAE and mean.keys() == held.keys()
    assert torch.equal(mean["decoder.head.2.bias"], (held["decoder.head.2.bias"] + (held["decoder.head.2.bias"] + 1)) / 2)
    assert torch.equal(mean["conv1.bias"], held["conv1.bias"])
    with pytest.raises(BadInput, match=r"^[^ ]* and [^ ]* are different codecs"):
        bundle([vae_run, tmp_path / "other"], tmp_path, tmp_path / "model")


def test_a_bundle_knows_what_images_its_clips_have(vae_run: Path, tmp_path: Path) -> None:
    plan = Stage1Plan(iterations=1, warmup_steps=1, held_out=4, curriculum=((0.0, 2, 2),))
    run = train_stage1(tmp_path / "run", write_clips(tmp_path / "clips"), plan, SMALL_DIT).parent
    left = Familiarity(open_file(run / FILE))
    held = Familiarity(open_file(bundle([vae_run], run, tmp_path / "model") / FILE))
    assert held.size == (8, 8) and all(torch.equal(held.tensors[name], tensor) for name, tensor in left.tensors.items())
    (run / FILE).unlink()
    assert not (bundle([vae_run], run, tmp_path / "none") / FILE).exists()


def test_a_bundle_brings_the_portraits_that_it_is_given(vae_run: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "portraits"
    run.mkdir()
    save_file({"head.modulation": torch.zeros(3)}, run / "dit.safetensors")
    (run / "plan.json").write_text("{}")
    drawn = bundle([vae_run], run, tmp_path / "drawn")
    assert sorted(path.stem for path in drawn.glob("*.png")) == ["ada", "ben", "mia"]
    with pytest.raises(BadInput, match="has no PNG file"):
        read_portraits(folder)
    folder.mkdir()
    draw_portrait(7, 64).save(folder / "kim.png")
    out = bundle([vae_run], run, tmp_path / "model", portraits=read_portraits(folder))
    assert [path.name for path in out.glob("*.png")] == ["kim.png"]
    (folder / "ben.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"a file that is no PNG image"):
        read_portraits(folder)


def test_a_bundle_carries_its_plan(vae_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_file({"head.modulation": torch.zeros(3)}, run / "dit.safetensors")
    (run / "plan.json").write_text(json.dumps({"history": "clean", "block_frames": 2, "noise_correlation": 0.8}))
    out = bundle([vae_run], run, tmp_path / "model")
    config = ModelConfig.read(out / "config.json")
    assert (config.dit.block_frames, config.noise_correlation) == (2, 0.8) and trained_with(out)["history"] == "clean"
