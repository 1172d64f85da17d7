"""Q-Align's paths on tiny models with random weights: a LLaVA of transformers' own class, and a folder that brings its code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.genbench.conftest import Draw

from everface.genbench.metrics.measurement import NotAvailable
from everface.genbench.metrics.q_align import LEVELS, QAlign, level_score

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CODE = '''
import torch
from transformers import PretrainedConfig, PreTrainedModel

class TinyConfig(PretrainedConfig):
    model_type = "tiny_one_align"

class TinyOneAlign(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()
    def score(self, images, task_="quality", input_="image"):
        assert input_ == "image"
        return torch.tensor([float(image.size[0]) if task_ == "quality" else 2.0 for image in images]) / 32 + self.weight
'''


def test_the_score_is_the_mean_of_the_levels() -> None:
    assert level_score(torch.zeros(5)) == pytest.approx(3.0)
    assert level_score(torch.tensor([50.0, 0, 0, 0, 0])) == pytest.approx(5.0)
    p = [math.exp(x) for x in (1.0, 2.0, 0.5, -1.0, 0.0)]
    by_hand = sum(weight * value for weight, value in zip((5, 4, 3, 2, 1), p)) / sum(p)
    assert level_score(torch.tensor([1.0, 2.0, 0.5, -1.0, 0.0])) == pytest.approx(by_hand, abs=1e-5)


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<unk>", "<image>", *LEVELS, "USER:", "ASSISTANT:", "How", "would", "you", "rate", "the", "quality", "aesthetics", "of"]
    words += ["this", "image?", "The", "image", "is"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    size = {"height": 28, "width": 28}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    transformers.LlavaProcessor(images, fast, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1).save_pretrained(folder)
    vision = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(words))
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=2)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def test_a_model_of_transformers_rates_by_the_formula(draw: Draw, tiny_llava: Path) -> None:
    metric, window = QAlign.load(tiny_llava), draw(0)
    found = metric.measure(window)
    assert set(found) == {"iqa", "ase"} and all(1 <= score <= 5 for score in found.values())
    processor = transformers.AutoProcessor.from_pretrained(tiny_llava)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    scores = []
    for frame in window.frames_THW3[12::25]:
        text = "USER: How would you rate the quality of this image?\n<image>\nASSISTANT: The quality of the image is"
        given = processor(images=Image.fromarray(frame.numpy()), text=text, return_tensors="pt")
        with torch.inference_mode():
            p = model(**given).logits[0, -1, [3, 4, 5, 6, 7]].double().softmax(0).tolist()
        scores.append(sum(weight * value for weight, value in zip((5, 4, 3, 2, 1), p)))
    assert found["iqa"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert len(set(scores)) == len(scores)  # the image matters


def test_code_of_a_folder_runs_only_if_it_is_trusted(draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "one_align_folder"
    folder.mkdir()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "modeling_tiny.py").write_text(CODE)
    auto = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyOneAlign"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_one_align", "auto_map": auto, "architectures": ["TinyOneAlign"]}))
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotAvailable, match="--trust-qalign"):
        QAlign.load(folder)
    found = QAlign.load(folder, trust=True).measure(draw(0))
    assert found == {"iqa": pytest.approx(4.0), "ase": pytest.approx(2 / 32)}


def test_absent_weights_give_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="--qalign"):
        QAlign.load(None)
    with pytest.raises(NotAvailable, match=r"config\.json"):
        QAlign.load(tmp_path)
