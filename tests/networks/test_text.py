"""The umT5 encoder against golden data; the prompt's way from a string to features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from everface.core.config import TextConfig
from everface.core.errors import BadWeights
from everface.networks.text import NoText, TextEncoder, UMT5Encoder, load_tokenizer, prepare_prompt, relative_bucket

GOLDEN = Path(__file__).parents[1] / "golden" / "t5.safetensors"


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def model(data: dict[str, torch.Tensor]) -> UMT5Encoder:
    with safe_open(GOLDEN, "pt") as file:
        config = TextConfig.from_dict(json.loads(file.metadata()["config"]))
    model = UMT5Encoder(config)
    model.load_state_dict({k[2:]: v for k, v in data.items() if k.startswith("w.")}, strict=True)
    return model.requires_grad_(False)


def test_buckets(data: dict[str, torch.Tensor]) -> None:
    assert torch.equal(relative_bucket(data["bucket.rel_pos"], 32, 128), data["bucket.index"])


def test_padded_batch(data: dict[str, torch.Tensor], model: UMT5Encoder) -> None:
    out_BTD = model(data["ids"], data["mask"])
    torch.testing.assert_close(out_BTD[0, :11], data["context0"], atol=5e-5, rtol=0)
    torch.testing.assert_close(out_BTD[1, :140], data["context1"], atol=5e-5, rtol=0)


def test_first_layer(data: dict[str, torch.Tensor], model: UMT5Encoder) -> None:
    out_BTD = model.blocks[0](model.token_embedding(data["ids"]), data["mask"].bool()[:, None, None])
    torch.testing.assert_close(out_BTD[1, :140], data["block0.out_row1"], atol=5e-5, rtol=0)


def test_without_padding(data: dict[str, torch.Tensor], model: UMT5Encoder) -> None:
    torch.testing.assert_close(model(data["ids"][1:, :20])[0], data["nomask.out"], atol=5e-5, rtol=0)
    torch.testing.assert_close(model(data["ids"][:1, :11])[0], data["context0"], atol=5e-5, rtol=0)  # padding is invisible
    torch.testing.assert_close(model(data["ids"][1:, :140])[0], data["context1"], atol=5e-5, rtol=0)


def test_bfloat16_stays_close(data: dict[str, torch.Tensor], model: UMT5Encoder) -> None:
    half = UMT5Encoder(TextConfig(dim=48, dim_attn=48, dim_ffn=80, num_heads=4, num_layers=3, vocab=97)).bfloat16()
    half.load_state_dict(model.state_dict())
    out_BTD = half(data["ids"], data["mask"])
    assert out_BTD.dtype == torch.bfloat16
    scale = data["context1"].square().mean().sqrt()
    assert (out_BTD[1, :140].float() - data["context1"]).square().mean().sqrt() < 0.05 * scale


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a \n\t face  ", "a face"),
        ("l&amp;#39;ann&eacute;e", "l'année"),
        ("schÃ¶n &lt;3", "schön <3"),
        ("", ""),
    ],
)
def test_prepare_prompt(raw: str, clean: str) -> None:
    assert prepare_prompt(raw) == clean


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of the released kind, but of whole words: closes with </s>."""
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "face", "that", "never", "stops"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(length=512)  # as some released files have it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_prompt_to_features(model: UMT5Encoder, folder: Path) -> None:
    encoder = TextEncoder(model, load_tokenizer(folder, text_len=4))
    features_TD = encoder.features(" a  face\n")
    torch.testing.assert_close(features_TD, model(torch.tensor([[3, 4, 1]]))[0])
    cut_TD = encoder.features("a face that never stops")
    torch.testing.assert_close(cut_TD, model(torch.tensor([[3, 4, 5, 1]]))[0])  # </s> survives the cut
    assert encoder.features("").shape == (1, 48)


def test_missing_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path, 512)


def test_no_text() -> None:
    features_TD = NoText(24).features("anything")
    assert features_TD.shape == (1, 24) and features_TD.abs().max() == 0
