"""Strict loads: the right weights arrive bit for bit, and each fault gives its one sentence before anything has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.weights.official import TINY, audio_shapes, dit_shapes, text_shapes, vae_shapes
from torch import nn

from everface.core.config import DiTConfig, TextConfig, VAEConfig
from everface.core.errors import BadWeights
from everface.networks.transformer.dit import DiT
from everface.networks.video.vae import VAE
from everface.weights import layout
from everface.weights.files import Weights, open_file, open_index
from everface.weights.load import load_into, open_checkpoint
from everface.weights.store import fingerprint, write_safetensors

SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_released_counts() -> None:
    """Keys, shapes and sizes of the release (model card, file sizes): the writer's and our module's, which agree name by name."""
    with torch.device("meta"):
        shapes = shapes_of(DiT(DiTConfig()))
    assert (len(shapes), count(shapes)) == (1260, 16_295_755_609)
    assert shapes == dit_shapes(DiTConfig())
    assert count(vae_shapes(VAEConfig())) == 126_892_531
    assert count(text_shapes(TextConfig())) == 5_680_910_336


def test_dit_loads_strictly(pristine: Path) -> None:
    base = open_index(pristine / layout.DIT_INDEX)
    dit = DiT(TINY.dit)
    load_into(dit, base)
    state = dit.state_dict()
    assert state.keys() == base.keys()
    assert all(torch.equal(state[name], base[name].float()) for name in base)


def test_from_meta_in_another_dtype(pristine: Path) -> None:
    with torch.device("meta"):
        dit = DiT(TINY.dit)
    base = open_index(pristine / layout.DIT_INDEX)
    load_into(dit, base, dtype=torch.bfloat16)
    state = dit.state_dict()
    assert all(state[name].dtype == torch.bfloat16 and torch.equal(state[name], base[name]) for name in base)


def test_vae_loads_whole_and_by_role(pristine: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(pristine, cache=cache)
    official = checkpoint.vae()
    assert {name: official.shape(name) for name in official} == vae_shapes(TINY.vae)
    load_into(VAE(TINY.vae), official)
    part = checkpoint.vae(("decoder.", "conv2."))
    assert all(name.startswith(("decoder.", "conv2.")) for name in part)
    decoder = VAE(TINY.vae, encoder=False)
    layout = {name: tensor.stride() for name, tensor in decoder.state_dict().items()}
    load_into(decoder, part)
    assert all(torch.equal(tensor, part[name]) for name, tensor in decoder.state_dict().items())
    assert {name: tensor.stride() for name, tensor in decoder.state_dict().items()} == layout


def test_text_and_audio_parts(pristine: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(pristine, cache=cache)
    text, audio = checkpoint.text(), checkpoint.audio()
    assert {name: text.shape(name) for name in text} == text_shapes(TINY.text)
    sizes = json.loads((checkpoint.audio_folder() / "config.json").read_text())
    assert {name: audio.shape(name) for name in audio} == audio_shapes(sizes)
    assert (checkpoint.tokenizer() / "tokenizer.json").is_file()


def test_part_under_a_prefix() -> None:
    layer = nn.Linear(3, 2)
    source = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b.weight": torch.ones(1)}
    load_into(layer, source, prefix="a.")
    assert torch.equal(layer.weight, source["a.weight"])
    assert layer.weight.data_ptr() != source["a.weight"].data_ptr()


def test_buffers_load_and_follow_the_device() -> None:
    module = nn.BatchNorm1d(2)
    source = {name: torch.full_like(tensor, 3) for name, tensor in module.state_dict().items()}
    load_into(module, source, dtype=torch.bfloat16, device="cpu")
    assert module.running_mean is not None and module.running_mean.dtype == torch.bfloat16
    assert module.num_batches_tracked is not None and module.num_batches_tracked == 3
    assert isinstance(module.weight, nn.Parameter)


def drop_key(root: Path) -> None:
    edit(root, lambda tensors: tensors.pop("blocks.1.ffn.0.bias"))


def add_key(root: Path) -> None:
    edit(root, lambda tensors: tensors.update({"motioner.weight": torch.ones(2, dtype=torch.bfloat16)}))


def reshape_key(root: Path) -> None:
    edit(root, lambda tensors: tensors.update({"blocks.1.ffn.0.bias": torch.ones(127, dtype=torch.bfloat16)}))


def retype_key(root: Path) -> None:
    edit(root, lambda tensors: tensors.update({"blocks.1.ffn.0.bias": torch.ones(128, dtype=torch.int32)}))


def quantize_key(root: Path) -> None:
    edit(root, lambda tensors: tensors.update({"blocks.1.ffn.0.bias": torch.ones(128).to(torch.float8_e4m3fn)}))


def edit(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of every shard into one consistent checkpoint: one shard, and an index that agrees with it."""
    index = json.loads((root / layout.DIT_INDEX).read_text())
    tensors = {name: tensor for file in set(index["weight_map"].values()) for name, tensor in load_file(root / file).items()}
    change(tensors)
    save_file(tensors, root / SHARD)
    index["weight_map"] = dict.fromkeys(tensors, SHARD)
    (root / layout.DIT_INDEX).write_text(json.dumps(index))


