"""`everface bench audio`: how far a stream's audio features are from those of the whole file, by window, and what each window costs.

With wav2vec2 weights (`--weights`) it measures those. Without, it measures the architecture of the released one (layer norm in every convolution)
at base size with random weights: that shows whether windows are cut, timed and normalized right, not how far trained weights listen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from everface.avatar.demo import AUDIO
from everface.core.config import LIVE_WINDOW_S, RENDER_WINDOW_S, SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput
from everface.media.audio import read_audio
from everface.models.live_avatar.audio_normalizer import AudioNormalizer
from everface.models.live_avatar.builders import build_front_end
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.audio.wav2vec import Wav2Vec2, build_wav2vec2, normalize_window
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.model import BlockFormat
from everface.weights.load import open_checkpoint

WINDOWS_S = ((2.0, 0.0), (4.0, 0.0), (4.0, 0.24), (2.0, 0.48), LIVE_WINDOW_S, RENDER_WINDOW_S)
SETTLED_S = 2.0  # from which on blocks are "later" ones
PAUSE_S, PAUSE_PEAK = 6.0, 0.001
BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "feat_extract_norm": "layer",
    "conv_bias": True, "do_stable_layer_norm": True,
}  # fmt: skip


@dataclass(frozen=True)
class WindowError:
    """For one window, the root mean square of the difference from whole-file features over the features' own about their mean in time."""

    back_s: float
    ahead_s: float
    normalizer: str
    first: float  # blocks of the first SETTLED_S, mean over layers
    later: float  # the others
    by_layer: tuple[float, ...]  # of the others; 0: what the convolutions give
    jump_db: float  # as `level_jump_db`
    block_ms: float  # median, of the features of a block


@dataclass(frozen=True)
class AudioReport:
    model: str
    seconds: float
    windows: tuple[WindowError, ...]

    def table(self) -> str:
        """In Markdown, with a few of the layers."""
        layers = len(self.windows[0].by_layer)
        shown = sorted({round(share * (layers - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
        head = ["back, ahead, s", "normalized by", "first 2 s", "later", *(f"layer {layer}" for layer in shown), "jump, dB", "ms a block"]
        rows = [
            [f"{w.back_s:g}, {w.ahead_s:g}", w.normalizer, *(f"{e:.3f}" for e in (w.first, w.later, *(w.by_layer[layer] for layer in shown))),
             f"{w.jump_db:.2f}", f"{w.block_ms:.0f}"] for w in self.windows
        ]  # fmt: skip
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join([f"{self.model}, {self.seconds:g} s of speech", "", *(f"| {' | '.join(line)} |" for line in lines)])


def bench_audio(weights: Path | None = None, seconds: float = 12.0) -> AudioReport:
    """Every window with the statistics of all audio so far, and the defaults with those of the window alone, over the bundled speech. Raises BadInput for weights whose front end is not wav2vec2."""
    if weights is None:
        torch.manual_seed(0)
        front_end, model = Wav2Vec2(build_wav2vec2(BASE, _random_state())), "wav2vec2 of base size, random weights"
    else:
        built = build_front_end(open_checkpoint(weights))
        if not isinstance(built, Wav2Vec2):
            raise BadInput(f"the audio front end of {weights} sees no more than its own block: there is nothing to measure")
        front_end, model = built, f"{weights}"
    pcm_S = torch.as_tensor(next(read_audio(AUDIO, int(seconds * SAMPLE_RATE)))).contiguous()
    whole_LCT = front_end.whole_file_features(pcm_S, compat="everface")
    cases = [*((window_s, "running") for window_s in WINDOWS_S), (LIVE_WINDOW_S, "window"), (RENDER_WINDOW_S, "window")]
    rows = [_measure(front_end.model, pcm_S, whole_LCT, *case) for case in cases]
    return AudioReport(model, len(pcm_S) / SAMPLE_RATE, tuple(rows))


def _random_state() -> dict[str, torch.Tensor]:
    """As the model's constructor draws it."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return Wav2Vec2Model(Wav2Vec2Config(**BASE)).state_dict()


def _measure(model: torch.nn.Module, pcm_S: torch.Tensor, whole_LCT: torch.Tensor, window_s: tuple[float, float], by: str) -> WindowError:
    back, ahead = (int(seconds * SAMPLE_RATE) for seconds in window_s)
    front_end = Wav2Vec2(model, back, ahead, normalized=True)  # type: ignore[arg-type]  # that of another Wav2Vec2
    format = BlockFormat(lookback_samples=back + PAST_FRAMES * SAMPLES_PER_FRAME, lookahead_samples=ahead)
    blocks, times_ms = list[torch.Tensor](), list[float]()
    for _, normalized_S in _normalized(pcm_S, format, by):
        began_s = time.perf_counter()
        blocks.append(front_end.features(normalized_S, PAST_FRAMES + format.frames)[..., PAST_FRAMES:])
        times_ms.append(1e3 * (time.perf_counter() - began_s))
    streamed_LCT = torch.cat(blocks, -1)[..., : whole_LCT.shape[-1]]
    frame = int(SETTLED_S * SAMPLE_RATE) // format.samples(1) * format.frames
    pairs = list(zip(streamed_LCT, whole_LCT, strict=True))
    by_layer = [_error(streamed_CT[:, frame:], whole_CT[:, frame:]) for streamed_CT, whole_CT in pairs]
    first = statistics.mean(_error(streamed_CT[:, :frame], whole_CT[:, :frame]) for streamed_CT, whole_CT in pairs)
    return WindowError(*window_s, by, first, statistics.mean(by_layer), tuple(by_layer), level_jump_db(pcm_S, format, by), statistics.median(times_ms))


def level_jump_db(pcm_S: torch.Tensor, format: BlockFormat, by: str) -> float:
    """The largest change of the normalized level from one block to the next, after SETTLED_S, in speech with two pauses of faint noise."""
    noise_S = PAUSE_PEAK * torch.randn(int(PAUSE_S * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    spoken_S = torch.cat([pcm_S, noise_S, pcm_S, noise_S, pcm_S])
    gains_db = [20 * float(torch.log10(normalized_S.std() / audio_S.std())) for audio_S, normalized_S in _normalized(spoken_S, format, by)]
    return float(np.abs(np.diff(gains_db[int(SETTLED_S / format.block_s) :])).max())


def _normalized(pcm_S: torch.Tensor, format: BlockFormat, by: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The windows of a stream of this audio, as they came and normalized."""
    normalizer, buffer, index = AudioNormalizer(format.lookback_samples, format.lookahead_samples), AudioBuffer(format), 0
    buffer.add(pcm_S)
    buffer.ended = True
    while (window := buffer.take_window(index, 0)) is not None:
        yield window.audio_S, normalizer.apply(window) if by == "running" else normalize_window(window.audio_S)
        index += 1


def _error(got_CT: torch.Tensor, want_CT: torch.Tensor) -> float:
    return float((got_CT - want_CT).norm() / (want_CT - want_CT.mean(1, keepdim=True)).norm())
