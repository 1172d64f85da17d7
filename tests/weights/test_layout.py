"""Layouts are recognized, and another architecture is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.weights.official import TINY

from everface.core.config import ModelConfig
from everface.core.errors import BadWeights
from everface.weights import layout


def change_config(root: Path, **changes: object) -> None:
    raw = json.loads((root / layout.CONFIG).read_text()) | changes
    (root / layout.CONFIG).write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def test_official_layout(pristine: Path) -> None:
    found = layout.detect_layout(pristine)
    assert found.kind == "official"
    assert found.config == TINY
    assert found.lora == pristine / "liveavatar.safetensors"
    parts = (found.dit, found.vae, found.text, found.tokenizer, found.audio, found.audio_weights())
    assert all(part is not None and part.exists() for part in parts)


def test_released_sizes_are_the_default(official: Path) -> None:
    """The released config.json has neither our sections nor the sizes that upstream has in its code only."""
    released = {"dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "num_heads": 40, "num_layers": 40, "audio_dim": 1024}
    layers = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]
    left_out = dict.fromkeys(("vae", "text", "text_dim", "wav2vec_layers", "qk_norm", "cross_attn_norm"))
    change_config(official, **released, **left_out, text_len=512, audio_inject_layers=layers)
    assert layout.detect_layout(official).config == ModelConfig()


def test_own_layout(tmp_path: Path) -> None:
    config = ModelConfig.from_dict({"dit": {"dim": 64, "num_heads": 2}, "text": {"kind": "none"}, "audio": {"kind": "logmel"}})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "dit.safetensors").touch()
    found = layout.detect_layout(tmp_path)
    assert (found.kind, found.config, found.vae) == ("everface", config, tmp_path / "vae.safetensors")
    assert (found.text, found.audio_weights()) == (None, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "t2v"),
        ("model_type", None),
        ("enable_adain", False),
        ("enable_framepack", False),
        ("adain_mode", "other"),
        ("dim", "5120"),
        ("num_heads", 0),
        ("num_layers", True),
        ("vae", 8),
    ],
)
def test_other_architectures_are_refused(official: Path, refusal, key: str, value: object) -> None:
    change_config(official, **{key: value})
    with pytest.raises(BadWeights) as caught:
        layout.detect_layout(official)
    refusal(caught.value, str(official / layout.CONFIG), key)


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_broken_configuration(official: Path, refusal, content: str | None) -> None:
    (official / layout.CONFIG).unlink() if content is None else (official / layout.CONFIG).write_text(content)
    with pytest.raises(BadWeights) as caught:
        layout.detect_layout(official)
    refusal(caught.value, str(official / layout.CONFIG))


def test_neither_layout(tmp_path: Path, refusal) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadWeights) as caught:
            layout.detect_layout(folder)
        refusal(caught.value, str(folder), "config.json")
