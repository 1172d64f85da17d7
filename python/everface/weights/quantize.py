"""The official 8-bit policy: which layers of the DiT multiply in e4m3, and putting them there, after the LoRA is merged.

Every Linear but the embeddings of text and time, the output head and the last layer of the audio encoder: the q, k, v, o and ffn
of all blocks and the audio injectors with their AdaIN, 15.94 of the 16.30 G weights of the release. Convolutions stay.
"""

from __future__ import annotations

import torch
from torch import nn

from everface.kernels.linear.fp8_linear import fp8_linear, quantise_tensor

EXCLUDED = ("text_embedding", "time_embedding", "time_projection", "head.head", "casual_audio_encoder.encoder.final_linear")


class FP8Linear(nn.Module):
    """A Linear with e4m3 weight codes [out, in] and one scale [1] (float32); the bias is as it was. Not for training.

    Codes and scale are buffers: move the module with `.to(device)`, never with `.to(dtype)`, which would widen the codes again.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        codes_OI, scale_1 = quantise_tensor(layer.weight.detach())
        self.register_buffer("weight", codes_OI)
        self.register_buffer("scale", scale_1)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out] in x's dtype; x is coded with one scale for the whole call."""
        return fp8_linear(x, self.weight, self.scale, self.bias)


def quantised_names(dit: nn.Module) -> list[str]:
    """The names of the modules that the policy quantises, in module order."""
    linears = (name for name, module in dit.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if not any(name == out or name.startswith(f"{out}.") for out in EXCLUDED)]


def quantise(dit: nn.Module) -> None:
    """Replace those layers in place by FP8Linear, one at a time, so that no more than one weight is held twice."""
    for name in quantised_names(dit):
        path, _, leaf = name.rpartition(".")
        parent = dit.get_submodule(path)
        layer = parent.get_submodule(leaf)
        assert isinstance(layer, nn.Linear)
        setattr(parent, leaf, FP8Linear(layer))
