"""wav2vec2 features against golden data, and what a live window costs in accuracy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from everface.core.config import SAMPLES_PER_FRAME
from everface.core.errors import BadInput, BadWeights
from everface.networks.audio.wav2vec import (
    Wav2Vec2,
    bucket,
    bucket_rows,
    build_wav2vec2,
    normalize,
    normalize_window,
    resample_50_to_30,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "wav2vec2.safetensors")


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    with safe_open(GOLDEN / "wav2vec2.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def front_end(golden: dict[str, torch.Tensor], config: dict[str, object]) -> Wav2Vec2:
    return Wav2Vec2(build_wav2vec2(config, {k[2:]: v for k, v in golden.items() if k.startswith("w.")}))


def test_hidden_states(golden: dict[str, torch.Tensor], front_end: Wav2Vec2) -> None:
    torch.testing.assert_close(normalize(golden["wav"]), golden["wav_normalised"], atol=5e-5, rtol=0)
    states_LTC = front_end.hidden_states(golden["wav_normalised"])
    torch.testing.assert_close(states_LTC, golden["hidden_states"], atol=5e-5, rtol=0)
    torch.testing.assert_close(resample_50_to_30(states_LTC), golden["feat30"], atol=5e-5, rtol=0)


def test_both_weight_norm_spellings(golden: dict[str, torch.Tensor], config: dict[str, object], front_end: Wav2Vec2) -> None:
    again = build_wav2vec2(config, front_end.model.state_dict())
    torch.testing.assert_close(
        Wav2Vec2(again).hidden_states(golden["wav_normalised"]), front_end.hidden_states(golden["wav_normalised"])
    )
    with pytest.raises(BadWeights, match="not the wav2vec2 model"):
        build_wav2vec2(config, {k: v for k, v in front_end.model.state_dict().items() if "q_proj" not in k})


def test_resampling_and_bucketing() -> None:
    golden = load_file(GOLDEN / "audio_bucket.safetensors")
    seen = 0
    for name, value in golden.items():
        kind, case, *rest = name.split(".")
        if kind == "interp" and rest == ["in"]:
            torch.testing.assert_close(resample_50_to_30(value), golden[f"interp.{case}.out"], atol=2e-4, rtol=0)
        elif kind == "bucket" and rest[-1:] == ["index"]:
            index_T = bucket_rows(int(case[1:]), int(rest[0][2:]))
            assert torch.equal(index_T, value), name
        else:
            continue
        seen += 1
    assert seen == 4 + 10
    for rows, clip_frames, clips in golden["bucket.table_T30_batch_repeats"].tolist():
        assert len(bucket_rows(rows, clip_frames)) == clips * clip_frames
    assert torch.equal(bucket(golden["bucket.values.in"], 48).permute(2, 0, 1), golden["bucket.values.out"])


def voice(seconds: float) -> torch.Tensor:
    """A buzzing, swelling signal in place of speech."""
    t_S = torch.arange(int(seconds * 16000), dtype=torch.float64) / 16000
    noise_S = torch.randn(len(t_S), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    buzz_S = sum(torch.sin(2 * math.pi * 130 * k * t_S) / k for k in range(1, 20))
    return ((0.05 * buzz_S + 0.01 * noise_S) * (1.2 + torch.sin(2 * math.pi * 1.7 * t_S))).float()


def test_window_reads_the_right_time(front_end: Wav2Vec2) -> None:
    """A window that is the whole file gives the whole file's states 2n, also where it begins between two states."""
    pcm_S = voice(3.0)
    states_LTC = front_end.hidden_states(normalize(pcm_S))
    model = front_end.model
    aligned = Wav2Vec2(model, 25 * SAMPLES_PER_FRAME, 10 * SAMPLES_PER_FRAME).features(pcm_S, 40)
    torch.testing.assert_close(aligned, states_LTC[:, 50:130:2].transpose(1, 2))
    between = Wav2Vec2(model, 25 * SAMPLES_PER_FRAME + 160, 10 * SAMPLES_PER_FRAME - 160).features(pcm_S, 40)
    middle_LTC = (states_LTC[:, 50:130:2] + states_LTC[:, 51:131:2]) / 2
    torch.testing.assert_close(between, middle_LTC.transpose(1, 2))
    with pytest.raises(ValueError, match="need a window of"):
        Wav2Vec2(model, 640).features(pcm_S, 12)


