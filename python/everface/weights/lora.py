"""A LoRA in the format of Live Avatar's: W + scale * (B @ A), merged once into a cached copy of the base shards.

Rank 128 and alpha 64 in the release, so scale = alpha / rank = 0.5; the rank is read from the file. Alpha is not in it, but PEFT writes it for adapters of its own. B @ A is
computed in float32 and added with one rounding to the dtype of the base: bit for bit what the official merge does.
Adapted are q, k, v, o of self attention, cross attention and audio injectors, ffn.0 and ffn.2: all of them, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from everface.core.errors import BadWeights
from everface.core.log import log
from everface.weights.files import Weights, first_of, open_file, read_metadata
from everface.weights.layout import DIT_INDEX
from everface.weights.store import fingerprint, hash_file, locked, write_safetensors, write_text

ALPHA = 64.0
KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
TARGET = re.compile(r"(?:blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02])|audio_injector\.injector\.\d+\.[qkvo])\.weight")
MERGE = "merge"
FORM = "pairs such as 'blocks.0.self_attn.q.lora_A.weight' and 'blocks.0.self_attn.q.lora_B.weight'"


@dataclass(frozen=True)
class LoRA:
    """Adapter pairs by the name of the base weight: A [rank, in] and B [out, rank], still in the file."""

    source: Weights
    pairs: dict[str, tuple[str, str]]
    rank: int
    scale: float

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The base weight with its adapter merged in; a weight that is not adapted comes back as it is."""
        if name not in self.pairs:
            return weight
        a, b = (self.source[key] for key in self.pairs[name])
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise BadWeights(f"the LoRA {self.source.files[0]} has values that are not finite for {name!r}: fetch or train it again")
        return merge_weight(weight, a, b, self.scale)


def merge_weight(w_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    """w + scale * (b @ a): GEMM and sum in float32, one rounding to w's dtype. Returns a new tensor."""
    return (w_OI.float() + (b_OR.float() @ a_RI.float()) * scale).to(w_OI.dtype)


def read_lora(path: Path, alpha: float | None = None) -> LoRA:
    """Read an adapter in PEFT's key form, with or without `base_model.model.` and `.default`. Reads the header only. alpha: that of its own
    configuration by default (`read_scaling`), else of the release.

    Raises BadWeights, which says what a LoRA has, for any other file.
    """
    try:
        source = open_file(path)
    except BadWeights as error:
        raise BadWeights(f"{error} (a LoRA is a .safetensors file of {FORM})") from None
    if not len(source):
        raise BadWeights(f"{path} holds no tensors, where a LoRA has {FORM}: fetch it again")
    if others := [key for key in source if not KEY.fullmatch(key)]:
        raise BadWeights(
            f"{path} is no LoRA of this model, because {len(others)} of its {len(source)} tensors have other names ({min(others)!r} "
            f"is not a LoRA tensor): name a file of {FORM}"
        )
    sides: dict[str, dict[str, str]] = {}
    for key in source:
        match = KEY.fullmatch(key)
        assert match
        side = sides.setdefault(match["module"] + ".weight", {})
        if match["side"] in side:
            raise BadWeights(f"{path} adapts {match['module']!r} twice, as {side[match['side']]!r} and {key!r}; fetch it again")
        side[match["side"]] = key
        if len(source.shape(key)) != 2 or 0 in source.shape(key) or not source.dtype(key).is_floating_point:
            found = f"{source.dtype(key)} {list(source.shape(key))}"
            raise BadWeights(f"{path}: {key!r} is {found}, where a LoRA has a matrix of floating numbers; fetch or train it again")
    if halves := [name for name, side in sides.items() if len(side) < 2]:
        raise BadWeights(f"{path} has only one of lora_A and lora_B for {first_of(halves)}; fetch it again")
    pairs = {name: (side["A"], side["B"]) for name, side in sides.items()}
    ranks = {source.shape(a)[0] for a, _ in pairs.values()}
    if len(ranks) != 1:
        raise BadWeights(f"{path} mixes the ranks {sorted(ranks)}, where one alpha and one rank give the scale; fetch it again")
    rank = ranks.pop()
    stated, root = read_scaling(path)
    alpha = alpha if alpha is not None else ALPHA if stated is None else stated
    return LoRA(source, pairs, rank, alpha / (math.sqrt(rank) if root else rank))


def read_scaling(path: Path) -> tuple[float | None, bool]:
    """(alpha, whether it is over the root of the rank), as PEFT states them in the file's metadata or in adapter_config.json beside it; (None, False)
    where neither does, as in the release. Raises BadWeights for other values than numbers."""
    beside, text = path.with_name("adapter_config.json"), read_metadata(path).get("lora_adapter_metadata")
    if text is None and beside.is_file():
        text = beside.read_text(errors="replace")
    if text is None:
        return None, False
    try:
        stated = json.loads(text)
        alpha, root = stated["lora_alpha"], bool(stated.get("use_rslora", False))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
            raise ValueError(f"lora_alpha is {alpha!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"the configuration of the LoRA {path} cannot be read ({error}): it must state lora_alpha; fetch it again") from None
    return float(alpha), root


def check_targets(lora: LoRA, base: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold an adapter against the base it is for: the same weights, each of fitting shape. `shapes` are the base's."""
    file = lora.source.files[0]
    wanted = {name for name in base if TARGET.fullmatch(name)}
    common = f"{len(wanted & lora.pairs.keys())} of the {len(lora.pairs)} weights it adapts are among the {len(wanted)} of this base"
    if surplus := lora.pairs.keys() - wanted:
        raise BadWeights(f"{file} adapts {first_of(surplus)}, which is no target ({common}): a LoRA of another model, name this model's")
    if missing := wanted - lora.pairs.keys():
        raise BadWeights(f"{file} does not adapt {first_of(missing)} ({common}): it is incomplete or of another model, fetch it again")
    for name, (a, b) in lora.pairs.items():
        found, (out, *width) = (lora.source.shape(b), lora.source.shape(a)), shapes[name]
        if found != ((out, lora.rank), (lora.rank, *width)):
            raise BadWeights(
                f"{file}: {name!r} gets B x A of {found} for a base of {shapes[name]}: a LoRA of another size, name this model's"
            )


def merge_cached(base: Weights, lora_file: Path, cache: Path, alpha: float | None = None) -> Path:
    """The index of base + LoRA in the cache: written shard by shard, each atomically, the index last; found there the next time.

    The folder is named by the content of the LoRA (sha256) and the fingerprints of the base: a change of either merges again.
    A merge that was interrupted continues with the shard it had not finished.
    """
    lora = read_lora(lora_file, alpha)
    check_targets(lora, base, {name: base.shape(name) for name in base if name in lora.pairs})
    parts = {"scale": lora.scale, "lora": hash_file(lora_file), "base": {f.name: fingerprint(f) for f in base.files}}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    index = cache / "merged" / key[:16] / DIT_INDEX
    if index.exists() and all(read_metadata(index.parent / f.name).get(MERGE) == key for f in base.files):  # also where this user may not write
        return index
    with locked(index):
        shards = [f for f in base.files if read_metadata(index.parent / f.name).get(MERGE) != key]
        for shard in shards:
            log.warning("merging %s into %s, once", lora_file.name, index.parent / shard.name)
            shapes = {name: (base.dtype(name), base.shape(name)) for name in base.names_in(shard)}
            write_safetensors(index.parent / shard.name, shapes, lambda name: lora.merge(name, base[name]), {MERGE: key})
        if shards or not index.exists():
            write_text(index, json.dumps({"metadata": parts, "weight_map": {name: base.where(name).name for name in base}}))
    return index
