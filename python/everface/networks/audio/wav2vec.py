"""The official audio front end: every hidden state of a wav2vec 2.0 model, at the video frame rate.

wav2vec2 gives 50 vectors a second; state k sees samples 320k..320k+399 directly. Video frame n begins at sample 640n, that is at
state 2n: the live front end reads the states there, by linear interpolation when its window does not begin on a state.
Officially the whole file is computed at once, stretched to 30 vectors a second and picked at every 1.2nd: `whole_file_features`.
Legend: S samples, L hidden states (layers + 1), C hidden size, T time. Source: arXiv 2006.11477, arXiv 2512.04677.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from everface.core.config import COMPATS, SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput, BadWeights
from everface.networks.audio.features import check_window

HOP = 320  # samples between hidden states
RECEPTIVE = 400  # samples one hidden state sees through the convolutions


def build_wav2vec2(config: Mapping[str, object], state: Mapping[str, Tensor]) -> Wav2Vec2Model:
    """The encoder from a Hugging Face config.json and its tensors: of Wav2Vec2ForCTC or Wav2Vec2Model, old or new weight-norm names.

    Errors: BadWeights, when a tensor is missing or has another shape.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith(("lm_head.", "dropout.")):
            continue
        key = key.removeprefix("wav2vec2.")
        key = key.replace("conv.weight_g", "conv.parametrizations.weight.original0")
        renamed[key.replace("conv.weight_v", "conv.parametrizations.weight.original1")] = value
    model = Wav2Vec2Model(Wav2Vec2Config(**{**config, "apply_spec_augment": False}))
    renamed.setdefault(
        "masked_spec_embed", torch.zeros(model.config.hidden_size)
    )  # used in training only, absent from some files
    try:
        model.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise BadWeights(f"these tensors are not the wav2vec2 model of their configuration: {error}") from None
    return model.eval().requires_grad_(False)


