"""Weights into modules, strictly: nothing missing or surplus, every shape and kind right, all known before a tensor moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from everface.core import env
from everface.core.config import ModelConfig
from everface.core.errors import BadWeights
from everface.core.live_talk_config import LiveTalkModelConfig
from everface.weights.convert import convert_cached
from everface.weights.files import Weights, first_of, open_file, open_index
from everface.weights.layout import LORA, Layout, detect_layout
from everface.weights.lora import merge_cached, read_lora


def load_into(
    module: nn.Module,
    source: Mapping[str, torch.Tensor],
    prefix: str = "",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill every parameter and persistent buffer of `module` from `source`, where its key k is called prefix + k.

    `source` is a plain map of tensors or a `Weights`, of which one tensor at a time is in memory. The module may be on the meta
    device if it computes no buffers itself. dtype (of floating tensors) and device default to the module's own; from meta,
    to the CPU. Keys of the source outside the prefix are another module's. Raises BadWeights, before anything is changed, naming
    file, first offending key and how many more.
    """
    slots = module.state_dict(keep_vars=True)
    check_weights(module, source, prefix)
    with torch.no_grad():
        for key, slot in slots.items():
            where = device or ("cpu" if slot.is_meta else slot.device)
            kind = dtype if dtype and slot.is_floating_point() else slot.dtype
            # A copy, never a view of the file, which may be replaced; in the memory layout that the module chose.
            tensor = torch.empty_strided(slot.shape, slot.stride(), dtype=kind, device=where).copy_(source[prefix + key])
            path, _, leaf = key.rpartition(".")
            is_parameter = isinstance(slot, nn.Parameter)
            setattr(module.get_submodule(path), leaf, nn.Parameter(tensor, slot.requires_grad) if is_parameter else tensor)
    if device:
        module.to(device)  # buffers that are not in the file


def check_weights(module: nn.Module, source: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Raises BadWeights as `load_into` does, and loads nothing."""
    wanted = {prefix + key: slot for key, slot in module.state_dict(keep_vars=True).items()}
    held = {name for name in source if name.startswith(prefix)}
    faults = (
        ([n for n in wanted if n not in held], lambda n: "is missing"),
        ([n for n in held if n not in wanted], lambda n: "is not a weight of this model"),
        (
            [n for n in wanted if n in held and _shape(source, n) != tuple(wanted[n].shape)],
            lambda n: f"has the shape {list(_shape(source, n))} instead of {list(wanted[n].shape)}",
        ),
        (
            [n for n in wanted if n in held and _kind(_dtype(source, n)) != _kind(wanted[n].dtype)],
            lambda n: f"is {_dtype(source, n)} where {_kind(wanted[n].dtype)} numbers belong",
        ),
    )
    for names, fault in faults:
        if names:
            first = min(names)
            file = f"{source.where(first)}: " if isinstance(source, Weights) else ""
            raise BadWeights(f"{file}{first_of(names)} {fault(first)}; the file is incomplete or of another architecture")


def _shape(source: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    return source.shape(name) if isinstance(source, Weights) else tuple(source[name].shape)


def _dtype(source: Mapping[str, torch.Tensor], name: str) -> torch.dtype:
    return source.dtype(name) if isinstance(source, Weights) else source[name].dtype


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating" if dtype.itemsize > 1 else "8-bit floating"
    return "complex" if dtype.is_complex else "boolean" if dtype == torch.bool else "whole"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, opened. Each part is read, and if need be converted or merged, only when its method is called.

    `prefixes` narrow a part to what a role needs, e.g. vae(("decoder.", "conv2.")).
    """

    layout: Layout
    lora: Path | None
    cache: Path | None  # None: core.env.cache_dir()

    @property
    def config(self) -> ModelConfig:
        """Live Avatar's. Raises BadWeights for another model's weights."""
        config = self.layout.config
        if not isinstance(config, ModelConfig):
            raise BadWeights(f"{self.layout.root} holds {config.name}, which cannot be used here: name a folder of Live Avatar or of our own model")
        return config

    @property
    def live_talk(self) -> LiveTalkModelConfig:
        """LiveTalk's. Raises BadWeights for another model's weights."""
        config = self.layout.config
        if not isinstance(config, LiveTalkModelConfig):
            raise BadWeights(f"{self.layout.root} holds {config.name}, not LiveTalk: name another folder")
        return config

    def dit(self, prefixes: Iterable[str] = ()) -> Weights:
        """The DiT under its official key names, with the LoRA merged in; only the official model needs one."""
        own = self.layout.kind != "official"
        base = open_file(self.layout.dit) if own else open_index(self.layout.dit)
        if self.lora is not None:
            base = open_index(merge_cached(base, self.lora, self._cache()))
        elif not own:
            raise BadWeights(f"{self.layout.root} has the base model without the LoRA {LORA}; add or name it")
        return base.select(prefixes)

    def vae(self, prefixes: Iterable[str] = ()) -> Weights:
        """The video VAE under its official key names."""
        return self._open(self.layout.vae).select(prefixes)

    def text(self) -> Weights:
        """The umT5 encoder."""
        return self._open(self._need(self.layout.text, "prompt encoder"))

    def audio(self) -> Weights:
        """The wav2vec2 model under Hugging Face's key names (`wav2vec2.*`, and `lm_head.*`, which is of no use here)."""
        return self._open(self._need(self.layout.audio_weights(), "wav2vec2 model"))

    def audio_folder(self) -> Path:
        """The folder of wav2vec2, with its sizes in config.json."""
        return self._need(self.layout.audio, "wav2vec2 model")

    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self._need(self.layout.tokenizer, "tokenizer")

    def prepare(self) -> None:
        """Convert and merge everything now, so that the processes started next only read."""
        self.dit()
        self.vae()
        if self.layout.config.text.kind == "umt5":
            self.text()
        if self.layout.kind == "livetalk" or self.config.audio.kind == "wav2vec2":
            self.audio()

    def _open(self, path: Path) -> Weights:
        return open_file(path if path.suffix == ".safetensors" else convert_cached(path, self._cache()))

    def _cache(self) -> Path:
        return self.cache or env.cache_dir()

    def _need(self, path: Path | None, what: str) -> Path:
        if path is None or not path.exists():
            raise BadWeights(f"{self.layout.root} has no {what} ({path.name if path else 'not in this layout'}); fetch it again")
        return path


def open_checkpoint(root: Path, lora: Path | None = None, cache: Path | None = None) -> Checkpoint:
    """Open a model folder of either layout. `lora`: the adapter, if it is not `liveavatar.safetensors` in the folder itself;
    `cache`: where converted and merged weights go, by default `core.env.cache_dir()`."""
    layout = detect_layout(root)
    if lora is not None and layout.kind == "livetalk":
        raise BadWeights(f"{root} holds LiveTalk, whose weights are complete: leave the LoRA {lora} out")
    if lora is not None:
        read_lora(lora)  # now, not after minutes of other work
    return Checkpoint(layout, lora or layout.lora, cache)
