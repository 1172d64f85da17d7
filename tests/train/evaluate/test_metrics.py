"""The judge passes ground truth, fails a frozen face, and each figure answers to the fault it is meant for."""

import json
import math

import pytest
import torch

from everface.core.errors import BadInput, BadWeights
from everface.train.evaluate import held_out as unseen
from everface.train.evaluate import judge as evaluate
from everface.train.evaluate import metrics
from everface.train.evaluate.lip_reader import Reader, train_reader
from everface.train.synthetic import characters, voices

SIZE = 64


def amplitude_noise(seconds: float, seed: int) -> torch.Tensor:
    """Noise of random loudness at syllable pace: the mouth rule opens and shuts to it as to speech."""
    g = torch.Generator().manual_seed(seed)
    envelope = torch.rand(int(seconds * 4) + 2, generator=g)
    pcm_S = torch.randn(int(seconds * voices.RATE), generator=g)
    return 0.3 * pcm_S * torch.nn.functional.interpolate(envelope[None, None], len(pcm_S), mode="linear")[0, 0] ** 3


def wave_T(frames: int = 200) -> torch.Tensor:
    time_s = torch.arange(frames) / 25
    return 0.5 + 0.3 * torch.sin(7 * time_s) + 0.2 * torch.sin(17 * time_s + 1)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return train_reader(seed=0, iterations=160, size=SIZE, batch=36)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    open_T, wide_T = voices.mouth_targets(amplitude_noise(4, seed=3))
    generator = torch.Generator().manual_seed(1)
    anim_TA = characters.sample_motion(open_T, wide_T, generator)
    return characters.render(characters.sample_identity(1, generator), anim_TA, SIZE)


def test_lag_and_correlation():
    truth_T = wave_T()
    assert metrics.correlation(truth_T, 3 * truth_T + 1) == pytest.approx(1)
    assert metrics.correlation(torch.full((200,), 0.4), truth_T) == 0
    assert metrics.lag(truth_T, truth_T) == 0
    assert metrics.lag(truth_T.roll(3)[5:], truth_T[5:]) == 3
    assert metrics.lag(truth_T.roll(-2)[:-5], truth_T[:-5]) == -2
    assert metrics.amplitude_ratio(0.5 * truth_T, truth_T) == pytest.approx(0.5)


def test_blur_costs_sharpness(clip):
    blurred = torch.nn.functional.avg_pool2d(clip, 3, 1, 1)
    assert metrics.sharpness(blurred) < 0.6 * metrics.sharpness(clip)