def test_last_frame_of_a_window_needs_no_lookahead(front_end: Wav2Vec2) -> None:
    pcm_S = voice(1.0)[: 1280 + 12 * SAMPLES_PER_FRAME]
    features_LCT = Wav2Vec2(front_end.model, 1280).features(pcm_S, 12)
    states_LTC = front_end.hidden_states(normalize(pcm_S))
    torch.testing.assert_close(features_LCT[..., -1], states_LTC[:, 4 + 22])  # and not a held state


def test_whole_file(golden: dict[str, torch.Tensor], front_end: Wav2Vec2) -> None:
    official_LCT = front_end.whole_file_features(golden["wav"])
    assert official_LCT.shape == (4, 32, 48)
    torch.testing.assert_close(official_LCT[..., :24], bucket(golden["feat30"], 48)[..., :24], atol=5e-5, rtol=0)
    assert official_LCT[..., 22].abs().max() > 0 and official_LCT[..., 23:].abs().max() == 0  # 1.2 * 23 is row 28 of 0..27
    proper_LCT = front_end.whole_file_features(golden["wav"], compat="everface")
    assert proper_LCT.shape == (4, 32, 25)
    torch.testing.assert_close(proper_LCT[..., :24], golden["hidden_states"][:, 0:48:2].transpose(1, 2), atol=5e-5, rtol=0)
    with pytest.raises(BadInput, match="too short"):
        front_end.whole_file_features(torch.zeros(500))


def test_padding_before_the_stream_is_not_sound(front_end: Wav2Vec2) -> None:
    pcm_S = voice(0.48)
    padded_S = torch.nn.functional.pad(pcm_S, (32000, 0))
    whole_LCT = front_end.whole_file_features(pcm_S, compat="everface")
    torch.testing.assert_close(Wav2Vec2(front_end.model).features(padded_S, 12), whole_LCT, atol=1e-5, rtol=1e-5)
    assert Wav2Vec2(front_end.model).features(torch.zeros(32000 + 7680), 12).isfinite().all()


def test_digital_silence_does_not_change_the_level() -> None:
    pcm_S = voice(1.0)
    padded_S = torch.nn.functional.pad(pcm_S, (32000, 320))
    torch.testing.assert_close(normalize_window(padded_S)[32000:-320], normalize(pcm_S), atol=1e-5, rtol=1e-5)
    assert normalize_window(torch.zeros(1000)).abs().max() == 0


def windowed_error(front_end: Wav2Vec2, pcm_S: torch.Tensor, lookback_s: float, lookahead_s: float) -> tuple[float, float]:
    """RMS of (live, block by block) - (whole file, same times) over the whole file's RMS about its mean in time.

    Of the blocks with a window that begins before the file (zeros before the stream), and of all later ones.
    """
    live = Wav2Vec2(front_end.model, int(lookback_s * 16000), int(lookahead_s * 16000))
    block = 12 * SAMPLES_PER_FRAME
    starts = range(0, len(pcm_S) - block - live.lookahead_samples + 1, block)
    padded_S = torch.nn.functional.pad(pcm_S, (live.lookback_samples, 0))
    size = live.lookback_samples + block + live.lookahead_samples
    live_LCNT = torch.stack([live.features(padded_S[s : s + size], 12) for s in starts], 2)
    whole_LCT = front_end.whole_file_features(pcm_S, compat="everface")[..., : 12 * len(starts)]
    scale = (whole_LCT - whole_LCT.mean(-1, keepdim=True)).square().mean().sqrt()
    error_N = (live_LCNT - whole_LCT.unflatten(2, (-1, 12))).square().mean((0, 1, 3))
    early = -(-live.lookback_samples // block)
    return float(error_N[:early].mean().sqrt() / scale), float(error_N[early:].mean().sqrt() / scale)


def test_live_window_against_whole_file(front_end: Wav2Vec2) -> None:
    """Printed with -s. A tiny random model: it tests the plumbing, not how much context the released model needs."""
    pcm_S = voice(8.0)
    steady = {}
    for lookback_s, lookahead_s in ((0.5, 0.0), (2.0, 0.0), (2.0, 0.48), (4.0, 1.0)):
        early, steady[lookback_s] = windowed_error(front_end, pcm_S, lookback_s, lookahead_s)
        print(
            f"window -{lookback_s} s +{lookahead_s} s against whole file: start {early:.4f}, later {steady[lookback_s]:.4f} of RMS"
        )
    assert early < 0.5 and steady[2.0] < 0.5 and steady[4.0] < steady[0.5]
