"""LiveTalk's audio front end: every hidden state of wav2vec2-base, computed at the video frame rate.

Unlike in wav2vec.py the convolutions' features are resampled, and the transformer runs on one row a video frame. Row i of a clip stands for its
sample i * samples_per_frame. Bidirectional, so its window's length is part of its result; the model was trained on clips of 81 rows. The features
of a frame are [last, h0, .., h_layers] joined, so the last state is in them twice.
Legend: S samples, T rows, C hidden size, K = (layers + 2) * C. Source: arXiv 2006.11477, arXiv 2512.23576.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Wav2Vec2Model

from everface.networks.audio.wav2vec import HOP, RECEPTIVE, normalize_window


class FrameRateWav2Vec2:
    """Over a model of `build_wav2vec2`. `lookback`, `lookahead`: rows before and behind those that are asked for."""

    def __init__(self, model: Wav2Vec2Model, samples_per_frame: int, lookback: int, lookahead: int) -> None:
        self.model, self.samples_per_frame = model, samples_per_frame
        self.lookback_samples, self.lookahead_samples = lookback * samples_per_frame, lookahead * samples_per_frame
        self.channels = (model.config.num_hidden_layers + 2) * model.config.hidden_size

    @torch.no_grad()
    def convolve(self, normalized_S: Tensor) -> Tensor:
        """Convolution features at 50 Hz, float32 [floor((S - 400) / 320) + 1, conv channels]."""
        padded_S = F.pad(normalized_S, (0, max(0, RECEPTIVE - normalized_S.shape[0])))
        return self.model.feature_extractor(padded_S.to(self.model.dtype)[None])[0].T.float()

    @torch.no_grad()
    def encode(self, rows_TC: Tensor) -> Tensor:
        """Resampled convolution features -> features [T, K] float32."""
        projected, _ = self.model.feature_projection(rows_TC.to(self.model.dtype)[None])
        encoder = self.model.encoder
        states = [encoder.layer_norm(projected + encoder.pos_conv_embed(projected))]
        for layer in encoder.layers:
            out = layer(states[-1])
            states.append(out if isinstance(out, Tensor) else out[0])  # a tuple before transformers 5
        return torch.cat([states[-1], *states], dim=-1)[0].float()

    def clip_features(self, normalized_S: Tensor, rows: int) -> Tensor:
        """A whole clip at once, as the release computes it: [S] -> [rows, K]."""
        return self.encode(resample_ends(self.convolve(normalized_S), rows))

    def features(self, pcm_S: Tensor, rows: int) -> Tensor:
        """Window [lookback + rows + lookahead frames] of samples -> [rows, K], each row at its proper time.

        Leading zeros of the look-back are cut off, in whole frames: the model was trained on clips that begin where they begin.
        """
        nonzero = torch.nonzero(pcm_S[: self.lookback_samples])
        first = int(nonzero[0]) if len(nonzero) else self.lookback_samples
        cut = first // self.samples_per_frame
        window_S = normalize_window(pcm_S[cut * self.samples_per_frame :].float())
        conv_TC = self.convolve(window_S)
        at_T = torch.arange(len(window_S) // self.samples_per_frame, dtype=torch.float64) * self.samples_per_frame / HOP
        before = self.lookback_samples // self.samples_per_frame - cut
        return self.encode(read_rows(conv_TC, at_T))[before : before + rows]


def resample_ends(x_TC: Tensor, rows: int) -> Tensor:
    """Linear, end points on end points: [T, C] -> [rows, C]."""
    return F.interpolate(x_TC.T[None], size=rows, mode="linear", align_corners=True)[0].T


def read_rows(x_TC: Tensor, at_R: Tensor) -> Tensor:
    """Rows at fractional positions, linearly; the last row stands for what is past the end."""
    at_R = at_R.clamp(max=len(x_TC) - 1)
    low_R = at_R.floor().long()
    weight_R1 = (at_R - low_R).float()[:, None]
    return torch.lerp(x_TC[low_R], x_TC[(low_R + 1).clamp(max=len(x_TC) - 1)], weight_R1)
