"""Motion of a session: it repeats, stays within what people do, follows the audio, and goes on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small_model import SMALL, write_model

from everface import Avatar, StreamConfig
from everface.core.config import FPS, LipsConfig, ModelConfig
from everface.core.errors import BadInput
from everface.models.live_avatar.motion import MotionSource, MotionState
from everface.networks.audio import articulators
from everface.networks.motion import (
    ARTICULATORS,
    EXPRESSION,
    FACE,
    HEAD,
    POSE,
    compensated,
    face_values,
    mirrored,
    pose_of,
    split_pose,
)
from everface.runtime.model import Window

BLOCK = 7680
SILENCE_S, LOUD_S = torch.zeros(BLOCK), 0.15 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
NAMES = HEAD + EXPRESSION


def moves(source: MotionSource, voice: list[torch.Tensor], user: list[torch.Tensor] | None = None, first: int = 0, turn: int = 0) -> np.ndarray:
    """[T, 16] of NAMES."""
    blocks = [source.block(first + n, turn, one_S, user[n] if user else None) for n, one_S in enumerate(voice)]
    return torch.cat([torch.cat(both) for both in blocks], 1).T.double().numpy()


def channel(motion_TC: np.ndarray, name: str) -> np.ndarray:
    return motion_TC[:, NAMES.index(name)]


def test_the_same_seed_and_audio_give_the_same_motion() -> None:
    voice = [SILENCE_S, LOUD_S, SILENCE_S, LOUD_S]
    one = moves(MotionSource(3), voice)
    assert np.array_equal(one, moves(MotionSource(3), voice)) and not np.allclose(one, moves(MotionSource(4), voice))
    assert not np.allclose(one, moves(MotionSource(3, 1), voice))  # another person of the session
    assert np.array_equal(one[:12], moves(MotionSource(3), [SILENCE_S, *4 * [SILENCE_S]])[:12])  # what comes later changes nothing


def test_a_stream_leaves_the_pose_of_its_image_gently() -> None:
    for seed in range(8):
        moved = moves(MotionSource(seed), 4 * [SILENCE_S])
        assert np.abs(moved[0]).max() < 0.01 and np.abs(np.diff(channel(moved, "yaw"))).max() < 0.02


@pytest.mark.parametrize("voice", ["silent", "speaks"])
def test_ten_minutes_are_within_what_people_do(voice: str) -> None:
    phrases = [SILENCE_S if voice == "silent" or n % 6 == 5 else LOUD_S for n in range(1250)]
    moved = moves(MotionSource(1), phrases)
    assert np.isfinite(moved).all() and np.abs(moved[:, :3]).max() < 0.2 and np.abs(channel(moved, "brow")).max() <= 1
    blink = channel(moved, "blink") > 0.5
    assert 6 <= (np.diff(blink.astype(int)) > 0).sum() / 10 <= 40 and 0.02 < blink.mean() < 0.25
    assert 0.01 < channel(moved, "yaw").std() < 0.05 and np.abs(np.diff(channel(moved, "yaw"))).max() < 0.02
    assert np.abs(channel(moved, "gaze_right")).max() < 3


def test_a_listener_nods_after_the_others_phrase() -> None:
    heard = [LOUD_S, LOUD_S, LOUD_S, SILENCE_S, SILENCE_S, SILENCE_S]
    dips = []
    for seed in range(12):
        alone, listening = (channel(moves(MotionSource(seed), 6 * [SILENCE_S], user), "pitch") for user in (None, heard))
        dips.append(np.abs(listening - alone)[36:])
        assert np.abs(listening - alone)[:36].max() < 0.02
    assert sum(dip.max() > 0.025 for dip in dips) >= 8


def test_lids_fall_as_a_phrase_ends() -> None:
    near = 0
    for seed in range(20):
        source = MotionSource(seed)
        moves(source, 9 * [LOUD_S])
        near += channel(moves(source, [SILENCE_S], first=9), "blink").max() > 0.9
    assert near >= 12


def test_motion_goes_on_after_an_interruption() -> None:
    source = MotionSource(5)
    whole = moves(source, 6 * [SILENCE_S])
    source.interrupt(3)
    late = moves(source, [LOUD_S], first=6)  # of the old turn: a worker had begun with it
    assert np.abs(late[0] - whole[-1]).max() < 0.2
    again = moves(source, [SILENCE_S, SILENCE_S], first=7, turn=1)
    assert np.array_equal(again, whole[36:60])


def test_it_never_ends() -> None:
    source = MotionSource(2)
    source._states = {0: MotionState(frame=10**9)}
    far = moves(source, 10 * [SILENCE_S])
    assert np.isfinite(far).all() and 1e-4 < np.abs(np.diff(channel(far, "yaw"))).max() < 0.02


def test_a_pose_has_the_frames_of_a_latent_one_after_the_other() -> None:
    C = len(FACE)
    face_CT = torch.arange(C * 12.0).view(C, 12)
    pose = pose_of(face_CT)
    assert pose.shape == (POSE, 3, 1, 1) and torch.equal(pose[2 * C : 3 * C, 1, 0, 0], face_CT[:, 6])
    features, none = split_pose(torch.zeros(1, 1, 160, 17), 160)
    assert none is None and features.shape[2] == 160
    clip = torch.cat([torch.zeros(160, 17), torch.cat([torch.full((C, 5), 9.0), face_CT], 1)])[None, None]
    features, again = split_pose(clip, 160)
    assert features.shape == (1, 1, 160, 17) and again is not None and torch.equal(again[0], pose)


def test_a_mirrored_clip_looks_the_other_way() -> None:
    clip = torch.randn(1, 160 + len(FACE), 7)
    other = mirrored(clip)
    assert torch.equal(mirrored(other), clip) and torch.equal(other[:, :160], clip[:, :160])
    assert {name for c, name in enumerate(FACE) if not torch.equal(other[0, 160 + c], clip[0, 160 + c])} == {"gaze_right"}


def test_a_jaw_that_is_drawn_too_little_open_is_compensated() -> None:
    clip = torch.rand(160 + len(FACE), 7)
    clip[-len(ARTICULATORS), :2] = torch.tensor([1.0, 2.0])  # of 2.0, a jaw that is open as far as it goes
    given = compensated(clip, LipsConfig(jaw=1.15))
    assert {c - 160 for c in range(len(clip)) if not torch.equal(given[c], clip[c])} == {FACE.index("jaw")}
    jaw_T = face_values(given)[:, FACE.index("jaw")]
    assert jaw_T[:2].tolist() == pytest.approx([1.15 / 2, 1.0]) and torch.allclose(jaw_T[2:], 1.15 * clip[-len(ARTICULATORS), 2:] / 2)


@pytest.fixture(scope="module")
def moving_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("moving"), replace(SMALL, dit=replace(SMALL.dit, cond_dim=POSE), motion=True))


def test_a_models_blocks_follow_it(moving_model: Path, face: Path) -> None:
    assert ModelConfig.from_dict(json.loads((moving_model / "config.json").read_text())).motion
    with Avatar(moving_model) as avatar:
        session = avatar.model.session(face, StreamConfig(seed=3))
        around = session.format.lookback_samples + session.format.lookahead_samples

        def block(index: int, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
            conditions = session.prepare(index, Window(torch.zeros(BLOCK + around), index * BLOCK, 12, False, turn))
            return conditions["pose"], conditions["head"]

        moved = [block(n, 0) for n in range(5)]
        assert moved[0][0].shape == (POSE, 3, 1, 1) and moved[0][1].shape == (len(HEAD), 12)
        assert not torch.equal(moved[3][0], moved[4][0]) and not torch.equal(moved[3][1], moved[4][1])  # of the same silence
        session.interrupt(4)
        assert all(map(torch.equal, block(5, 1), moved[4]))
        other = torch.rand(3, 64, 64) * 2 - 1
        for update in (session.change(image=other), session.cut()):  # a cut without an image shows the last one
            assert torch.equal(update["image"], ((other + 1) * 127.5).round().to(torch.uint8))
        frames = [avatar_frames(avatar, face, seed) for seed in (3, 3, 4)]
        assert torch.equal(frames[0], frames[1]) and not torch.equal(frames[0], frames[2])


def test_the_mouth_follows_the_audio(moving_model: Path, face: Path) -> None:
    with Avatar(moving_model) as avatar:
        session = avatar.model.session(face, StreamConfig(seed=3))
        form = session.format
        assert form.lookback_samples == 352 + 640 * articulators.PAST_FRAMES and form.lookahead_samples == 640 * articulators.AHEAD_FRAMES
        quiet_S, loud_S = torch.zeros(form.lookback_samples + BLOCK + form.lookahead_samples), 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
        late_S = quiet_S.clone()
        late_S[-1280:] = loud_S[:1280]  # behind the block: the last two frames know of it
        poses = [avatar.model.session(face, StreamConfig(seed=3)).prepare(0, Window(pcm_S, 0, 12, False, 0))["pose"] for pcm_S in (quiet_S, late_S)]
        changed = (poses[0] != poses[1]).view(4, len(FACE), 3).movedim(2, 0).flatten(0, 1)  # [12, C]
        assert changed[10:, -len(ARTICULATORS) :].all() and not changed[:10].any() and not changed[:, : len(EXPRESSION)].any()


def test_a_model_without_its_articulators_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, replace(SMALL, dit=replace(SMALL.dit, cond_dim=POSE), motion=True))
    (tmp_path / articulators.FILE).unlink()
    with pytest.raises(BadInput, match=r"articulators\.safetensors is missing: fetch the model again"):
        Avatar(tmp_path)


def test_each_of_two_speakers_moves_in_its_own_region(moving_model: Path, face: Path) -> None:
    halves = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    with Avatar(moving_model) as avatar:
        session = avatar.model.session(face, StreamConfig(seed=3, speakers=halves))
        around = session.format.lookback_samples + session.format.lookahead_samples
        conditions = session.prepare(0, Window(torch.zeros(2, BLOCK + around), 0, 12, False, 0))
        pose = conditions["pose"]
        assert "head" not in conditions  # a warp moves one head
        assert pose.shape == (POSE, 3, 8, 8) and (pose == pose[..., :1, :1])[..., :4].all() and not torch.equal(pose[..., 0, 0], pose[..., 0, 7])
        with avatar.open(face, StreamConfig(seed=3, speakers=halves)) as opened:
            assert sum(len(block.frames_THW3) for block in opened.stream([torch.zeros(2, FPS * 640)])) == FPS


def test_a_model_that_takes_another_pose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes a pose of 16 channels, where motion has 56"):
        Avatar(write_model(tmp_path, replace(SMALL, motion=True)))


def avatar_frames(avatar: Avatar, face: Path, seed: int) -> torch.Tensor:
    with avatar.open(face, StreamConfig(seed=seed)) as session:
        return torch.cat([block.frames_THW3 for block in session.stream([torch.zeros(FPS * 640)])])
