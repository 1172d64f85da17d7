"""`--lora` on a model of our own: merged if it is a LoRA of that model, and one sentence, before anything is written, if it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from everface.cli import main
from everface.core.errors import BadWeights
from everface.media.video import read_frames
from everface.weights.load import open_checkpoint
from everface.weights.lora import ALPHA, TARGET

RANK = 4
Tensors = dict[str, torch.Tensor]


def make_lora(model: Path, size: float = 0.05) -> Tensors:
    """An adapter for every target of a model of our own."""
    g, tensors = torch.Generator().manual_seed(0), {}
    for name, weight in load_file(model / "dit.safetensors").items():
        if TARGET.fullmatch(name):
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.default.weight"] = torch.randn(RANK, weight.shape[1], generator=g)
            tensors[f"{module}.lora_B.default.weight"] = size * torch.randn(weight.shape[0], RANK, generator=g)
    return tensors


def write_lora(model: Path, path: Path) -> Path:
    save_file(make_lora(model), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_lora_of_our_own_model_is_merged(small_model: Path, cache: Path, tmp_path: Path) -> None:
    path, lora = write_lora(small_model, tmp_path / "lora.safetensors"), make_lora(small_model)
    base, merged = open_checkpoint(small_model).dit(), open_checkpoint(small_model, path).dit()
    assert base.keys() == merged.keys() and len(lora) > 20
    for name in base:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.default.weight"
        wanted = base[name]
        if key.format("A") in lora:
            wanted = wanted + (lora[key.format("B")] @ lora[key.format("A")]) * (ALPHA / RANK)
            assert not torch.equal(wanted, base[name])
        assert torch.equal(merged[name], wanted)


def test_a_lora_changes_the_video_and_one_of_zeros_does_not(small_model: Path, face: Path, voice: Path, cache: Path, tmp_path: Path) -> None:
    write_lora(small_model, tmp_path / "lora.safetensors")
    save_file(make_lora(small_model, 0.0), tmp_path / "zeros.safetensors")
    frames = []
    for flags in ([], ["--lora", str(tmp_path / "zeros.safetensors")], ["--lora", str(tmp_path / "lora.safetensors")]):
        out = tmp_path / f"{len(frames)}.mp4"
        assert main(["render", str(face), str(voice), "-o", str(out), "--weights", str(small_model), *flags]) == 0
        frames.append(np.stack(list(read_frames(out))))
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])


Q = "base_model.model.blocks.0.self_attn.q.lora_{}.default.weight"


def only(names: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {k: v for k, v in t.items() if names in k}


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], list[str]]] = {
    "random tensors": (lambda t: {"x": torch.randn(8, 8), "y": torch.randn(4)}, ["2 of its 2 tensors", "lora_A.weight"]),
    "nothing": (lambda t: {}, ["no tensors", "lora_A.weight"]),
    "alpha alone": (lambda t: {"lora_unet_blocks_0.alpha": torch.tensor(4.0)}, ["alpha", "lora_A.weight"]),
    "another naming": (lambda t: {k.replace("lora_A", "lora_down"): v for k, v in t.items()}, [" of its ", "lora_down"]),
    "a tensor too many": (lambda t: t | {"blocks.0.diff": torch.ones(2)}, ["1 of its ", "blocks.0.diff", "not a LoRA tensor"]),
    "another model's": (
        lambda t: {f"unet.{i}.attn.to_q.lora_{side}.weight": torch.ones(4, 4) for i in range(3) for side in "AB"},
        ["unet.0.attn.to_q", "(and 2 more)", "0 of the 3 weights"],
    ),
    "a deeper model's": (lambda t: t | {k.replace("blocks.0", "blocks.9"): v.clone() for k, v in t.items()}, ["blocks.9", "no target"]),
    "a part": (only("blocks.0"), ["does not adapt", "of the 10 weights it adapts are among"]),
    "half pairs": (only("lora_A"), ["only one of lora_A and lora_B"]),
    "ranks that differ in a pair": (lambda t: t | {Q.format("B"): torch.ones(64, 3)}, ["another size"]),
    "ranks that differ": (lambda t: t | {Q.format("A"): torch.ones(8, 64), Q.format("B"): torch.ones(64, 8)}, ["ranks [4, 8]"]),
    "another width": (lambda t: {k: torch.cat([v, v], 1 if "lora_A" in k else 0) for k, v in t.items()}, ["another size"]),
    "no matrix": (lambda t: t | {Q.format("A"): torch.ones(4)}, ["matrix of floating numbers"]),
    "a number": (lambda t: t | {Q.format("A"): torch.tensor(1.0)}, ["matrix of floating numbers"]),
    "no rank": (lambda t: t | {Q.format("A"): torch.ones(0, 64), Q.format("B"): torch.ones(64, 0)}, ["matrix of floating numbers"]),
    "whole numbers": (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, ["matrix of floating numbers"]),
    "not a number": (lambda t: t | {Q.format("B"): torch.full((64, 4), torch.nan)}, ["blocks.0.self_attn.q", "not finite"]),
    "infinite": (lambda t: t | {Q.format("A"): torch.full((4, 64), torch.inf)}, ["blocks.0.self_attn.q", "not finite"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_of_this_model_is_refused(case: str, small_model: Path, cache: Path, tmp_path: Path, refusal) -> None:
    change, named = REFUSED[case]
    path = tmp_path / "lora.safetensors"
    save_file(change(make_lora(small_model)), path)
    with pytest.raises(BadWeights) as caught:
        open_checkpoint(small_model, path).dit()
    refusal(caught.value, str(path), *named)
    assert not list(cache.rglob("*.safetensors*.json")) and not list(cache.rglob("*.partial"))


FILES: dict[str, Callable[[Path, Path, Path], object]] = {
    "a recording": lambda path, voice, model: path.write_bytes(voice.read_bytes()),
    "nothing": lambda path, voice, model: path.touch(),
    "text": lambda path, voice, model: path.write_text("a LoRA"),
    "a folder": lambda path, voice, model: path.mkdir(),
    "a model": lambda path, voice, model: path.write_bytes((model / "dit.safetensors").read_bytes()),
    "absent": lambda path, voice, model: None,
    "cut short": lambda path, voice, model: path.write_bytes(write_lora(model, path).read_bytes()[:-5]),
    "a header beyond the file": lambda path, voice, model: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"),
    "a header that lies of sizes": lambda path, voice, model: path.write_bytes(lie()),
    "a header that is no object": lambda path, voice, model: path.write_bytes((4).to_bytes(8, "little") + b"[1] "),
    "a header without end": lambda path, voice, model: path.write_bytes((2**20).to_bytes(8, "little") + b"[" * 2**20),
}


def lie() -> bytes:
    """A header that says of 16 bytes that they are 2^40 numbers."""
    header = json.dumps({Q.format("A"): {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_lora_ends_the_render_in_one_line(
    case: str, small_model: Path, face: Path, voice: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "lora.safetensors", tmp_path / "x.mp4"
    FILES[case](path, voice, small_model)
    words = ["render", str(face), str(voice), "-o", str(out), "--weights", str(small_model), "--lora", str(path)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and "lora_A.weight" in said, said
    assert not out.exists() and not cache.exists() and not list(tmp_path.glob(".*"))
