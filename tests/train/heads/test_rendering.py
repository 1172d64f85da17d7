"""People are drawn, the same for the same seed, at any size, with truth that belongs to the frames. Skipped without EGL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everface.core.errors import Unavailable
from everface.networks.audio.features import LogMel
from everface.networks.motion import FACE, face_features, face_values
from everface.train.chain.portraits import draw_portraits
from everface.train.data.clips import STILL_FRAMES
from everface.train.data.drawn import clip_generator
from everface.train.evaluate.readers.head_fit import BLINK, JAW, STEPS, HeadFit
from everface.train.heads.clips import LISTENING_SHARE, HeadClips
from everface.train.heads.dataset import make_head_video
from everface.train.heads.light import sample_shot
from everface.train.heads.person.identity import HAIR_KINDS, sample_person
from everface.train.heads.renderer import Pose, Renderer

pytest.importorskip("moderngl")


@pytest.fixture(scope="module")
def source(assets: Path) -> HeadClips:
    try:
        return HeadClips(assets, 64, [(0.1 * torch.sin(torch.arange(64000) * 0.2), [(0.0, "_"), (1.0, "ɑː"), (3.0, "_")])], drawn_share=0)
    except Unavailable as error:
        pytest.skip(str(error))


def test_people_differ_and_repeat(source: HeadClips) -> None:
    renderer: Renderer = source.renderer
    images = []
    for seed in (1, 2, 1):
        renderer.show(seed)
        images.append(renderer.draw(Pose({"jawOpen": 0.5})).astype(int))
    assert images[0].shape == (64, 64, 3)
    assert np.array_equal(images[0], images[2]) and np.abs(images[0] - images[1]).mean() > 2


def test_two_renderers_in_a_process_draw_as_one_does(source: HeadClips, assets: Path) -> None:
    """The second renderer's context is the current one when the first goes on: it once drew without textures."""
    still = {seed: replace(sample_shot(seed), grain=0.0, jpeg=0) for seed in (1, 2)}
    source.renderer.show(1, scene=still[1])
    before = source.renderer.draw(Pose())
    other = Renderer(assets, source.size)
    other.show(2, scene=still[2])
    other.draw(Pose())
    assert np.array_equal(source.renderer.draw(Pose()), before)
    source.renderer.show(1, scene=still[1])
    assert np.array_equal(source.renderer.draw(Pose()), before)


def test_portraits_are_of_people_and_of_a_drawn_character(source: HeadClips, assets: Path) -> None:
    images = draw_portraits(assets, 64)
    assert list(images) == ["ada", "ben", "mia", "lou"] and all(image.size == (64, 64) for image in images.values())
    pixels = [np.asarray(image).astype(int) for image in images.values()]
    assert min(np.abs(a - b).mean() for n, a in enumerate(pixels) for b in pixels[:n]) > 2


def test_all_kinds_of_hair_occur() -> None:
    people = [sample_person(n) for n in range(300)]
    assert {p.hair for p in people} == set(HAIR_KINDS)
    assert 0.1 < np.mean([bool(p.glasses) for p in people]) < 0.35 and not any(p.beard for p in people if p.sex == "woman")


def test_a_clip_has_frames_features_and_truth(source: HeadClips) -> None:
    front_end = LogMel()
    rgb, features, truth = source.make(front_end, clip_generator(1, 5), frames=8)
    assert rgb.shape == (3, STILL_FRAMES + 8, 64, 64) and rgb.abs().max() <= 1
    assert features.shape[-1] == 5 + 8 and truth is not None
    assert truth.opening.shape == (8,) and truth.lips.shape == (8, 4, 2) and (truth.lips > 0).all() and (truth.lips < 1).all()
    again, _, _ = source.make(front_end, clip_generator(1, 5), frames=8)
    assert torch.equal(rgb, again)


def test_a_clean_clip_is_the_same_without_grain(source: HeadClips) -> None:
    n = next(n for n in range(20) if sample_shot(seed_of(n)).grain and not sample_shot(seed_of(n)).jpeg)
    try:
        pictures = []
        for source.clean in (False, True):
            clip = source.draw(LogMel(), clip_generator(2, n), frames=1)
            assert clip.truth is not None and clip.truth.seed == seed_of(n)
            pictures.append(clip.images.astype(int))
    finally:
        source.clean = False
    assert (sample_shot(seed_of(n)).grain or sample_shot(seed_of(n)).jpeg) and 0.2 < np.abs(pictures[0] - pictures[1]).mean() < 2


def seed_of(clip: int) -> int:
    return int(torch.randint(1 << 31, (1,), generator=clip_generator(2, clip)))


def test_a_listener_hears_a_voice_and_may_answer(source: HeadClips) -> None:
    source.listening_share, front_end, turns = 1.0, LogMel(), []
    try:
        for n in range(8):
            clip = source.draw(front_end, clip_generator(3, n), frames=64)
            user = clip.features_LCF[0, 160:320].float()
            assert clip.truth is not None and clip.features_LCF.shape == (1, 320 + len(FACE), 69) and user[:, 10:].std() > 0.1
            turns.append(bool(clip.truth.listening[-1] == 0))
            assert clip.truth.listening[0] == 1 and (user[:, -1].std() < 0.02) == turns[-1]  # whom it heard is silent in its turn
    finally:
        source.listening_share = LISTENING_SHARE
    assert 0 < sum(turns) < 8


@pytest.mark.long
def test_a_pose_is_found_again(source: HeadClips) -> None:
    fitted, pose_P = HeadFit(source.renderer, 4), np.zeros(len(STEPS))
    pose_P[:4], pose_P[JAW] = (0.05, -0.12, 0.04, 0.2), 0.6
    image_HW3 = fitted.draw(pose_P)
    found_P, shown_HW3 = fitted.fit(image_HW3, np.array([0.0, -0.08, 0.0]), 0.4, 0.0)
    before, after = (np.square(image_HW3 - other).mean() for other in (fitted.draw(np.zeros(len(STEPS))), shown_HW3))
    assert after < before / 10 and np.abs(found_P[:3] - pose_P[:3]).max() < 0.03


def test_faces_of_clips_are_drawn(source: HeadClips) -> None:
    row_C = np.linspace(0.1, 0.9, len(FACE))
    assert np.allclose(face_values(face_features(torch.from_numpy(row_C)[None])).numpy(), row_C)
    rng = np.random.default_rng(0)
    poses = [HeadFit(source.renderer, 4).random_pose(rng, row_C[None]) for _ in range(40)]
    same = [np.delete(p, BLINK) for p in poses if np.isclose(p[JAW], row_C[FACE.index("jaw")])]
    assert 20 < len(same) < 40 and all((p == same[0]).all() for p in same)
    blinks = [p[BLINK] for p in poses if not np.isclose(p[BLINK], row_C[FACE.index("blink")])]
    assert len(set(blinks)) > 8  # those of clips are few, so others are put in


def test_truth_is_of_the_image(source: HeadClips) -> None:
    source.renderer.show(4)
    rows = []
    for jaw in (0.0, 0.3, 0.7):
        source.renderer.draw(Pose({"jawOpen": jaw}))
        rows.append(source.renderer.measure_mouth())
    gaps = [r[0] for r in rows]
    assert gaps == sorted(gaps) and rows[2][2][1, 1] > rows[0][2][1, 1]  # the lower lip goes down in the image


def test_videos_for_the_codec(source: HeadClips) -> None:
    videos = [make_head_video(source, clip_generator(9, n)) for n in range(2)]
    assert all(v.shape == (3, 21, 64, 64) and v.dtype == torch.uint8 for v in videos)
