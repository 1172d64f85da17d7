"""Mouths follow phonemes; lips touch on m, b and p; listeners nod."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from everface.core.config import FPS, SAMPLE_RATE
from everface.core.errors import BadInput
from everface.networks.audio.features import LogMel
from everface.networks.motion import ARTICULATORS, FACE, face_features
from everface.train.heads.articulation import ArticulationPlan, judge_articulators, read_recordings, train_articulators
from everface.train.heads.motion.body import body_actions, hold_head, nods, sample_body
from everface.train.heads.motion.channels import body_face, drawn_face
from everface.train.heads.motion.speech import make_multilingual_speech, make_phoneme_speech, read_phoneme_speech, speak
from everface.train.heads.motion.visemes import articulate, mouth_actions, targets
from everface.train.synthetic.parameters import ANIMATION

LOUD = 0.2 * np.sin(np.arange(2 * SAMPLE_RATE) * 0.2).astype(np.float32)


def at(moves: np.ndarray, second: float) -> np.ndarray:
    return moves[int(second * FPS)]


def test_phonemes_shape_the_mouth() -> None:
    moves = articulate([(0.0, "_"), (0.3, "ɑː"), (0.7, "m"), (0.85, "uː"), (1.2, "iː"), (1.6, "_")], LOUD, 50, 0.0)
    jaw, spread, rounding, closed, *_ = moves.T
    assert at(moves, 0.5)[0] > 0.5 and at(moves, 0.78)[3] > 0.95 and at(moves, 0.78)[0] < 0.1
    assert at(moves, 1.0)[2] > 0.7 and at(moves, 1.4)[1] > 0.6
    assert closed[-5:].min() > 0.5 and jaw[:4].max() < 0.1
    assert np.abs(np.diff(jaw)).max() < 0.6 and spread.max() <= 1 and rounding.max() <= 1


def test_a_phoneme_of_two_sounds_has_the_shapes_of_both() -> None:
    """A diphthong glides, an affricate ends as its second half; marks and what only changes a sound have no shape of their own."""
    moves = articulate([(0.0, "_"), (0.4, "aʊ"), (0.9, "tʃ"), (1.3, "_")], LOUD, 50, 0.0)
    assert at(moves, 0.5)[2] < 0.15 < 0.5 < at(moves, 0.82)[2] and at(moves, 0.5)[0] > at(moves, 0.82)[0] + 0.2 and at(moves, 1.2)[2] > 0.5
    for plain, marked in (("r", "r#"), ("l", "l\u0329"), ("t", "tʲ"), ("ɛ", "ɛ\u0303")):
        assert targets(plain) == targets(marked)
    assert len(targets("aɪə")) == 3 and targets("(en)") == targets("ʔ") == targets("") == []


def test_the_mouth_is_hardly_ahead_of_its_audio() -> None:
    moves = articulate([(0.0, "_"), (1.0, "ɑː"), (1.4, "_")], LOUD, 50, 0.0)
    assert at(moves, 0.85)[0] < 0.1


def test_actions_are_the_meshs() -> None:
    assert mouth_actions(np.array([1.0, 0, 0, 0, 0, 0]))["jawOpen"] > 0.5
    assert all(0 <= v <= 1 for v in mouth_actions(np.ones(6)).values())


@pytest.mark.parametrize("listening", [False, True])
def test_a_body_moves_within_limits(listening: bool) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    jaw = np.zeros(200) if listening else np.abs(np.sin(np.arange(200) * 0.5))
    heard = np.where(np.arange(200) % 60 < 40, 0.8, 0.0) if listening else None
    body = sample_body(jaw, heard, rng)
    assert (body.listening == listening).all() and np.abs(body.turn).max() < 0.6
    assert body.blink.max() > 0.9 and all(0 <= v <= 1.2 for t in range(200) for v in body_actions(body, t).values())
    again = sample_body(jaw, heard, np.random.Generator(np.random.PCG64(3)))
    assert np.array_equal(body.turn, again.turn) and np.array_equal(body.blink, again.blink)


def test_a_held_head_is_at_rest_and_its_face_is_not() -> None:
    moving = sample_body(np.abs(np.sin(np.arange(200) * 0.5)), None, np.random.Generator(np.random.PCG64(3)))
    held = hold_head(moving)
    assert np.ptp(held.turn, 0).max() == 0 and not held.shift.any() and not held.body.any() and np.ptp(moving.turn, 0).min() > 0.01
    assert np.array_equal(held.turn[0], moving.rest) and np.abs(moving.turn - moving.rest).max() < 0.15
    assert np.array_equal(held.blink, moving.blink) and np.array_equal(held.gaze, moving.gaze)


def test_features_of_a_face_are_its_truth() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    body = sample_body(np.zeros(40), None, rng)
    mouth_TA = rng.random((40, len(ARTICULATORS)))
    features = body_face(body, mouth_TA)[0]
    assert features.shape == (len(FACE), 45) and torch.equal(features[:, :5], features[:, 5:6].expand(-1, 5))
    unit = face_features(torch.ones(1, len(FACE)))
    for name, values in (("blink", body.blink), ("gaze_up", body.gaze[:, 1]), ("brow", body.brow), *zip(ARTICULATORS, mouth_TA.T, strict=True)):
        assert np.allclose(features[FACE.index(name), 5:] / unit[FACE.index(name)], values, atol=1e-5)
    anim = torch.rand(40, len(ANIMATION), generator=torch.Generator().manual_seed(1))
    drawn = drawn_face(anim, rng)[0]
    assert np.allclose(drawn[FACE.index("blink"), 5:] / unit[FACE.index("blink")], anim[:, ANIMATION.index("blink")], atol=1e-5)
    wide = anim[:, ANIMATION.index("wide")]
    spread, rounded = (drawn[FACE.index(name), 5:] / unit[FACE.index(name)] for name in ("spread", "round"))
    assert torch.allclose(0.5 + (spread - rounded) / 2, wide, atol=1e-5) and not (spread * rounded).any()
    assert drawn[FACE.index("gaze_right")].abs().max() > 0  # it cannot be seen, and is to be passed over


def test_a_listener_nods_after_phrases_and_not_before() -> None:
    heard = np.where(np.arange(1000) % 50 < 30, 0.8, 0.0)
    starts = [start for seed in range(20) for start, strength in nods(heard, np.random.Generator(np.random.PCG64(seed))) if strength == 1]
    after = [(start - 30) % 50 for start in starts]  # frames since the phrase ended
    assert len(starts) > 0.7 * 20 * 20 and min(after) >= 2 and max(after) <= 12
    assert nods(np.zeros(1000), np.random.Generator(np.random.PCG64(0))) == []


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_speech_names_its_phonemes() -> None:
    pcm, phonemes = speak("Bob bought a big box.", "en-us", 160, 50)
    times = [t for t, _ in phonemes]
    assert times == sorted(times) and times[-1] <= len(pcm) / SAMPLE_RATE + 0.1
    assert [n for _, n in phonemes].count("b") == 5 and all(targets(name) for _, name in phonemes), phonemes
    polish, spanish = ({name for _, name in speak(text, language, 160, 50)[1]} for text, language in (("my byliśmy tutaj, synu", "pl"), ("Mucha agua, amigo.", "es")))
    assert "ɨ" in polish and "y" not in polish and "ɣ" in spanish and "_" in polish | spanish  # not espeak-ng's own names


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_a_network_learns_to_read_mouths_from_speech(tmp_path: Path) -> None:
    make_multilingual_speech(tmp_path, 1, 12)
    make_phoneme_speech(tmp_path, 1, 1, ("es",))
    assert len(read_phoneme_speech(tmp_path, held_out=False)) == 12  # none of a held-out language
    (tmp_path / "old").mkdir()
    for path in (*tmp_path.glob("es_00.*"),):
        shutil.copy(path, tmp_path / "old")
    (tmp_path / "old" / "es_00.json").write_text('[[0.0, "_:"], [0.1, "A:"], [0.3, "Q"]]')
    with pytest.raises(BadInput, match="by espeak-ng's own names"):
        read_phoneme_speech(tmp_path / "old", held_out=True)
    sides = [read_recordings(tmp_path, held_out, LogMel()) for held_out in (False, True)]
    before, after = (
        judge_articulators(train_articulators(sides[0], sides[1], ArticulationPlan(iterations=steps, batch=8, frames=100)), sides[1])["synthetic"] for steps in (1, 120)
    )  # an untrained one knows how loud it is
    assert after["jaw"] > before["jaw"] + 0.03 and after["closed"] > 0.5 > before["closed"]
