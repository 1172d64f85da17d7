"""The JSON files of weights: every wrong value is one sentence that names it, and nothing is built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_model import SMALL

from everface.core.config import DiTConfig, ModelConfig
from everface.core.errors import BadWeights
from everface.core.json_file import MAX_BYTES, read_json


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1, 2]", b"[" * 100_000, b'{"dit": "\xff"}', b'{"name": "a" "b"}', b"\x89PNG\r\n", b"9" * 10_000],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadWeights, match=r"config\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json", tmp_path / ("n" * 300)):
        with pytest.raises(BadWeights, match="cannot be read"):
            read_json(path)
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadWeights, match="more than 64 MB"):
        read_json(tmp_path / "big.json")


def test_names_in_any_script_are_read_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"name": "лицо"}, ensure_ascii=False), encoding="utf-8")
    assert ModelConfig.read(tmp_path / "config.json").name == "лицо"


WRONG: dict[str, tuple[str, Any]] = {
    "text for a number": ("dit.dim", "64"),
    "a fraction": ("dit.num_layers", 3.5),
    "a truth": ("dit.num_layers", True),
    "zero": ("dit.num_heads", 0),
    "below zero": ("dit.ffn_dim", -96),
    "too many layers": ("dit.num_layers", 10**6),
    "beyond every number": ("dit.dim", 10**400),
    "null": ("dit.text_len", None),
    "a number for a list": ("dit.patch_size", 2),
    "text in a list": ("dit.audio_inject_layers", [0, "2"]),
    "a list in a list": ("dit.audio_inject_layers", [[0]]),
    "a long list": ("dit.audio_inject_layers", [0] * 5000),
    "not a number": ("dit.eps", float("nan")),
    "infinite": ("dit.eps", float("inf")),
    "a list for a section": ("dit", [1]),
    "text for a section": ("vae", "big"),
    "a VAE beyond memory": ("vae.dim", 10**6),
    "lists of different lengths": ("vae.dim_mult", [1, 2]),
    "means without deviations": ("vae.std", [1.0]),
    "another front end": ("audio.kind", "mp3"),
    "front end beyond memory": ("audio.mels", 10**6),
    "another prompt encoder": ("text.kind", "clip"),
    "half a size": ("size", [64]),
    "an odd size": ("size", [63, 64]),
    "a size in words": ("size", "64x64"),
    "correlation in words": ("noise_correlation", "high"),
    "correlation above one": ("noise_correlation", 1.5),
    "even still frames": ("still_frames", 4),
    "still frames without end": ("still_frames", 1001),
    "a number for a name": ("name", 5),
    "a jaw that opens ten times as far": ("lips.jaw", 10.0),
    "lips that shrink where they are spread": ("lips.wider", -0.1),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_in_a_configuration_is_one_sentence(tmp_path: Path, case: str) -> None:
    raw = json.loads(json.dumps(SMALL.to_dict()))
    key, value = WRONG[case]
    place = raw
    for part in key.split(".")[:-1]:
        place = place[part]
    place[key.split(".")[-1]] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(BadWeights) as caught:
        ModelConfig.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_right_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    assert ModelConfig.read(tmp_path / "config.json") == SMALL
    assert DiTConfig.from_dict({"unknown": 1, "eps": 1}).eps == 1
