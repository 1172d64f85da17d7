"""The drawn characters: seeded, resolution-free, differentiable, moved by every scalar; the mouth rule is causal."""

from itertools import pairwise

import pytest
import torch

from everface.core.errors import Unavailable
from everface.train.synthetic import characters, voices


def people(n: int, seed: int = 0) -> torch.Tensor:
    return characters.sample_identity(n, torch.Generator().manual_seed(seed))


def amplitude_noise(seconds: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    envelope = torch.rand(int(seconds * 5) + 2, generator=g)
    pcm_S = torch.randn(int(seconds * voices.RATE), generator=g)
    return 0.3 * pcm_S * torch.nn.functional.interpolate(envelope[None, None], len(pcm_S), mode="linear")[0, 0] ** 2


def test_seed_decides_people_and_pictures():
    assert torch.equal(people(5), people(5))
    assert not torch.equal(people(5), people(5, seed=1))
    assert people(3).shape == (3, len(characters.IDENTITY))
    a, b = (characters.render(people(3), characters.neutral(3), 64) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32 and a.shape == (3, 3, 64, 64)
    assert a.min() >= -1 and a.max() <= 1 and a.isfinite().all()


def test_one_row_of_identity_serves_many_frames_and_batches_do_not_mix():
    pose_NA = characters.neutral(30)
    pose_NA[:, 0] = torch.linspace(0, 1, 30)
    many = characters.render(people(1), pose_NA, 64)
    torch.testing.assert_close(many[17:18], characters.render(people(1), pose_NA[17:18], 64), rtol=0, atol=1e-5)


def test_picture_does_not_depend_on_resolution():
    small, large = (characters.render(people(6), characters.neutral(6), s) for s in (64, 256))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.02


@pytest.mark.parametrize("name", characters.ANIMATION)
def test_every_scalar_moves_its_own_part(name: str):
    rest_NA, moved_NA = characters.neutral(8), characters.neutral(8)
    moved_NA[:, characters.ANIMATION.index(name)] = {"dx": 0.04, "dy": 0.03, "rot": 0.05, "wide": 1.0}.get(name, 1.0)
    change = (characters.render(people(8), moved_NA) - characters.render(people(8), rest_NA)).abs().amax(1)
    assert change.flatten(1).mean(1).min() > 0.001, "every character must show it"
    box = {
        "open": characters.mouth_box(),
        "wide": characters.mouth_box(),
        "blink": characters.eyes_box(),
        "brow": characters.eyes_box(),
    }.get(name)
    if box and name != "open":  # an opening mouth also lowers the chin
        top, bottom, left, right = box
        outside = change.clone()
        outside[:, top:bottom, left:right] = 0
        assert outside.max() == 0


def test_blink_is_symmetric():
    id_NP, pose_NA = people(8), characters.neutral(8)
    for name in ("hair_part", "hair_alpha", "glasses"):
        id_NP[:, 3 * len(characters.COLOURS) + characters.SHAPES.index(name)] = 0
    rest = characters.render(id_NP, pose_NA)
    pose_NA[:, 2] = 1
    closed = characters.render(id_NP, pose_NA)
    change = (closed - rest).abs().mean(1)
    torch.testing.assert_close(change[..., :64].sum((1, 2)), change[..., 64:].sum((1, 2)), rtol=0.1, atol=1)


def test_gradient_finds_the_pose_of_a_picture():
    id_NP, truth_NA = people(2, seed=4), characters.neutral(2)
    truth_NA[:, 0], truth_NA[:, 4] = 0.6, 0.03
    goal = characters.render(id_NP, truth_NA, 64)
    guess_NA = characters.neutral(2).add(torch.tensor([0.3, 0, 0, 0, 0, 0, 0])).requires_grad_()
    optimiser = torch.optim.Adam([guess_NA], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        (characters.render(id_NP, guess_NA, 64) - goal).square().mean().backward()
        optimiser.step()
    found_NA = guess_NA.detach()
    assert (found_NA[:, 0] - 0.6).abs().max() < 0.08 and (found_NA[:, 4] - 0.03).abs().max() < 0.01


def test_motion_is_gentle_and_seeded():
    open_T, wide_T = voices.mouth_targets(amplitude_noise(40))
    anim_TA, again_TA = (characters.sample_motion(open_T, wide_T, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(anim_TA, again_TA) and anim_TA.shape == (1000, 7)
    assert anim_TA[:, 4:6].abs().max() < 0.05 and anim_TA[:, 6].abs().max() < 0.06
    assert anim_TA[:, :4].min() >= 0 and anim_TA[:, :4].max() <= 1


def blink_starts(open_T: torch.Tensor, seed: int) -> list[int]:
    shut_T = characters.sample_motion(open_T, open_T, torch.Generator().manual_seed(seed))[:, 2] > 0
    starts = [t for t in range(1, len(shut_T)) if shut_T[t] and not shut_T[t - 1]]
    for start in starts:
        assert start > len(shut_T) - 9 or 6 <= (~shut_T[start:]).nonzero()[0].item() <= 8
    return starts


def test_people_blink_where_a_phrase_ends_and_sometimes_elsewhere():
    open_T = torch.zeros(25 * 120)
    open_T.view(-1, 75)[:, :50] = 0.6  # two seconds of speech, one of silence, forty times
    ends = set(range(50, len(open_T), 75))
    starts = [start for seed in range(4) for start in blink_starts(open_T, seed)]
    assert 0.8 * 160 < sum(start in ends for start in starts) < 0.97 * 160
    assert len(starts) < 1.1 * 160
    silent = blink_starts(torch.zeros(25 * 120), 0)
    assert all(25 * 4 <= b - a <= 25 * 8.4 for a, b in pairwise(silent)) and 14 <= len(silent) <= 30
    chatter = blink_starts(torch.full((25 * 120,), 0.6), 0)
    assert 14 <= len(chatter) <= 30, "nobody holds the eyes open through a long speech"


def test_mouth_rule_is_causal_and_shut_in_silence():
    pcm_S = amplitude_noise(4)
    open_T, wide_T = voices.mouth_targets(pcm_S)
    assert len(open_T) == len(wide_T) == 100 and open_T.std() > 0.1
    changed_S = pcm_S.clone()
    changed_S[50 * voices.HOP :] = 0
    open2_T, wide2_T = voices.mouth_targets(changed_S)
    assert torch.equal(open_T[:50], open2_T[:50]) and torch.equal(wide_T[:50], wide2_T[:50])
    assert open2_T[70:].max() < 0.01 and (wide2_T[70:] - characters.NEUTRAL_WIDE).abs().max() < 0.01


def test_dark_sound_rounds_and_bright_sound_spreads_the_mouth():
    time_s = torch.arange(voices.RATE) / voices.RATE
    dark, bright = (voices.mouth_targets(0.2 * torch.sin(2 * torch.pi * hertz * time_s))[1][-1] for hertz in (400, 2500))
    assert dark < 0.3 and bright > 0.7


def test_wav_round_trip_and_missing_espeak(tmp_path, monkeypatch):
    pcm_S = amplitude_noise(0.5).clamp(-1, 1)
    voices.write_wav(tmp_path / "es_00.wav", pcm_S)
    torch.testing.assert_close(voices.read_wav(tmp_path / "es_00.wav"), pcm_S, rtol=0, atol=1e-4)
    assert voices.held_out(tmp_path / "es_00.wav") and not voices.held_out(tmp_path / "en-us_00.wav")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="install the package espeak-ng"):
        voices.make_speech(tmp_path, clips_per_voice=1)
