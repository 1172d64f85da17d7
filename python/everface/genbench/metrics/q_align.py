"""IQA and ASE, the paper's measures of image quality and aesthetics, by Q-Align (Wu et al. 2023, arXiv 2312.17090).

A vision-language model is asked to rate an image, and the probabilities of five words as the next token are averaged:

    score = sum_k (5 - k) p_k, k = 0..4 for excellent, good, fair, poor, bad; p = softmax of these five logits;   1..5

iqa asks for the quality, ase for the aesthetics, of one frame a second. Weights: the folder of q-future/one-align, of which the class is not in
transformers but in the folder: it is run only with --trust-qalign. Or any image-text model of transformers that was trained on these levels,
such as a LLaVA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from everface.core.config import FPS
from everface.genbench.metrics.dino import load_pretrained
from everface.genbench.metrics.measurement import Measures, NotAvailable
from everface.genbench.windows import ClipWindow

LEVELS = ("excellent", "good", "fair", "poor", "bad")
QUESTIONS = {
    "iqa": ("quality", "How would you rate the quality of this image?", "The quality of the image is"),
    "ase": ("aesthetics", "How would you rate the aesthetics of this image?", "The aesthetics of the image is"),
}


class Rater(Protocol):
    """Rates images."""

    def rate(self, images: list[Image.Image], measure: str) -> list[float]:
        """A score of 1..5 for each, `measure` of QUESTIONS."""
        ...


class LevelRater:
    """A model of transformers that takes an image and text, asked by the formula above."""

    def __init__(self, model: Any, processor: Any, device: str = "cpu") -> None:
        self.model, self.processor, self.device = model.eval().to(device), processor, device
        encoded = [processor.tokenizer(f" {level}", add_special_tokens=False)["input_ids"] for level in LEVELS]
        if any(not tokens for tokens in encoded):
            raise NotAvailable("the model's tokenizer does not know the words excellent, good, fair, poor, bad")
        self.levels = [tokens[-1] if len(tokens) == 1 else tokens[0] for tokens in encoded]
        if len(set(self.levels)) < len(LEVELS):
            raise NotAvailable("the model's tokenizer does not tell the words excellent, good, fair, poor, bad apart")

    @torch.inference_mode()
    def rate(self, images: list[Image.Image], measure: str) -> list[float]:
        _, question, beginning = QUESTIONS[measure]
        token = getattr(self.processor, "image_token", "<image>")
        scores = []
        for image in images:
            given = self.processor(images=image, text=f"USER: {question}\n{token}\nASSISTANT: {beginning}", return_tensors="pt").to(self.device)
            scores.append(level_score(self.model(**given).logits[0, -1, self.levels]))
        return scores


class OneAlignRater:
    """The published model, whose own code has the formula: `score(images, task_=, input_=)`."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def rate(self, images: list[Image.Image], measure: str) -> list[float]:
        return [float(x) for x in self.model.score(images, task_="aesthetics" if measure == "ase" else "quality", input_="image")]


class QAlign:
    names = ("iqa", "ase")

    def __init__(self, rater: Rater) -> None:
        self.rater = rater

    @classmethod
    def load(cls, folder: Path | None, trust: bool = False, device: str = "cpu") -> QAlign:
        """Raises NotAvailable. `trust`: run the code that the folder brings."""
        if folder is None:
            raise NotAvailable("needs Q-Align's weights: download q-future/one-align and pass its folder as --qalign DIR")
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

        if not brings_code(folder):
            model = load_pretrained(AutoModelForImageTextToText, folder, "--qalign")
            return cls(LevelRater(model, AutoProcessor.from_pretrained(folder, local_files_only=True), device))
        if not trust:
            raise NotAvailable(f"{folder} brings code of its own, which runs with your rights: read it, then pass --trust-qalign")
        model = load_pretrained(AutoModelForCausalLM, folder, "--qalign", trust_remote_code=True)
        if not hasattr(model, "score"):
            raise NotAvailable(f"the code in {folder} has no `score`: pass the folder of q-future/one-align")
        return cls(OneAlignRater(model.to(device)))

    def measure(self, window: ClipWindow) -> Measures:
        images = [Image.fromarray(frame.numpy()) for frame in window.frames_THW3[FPS // 2 :: FPS]]
        if not images:
            raise NotAvailable("less than half a second of video")
        return {name: sum(scores) / len(scores) for name in self.names if (scores := self.rater.rate(images, name))}


def level_score(logits_5: torch.Tensor) -> float:
    """1..5 of the logits of LEVELS."""
    return (logits_5.float().softmax(0) @ torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], device=logits_5.device)).item()


def brings_code(folder: Path) -> bool:
    """Whether the model's class is in the folder and not in transformers."""
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