def truncate_shard(root: Path) -> None:
    content = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(content[:-100])


def empty_shard(root: Path) -> None:
    (root / SHARD).write_bytes(b"")


def lose_shard(root: Path) -> None:
    (root / SHARD).unlink()


def swap_shard(root: Path) -> None:
    """A shard of another version: whole, but with other tensors than in the index."""
    save_file({"blocks.1.ffn.0.bias": torch.ones(128)}, root / SHARD)


def lead_index_astray(root: Path) -> None:
    index = json.loads((root / layout.DIT_INDEX).read_text())
    index["weight_map"]["blocks.1.ffn.0.bias"] = "../elsewhere.safetensors"
    (root / layout.DIT_INDEX).write_text(json.dumps(index))


def break_index(root: Path) -> None:
    (root / layout.DIT_INDEX).write_text('{"weight_map": {"a": ')


def lose_index(root: Path) -> None:
    (root / layout.DIT_INDEX).unlink()


def empty_index(root: Path) -> None:
    (root / layout.DIT_INDEX).write_text('{"weight_map": {}}')


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop_key, [SHARD, "blocks.1.ffn.0.bias", "missing"]),
        (add_key, [SHARD, "motioner.weight", "not a weight of this model"]),
        (reshape_key, [SHARD, "blocks.1.ffn.0.bias", "[127]", "[128]"]),
        (retype_key, [SHARD, "blocks.1.ffn.0.bias", "int32"]),
        (quantize_key, [SHARD, "blocks.1.ffn.0.bias", "float8"]),
        (truncate_shard, [SHARD, "truncated"]),
        (empty_shard, [SHARD, "truncated"]),
        (lose_shard, [SHARD, "is missing", layout.DIT_INDEX]),
        (swap_shard, [SHARD, "more)"]),
        (lead_index_astray, [layout.DIT_INDEX, "../elsewhere.safetensors"]),
        (break_index, [layout.DIT_INDEX, "not a weight index"]),
        (lose_index, [layout.DIT_INDEX, "not a weight index"]),
        (empty_index, [layout.DIT_INDEX, "no tensors"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_fault_has_its_sentence(official: Path, refusal, damage: Callable[[Path], None], named: list[str]) -> None:
    damage(official)
    dit = DiT(TINY.dit)
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    with pytest.raises(BadWeights) as caught:
        load_into(dit, open_index(official / layout.DIT_INDEX))
    refusal(caught.value, *named)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dit.state_dict().items())


def test_other_sizes_name_the_first_and_count_the_rest(pristine: Path, refusal) -> None:
    with torch.device("meta"):
        dit = DiT(DiTConfig(**{**TINY.to_dict()["dit"], "num_layers": 5}))
    with pytest.raises(BadWeights) as caught:
        load_into(dit, open_index(pristine / layout.DIT_INDEX))
    refusal(caught.value, "'blocks.3.cross_attn.k.bias' (and 53 more) is missing")


def test_faults_of_plain_maps() -> None:
    with pytest.raises(BadWeights, match=r"'a\.bias' is missing"):
        load_into(nn.Linear(2, 2), {"a.weight": torch.ones(2, 2)}, prefix="a.")


@pytest.mark.parametrize("part", [layout.VAE, layout.TEXT, layout.AUDIO, layout.TOKENIZER, layout.LORA])
def test_missing_parts(official: Path, tmp_path: Path, cache: Path, refusal, part: str) -> None:
    (official / part).rename(tmp_path / "away")
    checkpoint = open_checkpoint(official, cache=cache)
    read = {
        layout.VAE: checkpoint.vae,
        layout.TEXT: checkpoint.text,
        layout.AUDIO: checkpoint.audio,
        layout.TOKENIZER: checkpoint.tokenizer,
        layout.LORA: checkpoint.dit,
    }
    with pytest.raises(BadWeights) as caught:
        read.pop(part)()
    refusal(caught.value, str(official), Path(part).name if part != layout.AUDIO else "model.safetensors")
    for other in read.values():
        other()


def test_own_layout_opens(tmp_path: Path, refusal) -> None:
    dit = DiT(TINY.dit)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    save_file(dit.state_dict(), tmp_path / "dit.safetensors")
    save_file({k: v.contiguous() for k, v in VAE(TINY.vae).state_dict().items()}, tmp_path / "vae.safetensors")
    checkpoint = open_checkpoint(tmp_path, cache=tmp_path / "cache")
    again = DiT(checkpoint.config.dit)
    load_into(again, checkpoint.dit())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in dit.state_dict().items())
    load_into(VAE(checkpoint.config.vae), checkpoint.vae())
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BadWeights) as caught:
        checkpoint.text()
    refusal(caught.value, str(tmp_path), "prompt encoder")