def normalize(pcm_S: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-7), biased variance: the official one, over the whole file."""
    return (pcm_S - pcm_S.mean()) / torch.sqrt(pcm_S.var(correction=0) + 1e-7)


def normalize_window(pcm_S: Tensor) -> Tensor:
    """The same with the statistics of the samples that are not exactly 0. For short live windows.

    Otherwise the digital silence between two utterances of a speech synthesiser would change the level of the voice next to it.
    """
    nonzero_S = (pcm_S != 0).to(pcm_S.dtype)
    count = nonzero_S.sum().clamp(min=1)
    centered_S = (pcm_S - pcm_S.sum() / count) * nonzero_S
    return centered_S / torch.sqrt(centered_S.square().sum() / count + 1e-7)


def resample_50_to_30(x_LTC: Tensor) -> Tensor:
    """Linear, end points on end points, T -> floor(T / 50 * 30). [L, T, C] -> [L, T30, C]."""
    length = int(x_LTC.shape[1] / 50 * 30)
    return F.interpolate(x_LTC.transpose(1, 2), size=length, mode="linear", align_corners=True).transpose(1, 2)


def bucket_rows(rows: int, clip_frames: int) -> Tensor:
    """Row of the 30 Hz features that each 25 fps video frame takes: round_half_even(1.2 n), or -1 past the end. int64.

    Whole clips: floor(rows / (1.2 clip_frames)) + 1 of them, one more than needed when it divides exactly (as officially).
    """
    clips = int(rows / (clip_frames * 1.2)) + 1
    index_T = torch.round(torch.arange(clips * clip_frames, dtype=torch.float64) * 1.2).long()
    return torch.where(index_T < rows, index_T, -1)


def bucket(x_LTC: Tensor, clip_frames: int) -> Tensor:
    """30 Hz features [L, T30, C] -> video-rate features [L, C, clips * clip_frames], zeros past the end."""
    index_T = bucket_rows(x_LTC.shape[1], clip_frames).to(x_LTC.device)
    picked_LTC = x_LTC[:, index_T.clamp(min=0)] * (index_T >= 0).to(x_LTC.dtype)[:, None]
    return picked_LTC.transpose(1, 2)


class Wav2Vec2:
    """Front end over a Wav2Vec2Model: L = layers + 1, C = hidden size. Bidirectional, so its window's length is part of its result.

    lookback_samples: past the model sees, 2 s by default; lookahead_samples: future it waits for; normalized: windows come normalized, by
    statistics of more than themselves. Model's device and dtype; features come back as float32 on that device.
    """

    def __init__(
        self, model: Wav2Vec2Model, lookback_samples: int = 2 * SAMPLE_RATE, lookahead_samples: int = 0, normalized: bool = False
    ) -> None:  # fmt: skip
        strides = math.prod(model.config.conv_stride)
        if strides != HOP:
            raise BadWeights(f"this wav2vec2 model takes {strides} samples a step, everface needs {HOP} (50 Hz)")
        if lookback_samples < 0 or lookahead_samples < 0:
            raise BadInput("the audio window cannot look back or ahead by less than 0 samples: give 0 or more")
        self.model, self.normalized = model, normalized
        self.layers, self.channels = model.config.num_hidden_layers + 1, model.config.hidden_size
        self.lookback_samples, self.lookahead_samples = lookback_samples, lookahead_samples

    def windowed(self, lookback_samples: int, lookahead_samples: int) -> Wav2Vec2:
        """The same model with another window."""
        return Wav2Vec2(self.model, lookback_samples, lookahead_samples, self.normalized)

    @torch.no_grad()
    def hidden_states(self, wav_S: Tensor) -> Tensor:
        """All hidden states of a normalized window: [S] -> [L, floor((S - 400) / 320) + 1, C] float32."""
        wav_S = F.pad(wav_S, (0, max(0, RECEPTIVE - wav_S.shape[0])))
        out = self.model(wav_S.to(self.model.device, self.model.dtype)[None], output_hidden_states=True)
        # transformers 5 records the last layer before the encoder's final norm; the released features are after it
        return torch.cat([*out.hidden_states[:-1], out.last_hidden_state]).float()

    def _at_frames(self, states_LTC: Tensor, offset: float, frames: int) -> Tensor:
        """Read states at positions offset + 2n, linearly, the last state held past the end. -> [L, C, frames]."""
        last = states_LTC.shape[1] - 1
        at_T = (offset + 2 * torch.arange(frames, device=states_LTC.device, dtype=torch.float64)).clamp(max=last)
        low_T = at_T.floor().long()
        weight_T1 = (at_T - low_T).float()[:, None]
        x_LTC = torch.lerp(states_LTC[:, low_T], states_LTC[:, (low_T + 1).clamp(max=last)], weight_T1)
        return x_LTC.transpose(1, 2).contiguous()

    def features(self, pcm_S: Tensor, frames: int) -> Tensor:
        """Window [lookback + 640 frames + lookahead] -> [L, C, frames], each frame at its proper time.

        Leading zeros of the look-back are cut off, in whole states: the model was trained on files that begin where they begin, and
        attends to padding as it does to audio.
        """
        check_window(self, pcm_S, frames)
        nonzero = torch.nonzero(pcm_S[: self.lookback_samples])
        first = int(nonzero[0]) if len(nonzero) else self.lookback_samples
        cut = first // HOP * HOP
        window_S = pcm_S[cut:].float()
        states_LTC = self.hidden_states(window_S if self.normalized else normalize_window(window_S))
        return self._at_frames(states_LTC, (self.lookback_samples - cut) / HOP, frames)

    def whole_file_features(self, pcm_S: Tensor, clip_frames: int = 48, compat: str = "official") -> Tensor:
        """The whole file as one window. [S] -> [L, C, T].

        official: 50 -> 30 Hz -> every 1.2nd, zeros to the end of the last clip, T = clips * clip_frames (up to 0.8 of a 50 Hz step, and
        by the end of the file 0.7 of one more, off the proper time). everface: proper times, T = ceil(S / 640).
        """
        if compat not in COMPATS:
            raise BadInput(f"unknown compat {compat!r}: choose one of {', '.join(COMPATS)}")
        states_LTC = self.hidden_states(normalize(pcm_S.float()))
        if compat == "official":
            if states_LTC.shape[1] < 2:
                raise BadInput(
                    f"{pcm_S.shape[0]} samples of audio are too short for official features: give at least {HOP + RECEPTIVE}"
                )
            return bucket(resample_50_to_30(states_LTC), clip_frames)
        return self._at_frames(states_LTC, 0.0, -(-pcm_S.shape[0] // SAMPLES_PER_FRAME))
