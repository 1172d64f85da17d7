"""LiveTalk's transformer: official names and count, the places of its cache, and audio features that follow their window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from everface.core.live_talk_config import LiveTalkConfig
from everface.networks.audio.wav2vec_frames import FrameRateWav2Vec2, read_rows, resample_ends
from everface.networks.transformer.live_talk import LiveTalkDiT, block_slot
from everface.networks.transformer.schedule import RenoiseSchedule

TINY = LiveTalkConfig(
    dim=64, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=4, text_dim=8, text_len=4, audio_channels=84, audio_hidden_size=12, audio_layers=(2, 3)
)  # fmt: skip


def test_names_and_count_are_the_release_s() -> None:
    with torch.device("meta"):
        model = LiveTalkDiT(LiveTalkConfig())
    state = model.state_dict()
    assert len(state) == 857 and sum(t.numel() for t in state.values()) == 1_421_187_232
    assert list(state["patch_embedding.weight"].shape) == [1536, 33, 1, 2, 2]
    assert list(state["audio_cond_projs.13.weight"].shape) == [1536, 32] and "audio_cond_projs.14.weight" not in state
    assert sum(name.startswith("blocks.29.") for name in state) == 27


def test_the_first_blocks_stay_and_the_ring_turns_behind_them() -> None:
    assert [block_slot(LiveTalkConfig(), run) for run in range(9)] == [0, 1, 2, 3, 4, 3, 4, 3, 4]
    model = LiveTalkDiT(TINY)
    places = [model.block_place((2, 2), run) for run in range(7)]
    assert [p.used for p in places] == [12, 24, 36, 48, 60, 60, 60]
    assert [p.start for p in places] == [0, 12, 24, 36, 48, 36, 48] and places[6].first == 18


def test_times_are_rounded_as_the_release_rounds_them_and_levels_are_not() -> None:
    schedule = RenoiseSchedule.of_steps()
    assert schedule.timesteps == (1000.0, 936.0, 832.0, 624.0)
    assert schedule.sigmas == pytest.approx((1, 0.9375, 5 / 6, 0.625))


@torch.no_grad()
def test_a_clean_forward_replaces_a_block_s_keys() -> None:
    """What a later block sees depends on the last forward over a block, not on the ones before it."""
    torch.manual_seed(0)
    model = LiveTalkDiT(TINY).eval()
    ref, audio, text = torch.randn(16, 1, 4, 4), torch.randn(2, 3, 64), model.text_kv(model.embed_text(torch.randn(4, 8)))
    noisy, clean, x = torch.randn(3, 16, 3, 4, 4)

    def second(*first: torch.Tensor) -> torch.Tensor:
        cache = model.new_cache(4, 4)
        for one in first:
            model(one, ref, model.time(0.0), text, audio, cache, 0)
        return model(x, ref, model.time(832.0), text, audio, cache, 1)

    assert torch.equal(second(noisy, clean), second(clean))
    assert not torch.allclose(second(noisy), second(clean), atol=1e-3)


@pytest.fixture(scope="module")
def front_end() -> FrameRateWav2Vec2:
    torch.manual_seed(1)
    config = Wav2Vec2Config(
        hidden_size=28, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, conv_dim=[12] * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, vocab_size=32,
    )  # fmt: skip
    return FrameRateWav2Vec2(Wav2Vec2Model(config).eval(), 1000, lookback=8, lookahead=2)


def test_features_of_a_window_are_those_of_its_own_frames(front_end: FrameRateWav2Vec2) -> None:
    audio_S = torch.randn(30_000, generator=torch.Generator().manual_seed(2))
    rows = front_end.features(audio_S[:22_000], 12)
    assert rows.shape == (12, front_end.channels) and front_end.channels == 84
    assert torch.equal(rows[:, :28], rows[:, -28:])  # the last state is there twice
    moved = front_end.features(torch.cat((torch.zeros(3000), audio_S))[:22_000], 12)  # silence is cut off: the same audio, three frames later
    assert torch.isfinite(moved).all() and moved.shape == rows.shape
    silent = front_end.features(torch.zeros(22_000), 12)
    assert torch.isfinite(silent).all()


def test_rows_at_the_release_s_positions_are_its_rows() -> None:
    """Live rows stand at their proper times; the release stretches a clip's end points onto each other, 40 ms over 5 s."""
    conv_TC = torch.randn(124, 12, generator=torch.Generator().manual_seed(4))
    stretched = torch.arange(41, dtype=torch.float64) * 123 / 40
    assert torch.allclose(read_rows(conv_TC, stretched), resample_ends(conv_TC, 41), atol=1e-4)
    assert stretched[-1] == 123 and 40 * 1000 / 320 == 125


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="audio_layers"):
        replace(TINY, audio_layers=(9,))
    with pytest.raises(ValueError, match="window"):
        replace(TINY, sink_blocks=5)