def test_seams_show_at_block_and_latent_edges(clip):
    block, latent = metrics.edge_flicker(clip)
    assert 0.5 < block < 1.8 and 0.5 < latent < 1.8
    index = torch.arange(len(clip))
    seamed = clip + 0.03 * (index // 12 % 2)[:, None, None, None]
    assert metrics.edge_flicker(seamed)[0] > block + 1 and metrics.edge_flicker(seamed)[1] == pytest.approx(latent, rel=1e-3)
    seamed = clip + 0.03 * (index // 4 % 2)[:, None, None, None]
    assert metrics.edge_flicker(seamed)[1] > latent + 1
    still = clip[:1].expand(48, -1, -1, -1)
    assert metrics.edge_flicker(still) == (1.0, 1.0) and metrics.motion_energy(still) == 0
    jumps = still + 0.1 * (torch.arange(48) // 12 % 2)[:, None, None, None]
    assert metrics.edge_flicker(jumps) == (math.inf, 1.0)


def test_psnr_and_frames_round_trip(clip):
    assert metrics.psnr(clip, clip) == 100
    assert metrics.psnr(clip, clip + 0.2) == pytest.approx(20, abs=1e-3)
    assert metrics.psnr(metrics.as_rgb(metrics.as_frames(clip)), clip) > 50


def test_blinks_are_counted_once():
    blink_T = torch.zeros(250)
    blink_T[40:47], blink_T[100:107], blink_T[103] = 1, 1, 0.5
    assert metrics.count_blinks(blink_T) == 2


def test_fit_explains_the_person_and_not_another():
    generator = torch.Generator().manual_seed(5)
    id_NP = characters.sample_identity(2, generator)
    anim_NA = torch.tensor([[0.7, 0.3, 0.0, 0.6, 0.035, -0.02, 0.04], [0.1, 0.7, 0.0, 0.2, -0.04, 0.02, -0.04]])
    frames = characters.render(id_NP[:1], anim_NA, SIZE)
    start_NA = characters.neutral(2)
    start_NA[:, :2] = anim_NA[:, :2] + 0.1
    whole, eyes = metrics.fit_psnr(id_NP[0], frames, start_NA)
    assert whole > 32 and eyes > 30
    assert metrics.fit_psnr(id_NP[1], frames, start_NA)[0] < 20


@pytest.mark.parametrize("fault", ["one shut", "smeared"])
def test_a_broken_eye_costs_the_eyes_what_it_hardly_costs_the_face(fault):
    """What the bar of 5 dB must see: with the other eye as it should be, no pose explains this one."""
    id_NP = characters.sample_identity(1, torch.Generator().manual_seed(7))
    anim_NA = characters.neutral(2)
    whole = characters.render(id_NP, anim_NA, SIZE)
    broken, half = whole.clone(), SIZE // 2
    if fault == "one shut":
        broken[..., half:] = characters.render(id_NP, anim_NA + torch.eye(7)[2], SIZE)[..., half:]
    else:
        top, bottom, _, right = characters.eyes_box(SIZE)
        broken[..., top:bottom, half:right] = torch.nn.functional.avg_pool2d(whole, 9, 1, 4)[..., top:bottom, half:right]
    codec = 0.045 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))  # of 33 dB, the same for both
    (face, eyes), (other_face, other_eyes) = (metrics.fit_psnr(id_NP[0], x + codec, anim_NA) for x in (whole, broken))
    assert eyes - other_eyes > 6 and eyes - other_eyes > 1.5 * (face - other_face), (face, eyes, other_face, other_eyes)

def test_reader_survives_the_disk(reader, clip, tmp_path):
    reader.save(tmp_path / "reader.safetensors")
    for a, b in zip(Reader.load(tmp_path / "reader.safetensors").read(clip), reader.read(clip)):
        assert torch.equal(a, b)
    assert 100_000 < sum(p.numel() for p in reader.parameters()) < 150_000
    (tmp_path / "reader.safetensors").write_bytes(b"not weights")
    with pytest.raises(BadWeights, match="train_reader"):
        Reader.load(tmp_path / "reader.safetensors")


class Truth:
    """A perfect model: it draws the person that evaluate shows it, with a motion of its own, mouth as the rule demands."""

    def __init__(self, count: int, seed: int) -> None:
        self.id_NP = characters.sample_identity(count, torch.Generator().manual_seed(unseen.HELD_OUT_SEED + seed))
        self.calls = 0

    def __call__(self, picture_3HW: torch.Tensor, pcm_S: torch.Tensor) -> torch.Tensor:
        id_NP = self.id_NP[self.calls : self.calls + 1]
        self.calls += 1
        assert torch.equal(characters.render(id_NP, characters.neutral(1), SIZE)[0], picture_3HW), (
            "the reference is the neutral pose"
        )
        anim_TA = characters.sample_motion(*voices.mouth_targets(pcm_S), torch.Generator().manual_seed(self.calls))
        return metrics.as_frames(characters.render(id_NP, anim_TA, SIZE))


def frozen(picture_3HW: torch.Tensor, pcm_S: torch.Tensor) -> torch.Tensor:
    return metrics.as_frames(picture_3HW[None]).expand(len(pcm_S) // voices.HOP, -1, -1, -1)


def misses(report: dict) -> set[str]:
    return {bar["name"] for bar in report["bars"] if not bar["pass"]}


def grainy(rgb):
    """A codec of 40 dB: what is made by hand is not held to more than that."""
    return rgb + 0.02 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.slow
def test_truth_passes_and_a_frozen_face_fails(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "FIT_FRAMES", 2)
    sounds_S = [amplitude_noise(5, seed=40 + i) for i in range(2)]
    # A reader of fifteen seconds may fall short of its gate; ten seconds hold too few blinks, and two mouths too few strangers.
    luck = {"reader gate on truth", "wrong sound, abs mean correlation", "blinks against truth"}
    luck |= {"opening correlation, mean", "width correlation"}
    report = evaluate.evaluate(Truth(2, seed=2), grainy, reader, sounds_S, tmp_path / "truth", seed=2, size=SIZE)
    assert misses(report) <= luck and report["bars"][1]["value"] > 0.9, evaluate.table(report)
    report = evaluate.evaluate(frozen, lambda rgb: 0.5 * rgb, reader, sounds_S, tmp_path / "frozen", seed=2, size=SIZE)
    wanted = {"opening correlation, mean", "opening correlation, min", "opening amplitude", "blinks against truth"}
    assert not report["pass"] and wanted | {"motion energy against truth", "VAE PSNR, dB"} <= misses(report)
    written = json.loads((tmp_path / "frozen" / "report.json").read_text())
    assert written["pass"] is False and "MISS" in (tmp_path / "frozen" / "report.md").read_text()
    assert (tmp_path / "truth" / "sheet.png").stat().st_size > 10_000


def test_a_bar_has_two_sides():
    bar = evaluate.Bar("motion", "mean", "motion", 0.8, 1.2, "")
    assert str(bar) == "0.8 .. 1.2" and str(bar._replace(most=math.inf)) == ">= 0.8" and str(bar._replace(least=-math.inf)) == "<= 1.2"
    rows = [{"blinks": 3.0, "truth_blinks": 2.0}, {"blinks": 0.0, "truth_blinks": 4.0}]
    assert evaluate.STATISTICS["pooled"](rows, "blinks") == 0.5 and evaluate.STATISTICS["mean"](rows, "blinks") == 1.5
    assert math.isnan(evaluate.STATISTICS["pooled"]([{"blinks": 1.0, "truth_blinks": 0.0}], "blinks"))


@pytest.mark.slow
def test_wrong_sound_is_told_apart(reader, tmp_path, monkeypatch):
    """A model that answers to another sound than it was given must miss."""
    monkeypatch.setattr(evaluate, "FIT_FRAMES", 2)
    sounds_S = [amplitude_noise(6, seed=20 + i) for i in range(2)]
    other = {id(a): b for a, b in zip(sounds_S, reversed(sounds_S))}
    truth = Truth(2, seed=2)
    report = evaluate.evaluate(
        lambda p, s: truth(p, other[id(s)]), lambda rgb: rgb, reader, sounds_S, tmp_path, seed=2, size=SIZE
    )
    assert {"opening correlation, mean", "wrong sound, abs mean correlation"} <= misses(report)


def test_held_out_sounds_are_held_out(tmp_path):
    for name in ("es_00", "it_f3_01", "en-us_00", "de_02"):
        voices.write_wav(tmp_path / f"{name}.wav", torch.full((voices.RATE,), 0.5 if name[:2] in voices.HELD_OUT else -0.5))
    sounds_S = unseen.held_out_sounds(tmp_path, 5, 0.5)
    assert len(sounds_S) == 5 and all(len(s) == voices.RATE // 2 and s.min() > 0 for s in sounds_S)
    long_S = unseen.held_out_sounds(tmp_path, 1, 2.5)[0]  # one clip after the other
    assert len(long_S) == 2.5 * voices.RATE and long_S.min() > 0
    with pytest.raises(BadInput, match="make_speech"):
        unseen.held_out_sounds(tmp_path / "none", 1, 1.0)
