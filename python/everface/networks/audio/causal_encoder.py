"""The causal audio encoder: audio features at the video frame rate -> audio tokens at the latent frame rate.

    a_l     = SiLU(weights_l);   x = sum_l(a_l f_l) / sum_l(a_l)                                     mix of L feature layers
    local   = act(conv3(act(conv2(act(conv1_local(x) as A streams)))))  then `padding_tokens`        K = A + 1 tokens a frame
    global  = final_linear(act(conv3(act(conv2(act(conv1_global(x)))))))                             one vector a frame

act is a parameter-free LayerNorm (eps 1e-6) over channels, then SiLU. Every conv has 3 taps and a left padding of two copies of
its first sample; conv2 and conv3 (shared by both branches) have stride 2. Output step k of a window therefore sees exactly the
window's frames 4k-8..4k, and from k = 2 on no padding at all. Latent frame j of a block ends on the block's video frame 4j+3, so a
prefix of `PAST_FRAMES` = 5 frames and the loss of the first 2 steps give the block's 3 latent frames exactly; a longer prefix
(official: 73 copies of the block's first frame, 19 steps dropped) computes the same numbers.

Always float32, in any dtype of the weights. Legend: B batch, L feature layers, C feature channels, T video frames,
F latent frames, A streams, K tokens a latent frame, D width. Keys are the official ones below `casual_audio_encoder.`.
Source: arXiv 2512.04677 and its released checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAST_FRAMES = 5  # video frames before a block that its first latent frame still sees
_PADDED_STEPS = 2  # output steps of a window that see its replicated left edge


class CausalConv(nn.Module):
    """3 taps in time, left padding by repeating the first sample. [B, C_in, T] -> [B, C_out, ceil(T / stride)], float32."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, 3, stride=stride)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = F.pad(x_BCT, (2, 0), mode="replicate")
        bias = self.conv.bias.float() if self.conv.bias is not None else None
        return F.conv1d(x_BCT, self.conv.weight.float(), bias, stride=self.conv.stride)


def _norm_silu(x_BCT: Tensor) -> Tensor:
    """SiLU(LayerNorm over channels, no affine, eps 1e-6). [B, C, T] -> [B, C, T]."""
    x_BTC = x_BCT.transpose(1, 2)
    return F.silu(F.layer_norm(x_BTC, x_BTC.shape[-1:], eps=1e-6)).transpose(1, 2)


class _Branches(nn.Module):
    """Local and global branch over mixed features. Holds the keys below `encoder.`."""

    def __init__(self, dim: int, audio_dim: int, num_audio_token: int) -> None:
        super().__init__()
        self.streams = num_audio_token
        self.conv1_local = CausalConv(audio_dim, dim // 4 * num_audio_token)
        self.conv1_global = CausalConv(audio_dim, dim // 4)
        self.conv2 = CausalConv(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def _tail(self, x_NCT: Tensor) -> Tensor:
        """[N, D/4, T] -> [N, F, D]: the part both branches share."""
        x_NCT = _norm_silu(self.conv2(_norm_silu(x_NCT)))
        return _norm_silu(self.conv3(x_NCT)).transpose(1, 2)

    def forward(self, x_BCT: Tensor) -> tuple[Tensor, Tensor]:
        local_NCT = self.conv1_local(x_BCT).unflatten(1, (self.streams, -1)).flatten(0, 1)
        local_BFAD = self._tail(local_NCT).unflatten(0, (-1, self.streams)).transpose(1, 2)
        pad_BF1D = self.padding_tokens.float().expand(*local_BFAD.shape[:2], 1, -1)
        global_BFD = self._tail(self.conv1_global(x_BCT))
        global_BFD = F.linear(global_BFD, self.final_linear.weight.float(), self.final_linear.bias.float())
        return torch.cat([local_BFAD, pad_BF1D], 2), global_BFD


class CausalAudioEncoder(nn.Module):
    """Features [B, L, C, T] -> local tokens [B, F, K, D] and a global vector [B, F, D] per latent frame. Differentiable, float32.

    dim D: width of the transformer, a multiple of 4; audio_dim C; layers L; num_audio_token A = K - 1.
    """

    def __init__(self, dim: int, audio_dim: int, layers: int, num_audio_token: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, layers, 1, 1))
        self.encoder = _Branches(dim, audio_dim, num_audio_token)

    def forward(self, features_BLCT: Tensor) -> tuple[Tensor, Tensor]:
        """The raw window, its left edge replicated: T frames give F = ceil(ceil(T / 2) / 2) steps."""
        with torch.autocast(features_BLCT.device.type, enabled=False):
            mix_1L11 = F.silu(self.weights.float())
            x_BCT = (features_BLCT.float() * mix_1L11).sum(1) / mix_1L11.sum(1)
            return self.encoder(x_BCT)

    def encode_blocks(self, features_BLCT: Tensor) -> tuple[Tensor, Tensor]:
        """5 past frames and then whole blocks: T = 5 + 4F frames give exactly F latent frames. For training and long windows."""
        local_BFKD, global_BFD = self(features_BLCT)
        return local_BFKD[:, _PADDED_STEPS:], global_BFD[:, _PADDED_STEPS:]

    def encode_block(self, features_LCT: Tensor, past_LCT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One block: features [L, C, 12] -> local [3, K, D], global [3, D].

        past: the 5 video frames before the block, [L, C, 5]; None is the official padding, the block's own first frame repeated.
        """
        if past_LCT is None:
            past_LCT = features_LCT[..., :1].expand(-1, -1, PAST_FRAMES)
        local_BFKD, global_BFD = self.encode_blocks(torch.cat([past_LCT, features_LCT], -1)[None])
        return local_BFKD[0], global_BFD[0]