def test_reading_is_lazy(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks touch headers only; a load reads every wanted tensor once and no other."""
    read: list[str] = []
    plain = Weights.__getitem__
    monkeypatch.setattr(Weights, "__getitem__", lambda self, name: (read.append(name), plain(self, name))[1])
    part = open_index(pristine / layout.DIT_INDEX).select(["head."])
    assert "head.head.weight" in part and "patch_embedding.weight" not in part
    assert read == []
    load_into(DiT(TINY.dit).head, part, prefix="head.")
    assert sorted(read) == sorted(part)


def test_writer_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "b": torch.randn(3, 5).to(torch.bfloat16).T,
        "c": torch.tensor(2.5),
        "d": torch.empty(0, 4, dtype=torch.float64),
        "e": torch.randn(7).to(torch.float8_e4m3fn),
        "f": torch.tensor([True, False]),
    }
    path = tmp_path / "deep" / "x.safetensors"
    write_safetensors(path, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, lambda n: tensors[n], {"k": "v"})
    back = load_file(path)
    assert back.keys() == tensors.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n].float(), t.float()) for n, t in tensors.items())
    assert open_file(path).shape("b") == (5, 3)


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    shapes = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    write_safetensors(path, shapes, lambda name: torch.ones(2), {})
    before = path.read_bytes()

    def fail(name: str) -> torch.Tensor:
        if name == "b":
            raise KeyboardInterrupt
        return torch.zeros(2)

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, shapes, fail, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_fingerprint_of_large_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3 << 20))
    assert fingerprint(path).startswith("sha256:")
    monkeypatch.setattr("everface.weights.store.FULL_HASH_BYTES", 1 << 20)
    first = fingerprint(path)
    assert first.startswith(f"fast:{3 << 20}:")
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(path) != first
