"""The LoRA merge: equal to the official one, cached, and only of the right adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.weights.official import LORA_RANK, TINY, lora_shapes

from everface.core.errors import BadWeights
from everface.networks.transformer.dit import DiT
from everface.weights import layout
from everface.weights import lora as lora_module
from everface.weights.files import open_index
from everface.weights.load import load_into, open_checkpoint
from everface.weights.lora import check_targets, merge_cached, read_lora


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("adapter", [".default", ""])
def test_golden(golden: Path, tmp_path: Path, prefix: str, adapter: str) -> None:
    """float32 to 1e-6, bfloat16 bit for bit (golden README 10), under every spelling of the keys."""
    case = load_file(golden / "lora_merge.safetensors")
    with safe_open(golden / "lora_merge.safetensors", "pt") as file:
        alpha = json.loads(file.metadata()["config"])["alpha"]
    pairs = {k.removeprefix("lora."): v for k, v in case.items() if k.startswith("lora.")}
    save_file({prefix + k.replace(".default", adapter): v for k, v in pairs.items()}, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", alpha)
    assert (lora.rank, lora.scale) == (8, 0.5)
    base = {k.removeprefix("base."): v for k, v in case.items() if k.startswith("base.")}
    check_targets(lora, base, {name: tuple(weight.shape) for name, weight in base.items()})
    for name, weight in base.items():
        torch.testing.assert_close(lora.merge(name, weight), case[f"merged.{name}"], rtol=0, atol=1e-6)
    exact = [name for name in base if f"merged_bf16.{name}" in case]
    assert len(exact) >= 2
    for name in exact:
        assert torch.equal(lora.merge(name, base[name].to(torch.bfloat16)), case[f"merged_bf16.{name}"])


def test_released_adapter_is_what_the_release_says() -> None:
    shapes = lora_shapes(type(TINY.dit)(), 128)
    assert (len(shapes), sum(a * b for a, b in shapes.values())) == (896, 676_331_520)
    assert lora_module.ALPHA / 128 == 0.5


def test_scale_of_an_adapter_that_states_its_own(tmp_path: Path) -> None:
    """PEFT writes alpha beside the file, or into it; the release does neither."""
    path, pair = tmp_path / "lora.safetensors", {"blocks.0.ffn.0.lora_A.weight": torch.ones(16, 4), "blocks.0.ffn.0.lora_B.weight": torch.ones(8, 16)}
    save_file(pair, path)
    assert read_lora(path).scale == 64 / 16
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 16}))
    assert read_lora(path).scale == 1.0
    save_file(pair, path, {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "use_rslora": True})})
    assert read_lora(path).scale == 8 / 4
    assert read_lora(path, alpha=32).scale == 32 / 4
    for wrong in ("[]", "{", '{"lora_alpha": true}', '{"lora_alpha": NaN}', '{"lora_alpha": 0}'):
        save_file(pair, path, {"lora_adapter_metadata": wrong})
        with pytest.raises(BadWeights, match="must state lora_alpha"):
            read_lora(path)


def test_merged_once_and_cached(official: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_checkpoint(official, cache=tmp_path / "cache")
    base, merged = open_index(official / layout.DIT_INDEX), checkpoint.dit()
    lora = load_file(official / layout.LORA)
    assert merged.keys() == base.keys()
    for name in base:
        pair = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.default.weight"
        if pair.format("A") in lora:
            delta = lora[pair.format("B")].float() @ lora[pair.format("A")].float() * (64 / LORA_RANK)
            assert torch.equal(merged[name], (base[name].float() + delta).bfloat16()) and not torch.equal(
                merged[name], base[name]
            )
        else:
            assert torch.equal(merged[name], base[name])
    load_into(DiT(TINY.dit), merged)
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "merged").rglob("*.safetensors*")}
    assert len(stamps) == 5  # three shards, their index, its lock
    again = open_checkpoint(official, cache=tmp_path / "cache").dit()
    assert again.files == merged.files and all(file.stat().st_mtime_ns == stamps[file] for file in again.files)
    assert caplog.text.count("merging") == 3


def test_change_of_either_merges_anew(official: Path, tmp_path: Path) -> None:
    def path() -> Path:
        return merge_cached(open_index(official / layout.DIT_INDEX), official / layout.LORA, tmp_path)

    first = path()
    save_file({k: 2 * v for k, v in load_file(official / layout.LORA).items()}, official / layout.LORA)
    second = path()
    shard = next(official.glob(layout.DIT_SHARDS))
    save_file({k: 2 * v for k, v in load_file(shard).items()}, shard)
    third = path()
    assert len({first, second, third}) == 3


def test_interrupted_merge_continues(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, cache = [], tmp_path / "cache"
    plain = lora_module.write_safetensors

    def interrupt(path: Path, *rest) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        plain(path, *rest)

    monkeypatch.setattr(lora_module, "write_safetensors", interrupt)
    base = open_index(official / layout.DIT_INDEX)
    with pytest.raises(KeyboardInterrupt):
        merge_cached(base, official / layout.LORA, cache)
    assert list(cache.rglob(layout.DIT_INDEX)) == []
    monkeypatch.setattr(lora_module, "write_safetensors", lambda path, *rest: (written.append(path.name), plain(path, *rest)))
    index = merge_cached(base, official / layout.LORA, cache)
    assert sorted(written) == sorted(file.name for file in base.files)
    assert open_index(index).keys() == base.keys()


Q = "base_model.model.blocks.0.self_attn.q.lora_{}.default.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update({"blocks.0.diff": torch.ones(2)}), ["blocks.0.diff", "not a LoRA tensor"]),
        (lambda t: t.pop(Q.format("B")), ["blocks.0.self_attn.q.weight", "only one"]),
        (lambda t: (t.pop(Q.format("A")), t.pop(Q.format("B"))), ["blocks.0.self_attn.q.weight", "does not adapt"]),
        (
            lambda t: t.update({k.replace("blocks.0", "blocks.9"): v.clone() for k, v in t.items()}),
            ["blocks.9", "(and 9 more)", "no target"],
        ),
        (
            lambda t: t.update({"head.head.lora_A.weight": torch.ones(4, 64), "head.head.lora_B.weight": torch.ones(64, 4)}),
            ["head.head.weight", "no target"],
        ),
        (lambda t: t.update({Q.format("A"): torch.ones(8, 64), Q.format("B"): torch.ones(64, 8)}), ["ranks [4, 8]"]),
        (lambda t: t.update({Q.format("B"): torch.ones(65, 4)}), ["blocks.0.self_attn.q.weight", "(65, 4)", "another size"]),
        (lambda t: t.update({"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 64)}), ["blocks.0.self_attn.q", "twice"]),
    ],
)
def test_wrong_adapters(official: Path, tmp_path: Path, refusal, change: Callable[[dict], object], named: list[str]) -> None:
    tensors = load_file(official / layout.LORA)
    change(tensors)
    save_file(tensors, official / layout.LORA)
    with pytest.raises(BadWeights) as caught:
        open_checkpoint(official, cache=tmp_path / "cache").dit()
    refusal(caught.value, layout.LORA, *named)
    assert not (tmp_path / "cache").exists()


def test_damaged_or_absent_adapter(official: Path, tmp_path: Path, refusal) -> None:
    path = official / layout.LORA
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadWeights) as caught:
        open_checkpoint(official, cache=tmp_path).dit()
    refusal(caught.value, str(path), "truncated")
    with pytest.raises(BadWeights) as caught:
        open_checkpoint(official, tmp_path / "other.safetensors")
    refusal(caught.value, "other.safetensors")
