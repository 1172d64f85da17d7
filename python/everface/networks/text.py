"""The prompt encoder: text -> features [T, text_dim]. The official one is the umT5-xxl encoder; a model without text sees zeros.

umT5 layer:  x += o(softmax(q k^T + bias + mask) v) of norm1(x);   x += fc2(fc1(u) * gelu_tanh(gate(u))), u = norm2(x)
No biases, no 1/sqrt(d), RMS norm with eps 1e-6 and float32 statistics, softmax in float32. Every layer has its own table of
relative-position biases. Keys are those of `models_t5_umt5-xxl-enc-bf16`. Legend: B batch, T tokens, D width, H heads, N buckets.
Source: arXiv 2304.09151 and the released checkpoint.
"""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from everface.core.config import TextConfig
from everface.core.errors import BadWeights


class Prompter(Protocol):
    """What the stream needs of a prompt encoder."""

    def features(self, prompt: str) -> Tensor:
        """[T, text_dim] of the prompt's true length; the transformer pads it with zeros."""
        ...


def relative_bucket(offset: Tensor, num_buckets: int, max_dist: int) -> Tensor:
    """T5's bidirectional bucket of key - query. int64 -> int64 in 0..num_buckets-1.

    Half the buckets for each sign; of n = num_buckets / 2, distances below n/2 have their own, then logarithmically up to max_dist.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_dist / exact) * (half - exact)
    far = (exact + scaled.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0).long()


class T5Norm(nn.Module):
    """weight * x / sqrt(mean(x^2) + 1e-6), statistics in float32, rounded to the weight's dtype before it is multiplied."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = F.rms_norm(x_BTD.float(), x_BTD.shape[-1:], eps=1e-6)
        return y_BTD.to(self.weight.dtype) * self.weight


class _PositionBias(nn.Module):
    """Table [N, H] of biases by bucket."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_buckets, self.max_dist = config.num_buckets, config.max_dist
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, length: int) -> Tensor:
        """Bias of every (query, key) pair: [1, H, T, T]."""
        at_T = torch.arange(length, device=self.embedding.weight.device)
        bucket_TT = relative_bucket(at_T[None] - at_T[:, None], self.num_buckets, self.max_dist)
        return self.embedding(bucket_TT).permute(2, 0, 1)[None]


class _Attention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.k = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.v = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        q, k, v = (w(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        p_BHTT = torch.softmax((q @ k.transpose(-1, -2) + bias_BHTT).float(), -1).to(v.dtype)
        return self.o((p_BHTT @ v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.fc1(x_BTD) * self.gate(x_BTD))


class _Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm1 = T5Norm(config.dim)
        self.attn = _Attention(config)
        self.norm2 = T5Norm(config.dim)
        self.ffn = _FeedForward(config)
        self.pos_embedding = _PositionBias(config)

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor | None) -> Tensor:
        bias_BHTT = self.pos_embedding(x_BTD.shape[1])
        if mask_B11T is not None:
            bias_BHTT = bias_BHTT.masked_fill(~mask_B11T, torch.finfo(x_BTD.dtype).min)
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), bias_BHTT)
        return x_BTD + self.ffn(self.norm2(x_BTD))


class UMT5Encoder(nn.Module):
    """Token ids [B, T] (and a mask [B, T], 1 = real) -> features [B, T, dim] in the weights' dtype; rows of padding mean nothing."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = T5Norm(config.dim)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        mask_B11T = None if mask_BT is None else mask_BT.bool()[:, None, None]
        x_BTD = self.token_embedding(ids_BT)
        for layer in self.blocks:
            x_BTD = layer(x_BTD, mask_B11T)
        return self.norm(x_BTD)


def prepare_prompt(text: str) -> str:
    """The official cleaning: fix mojibake, unescape HTML twice (`&amp;lt;`), collapse whitespace."""
    import ftfy  # imported only where a prompt is used

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def load_tokenizer(folder: Path, text_len: int) -> Tokenizer:
    """The checkpoint's own `google/umt5-xxl/tokenizer.json`, cutting to text_len tokens, the closing </s> included.

    The file is read as it is: rebuilding a T5 tokenizer from its SentencePiece model would lose umT5's normalization.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadWeights(f"cannot read the tokenizer {path}: {error}; pull the checkpoint again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(text_len)
    return tokenizer


class TextEncoder:
    """Prompt -> float32 features [T, dim], T = its true number of tokens, at most text_len.

    Officially the prompt is padded to 512 and masked, then cut to T: the mask makes padding exactly invisible, so only the T
    real tokens are computed.
    """

    def __init__(self, model: UMT5Encoder, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def features(self, prompt: str) -> Tensor:
        ids_1T = torch.tensor([self.tokenizer.encode(prepare_prompt(prompt)).ids], device=self.model.norm.weight.device)
        return self.model(ids_1T)[0].float()


class NoText:
    """For models trained without text: one zero vector, [1, text_dim] float32, for any prompt."""

    def __init__(self, text_dim: int) -> None:
        self.text_dim = text_dim

    def features(self, prompt: str) -> Tensor:
        return torch.zeros(1, self.text_dim)
