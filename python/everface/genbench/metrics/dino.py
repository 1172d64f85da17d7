"""Dino-S, the paper's measure of identity: the mean cosine between DINOv2's class token of a frame and that of the reference image.

dino_s = mean over frames, five a second, of cos(f(frame), f(reference)). Weights: a folder as `hf download facebook/dinov2-base`
makes it (Oquab et al. 2023, arXiv 2304.07193; Apache-2.0), loaded by transformers. The paper does not say which size it took.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.genbench.metrics.color_likeness import EVERY
from everface.genbench.metrics.measurement import Measures, NotAvailable
from everface.genbench.windows import ClipWindow

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, BATCH = 224, 16


class DinoIdentity:
    names = ("dino_s",)

    def __init__(self, model: Any, device: str = "cpu") -> None:
        self.model, self.device = model.eval().to(device), device

    @classmethod
    def load(cls, folder: Path | None, device: str = "cpu") -> DinoIdentity:
        """Raises NotAvailable without weights, or with those of another model."""
        if folder is None:
            raise NotAvailable("needs DINOv2's weights: download facebook/dinov2-base and pass its folder as --dino DIR")
        from transformers import Dinov2Model

        return cls(load_pretrained(Dinov2Model, folder, "--dino"), device)

    @torch.inference_mode()
    def tokens(self, frames_NHW3: Tensor) -> Tensor:
        """Class tokens [N, dim] of uint8 frames: shorter side to 256, the central 224 x 224, ImageNet's mean and deviation."""
        tokens = []
        for part in frames_NHW3.split(BATCH):
            x = part.permute(0, 3, 1, 2).float().to(self.device) / 255
            scale = 256 / min(x.shape[-2:])
            size = [max(256, round(side * scale)) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
            top, left = ((side - SIZE) // 2 for side in size)
            x = (x[..., top : top + SIZE, left : left + SIZE] - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(DEVIATION).view(3, 1, 1)
            tokens.append(self.model(pixel_values=x).last_hidden_state[:, 0].float().cpu())
        return torch.cat(tokens)

    def measure(self, window: ClipWindow) -> Measures:
        reference = self.tokens(window.reference_HW3[None])
        return {"dino_s": F.cosine_similarity(self.tokens(window.frames_THW3[::EVERY]), reference).mean().item()}


def load_pretrained(kind: Any, folder: Path, flag: str, **options: Any) -> Any:
    """A model of transformers from a local folder of safetensors; nothing is downloaded. Raises NotAvailable."""
    if not (folder / "config.json").is_file():
        raise NotAvailable(f"{folder} has no config.json: pass the folder of the downloaded model as {flag} DIR")
    try:
        model, info = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options)
    except Exception as error:  # transformers raises whatever its loaders do
        raise NotAvailable(f"{folder} cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise NotAvailable(f"{folder} has weights of another model: {len(missing)} are missing, such as {missing[0]}")
    return model
