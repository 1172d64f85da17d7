"""The run on a lent GPU, at tiny sizes on this CPU: it goes on where it stopped, here or on another machine."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.chain.conftest import write_frames
from tests.train.miniature import SMALL_VAE, write_hum

from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.motion import mirrored
from everface.train.chain import evaluate, horizon, readers
from everface.train.chain import pack as packing
from everface.train.chain.__main__ import keep_codec, work
from everface.train.chain.codec import CropLoader, share_done, shrink, train_on_frames
from everface.train.chain.frames import HELD_OUT, paths, read_frames, read_rest, start_rendering, stop_rendering, wait_for_clips
from everface.train.chain.latents import encode_frames
from everface.train.chain.pack import pack, unpack
from everface.train.chain.plan import ChainPlan, Rehearsal, cpu_plan
from everface.train.chain.readers import train_head_lip_reader, train_pose_reader
from everface.train.chain.speech import pack_speech, unpack_speech
from everface.train.codec.model import new_vae
from everface.train.codec.training import write_vae
from everface.train.data.clips import ONE_BLOCK, read_clips, smaller_folders
from everface.train.data.vae_files import read_vae
from everface.train.engine.checkpoint import checkpoint_path
from everface.train.engine.ranks import Ranks
from everface.train.evaluate.quality import Generate, Reconstruct, Result
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.heads.motion.speech import read_phoneme_speech
from everface.train.pretrain.stage1 import train_stage1
from everface.train.synthetic.voices import write_wav


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    folder = tmp_path / "spoken"
    write_hum(folder)
    write_wav(folder / "es-hum.wav", 0.1 * torch.sin(torch.arange(80_000) / 30))
    for name in ("en-hum", "es-hum"):
        (folder / f"{name}.json").write_text(json.dumps([[0.0, "_"], [1.0, "ɑː"], [4.0, "_"]]))
    pack_speech(folder, tmp_path / "speech.xz")
    return tmp_path / "speech.xz"


def test_speech_comes_through_one_small_file(speech: Path, tmp_path: Path) -> None:
    before, after = (read_phoneme_speech(folder, held_out=False) for folder in (tmp_path / "spoken", unpack_speech(speech, tmp_path / "again")))
    assert [names for _, names in before] == [names for _, names in after]
    error = (before[0][0] - after[0][0]).square().mean() / before[0][0].square().mean()
    assert error < 10 ** (-30 / 10) and speech.stat().st_size < 40_000


def test_batches_have_one_shape_and_repeat(frames: Path) -> None:
    plan = replace(Rehearsal().plan.vae, crops=((32, 13, 3),))
    first, second = (CropLoader(frames, plan, 64) for _ in range(2))
    for step in range(2):
        assert first.batch(step, 0.0)[0].shape == (2, 1, 64, 64, 3)
        second.batch(step, 0.0)
    for step in range(2, 7):
        (a, wa), (b, wb) = first.batch(step, 0.6), second.batch(step, 0.6)
        assert torch.equal(a, b) and torch.equal(wa, wb)
    a, wa = first.batch(7, 0.6)
    assert a.shape == (3, 13, 32, 32, 3) and wa.shape == (3, 1, 1, 32, 32)
    first.close()
    second.close()
    last = CropLoader(frames, plan, 64)
    crops, weight = last.batch(0, 0.9)
    assert weight.shape == (3, 1, 1, 32, 32) and weight.mean().item() == pytest.approx(1) and crops.shape == a.shape
    last.close()


@pytest.fixture
def plan() -> ChainPlan:
    """A codec and a transformer smaller yet."""
    plan = Rehearsal(clips=6).plan
    vae = replace(SMALL_VAE, patch_size=2, z_dim=32, mean=(0.0,) * 32, std=(1.0,) * 32)
    dit = replace(plan.model.dit, dim=48, ffn_dim=64, num_heads=2, num_layers=2, audio_inject_layers=(0, 1))
    return replace(plan, model=replace(plan.model, vae=vae, dit=dit))


def test_the_codec_stops_for_the_clock_and_goes_on_elsewhere(frames: Path, plan: ChainPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PART", 1 << 15)
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    train_on_frames(here / "vae", frames, replace(plan.vae, iterations=1), plan.model.vae, 64, "cpu", time.monotonic() + 600)
    assert not train_on_frames(here / "vae", frames, plan.vae, plan.model.vae, 64, "cpu", time.monotonic() - 1)  # no time: nothing is done
    assert share_done(here / "vae", plan.vae) == 0.5
    assert pack(here, out) < 1 << 20 and len(list(out.glob("run.tar.*"))) > 3
    unpack(out, there)
    held, again = load_file(here / "vae" / "vae.safetensors"), load_file(there / "vae" / "vae.safetensors")
    assert held.keys() == again.keys() and all((held[n] - again[n]).abs().max() < 1e-3 for n in held)
    trained = load_file(here / "vae" / "checkpoint.safetensors")
    later = {n: t + 1 if n.startswith("ema.") else t for n, t in trained.items()}
    save_file(later, here / "vae" / "checkpoint.safetensors", {"progress": "{}"})  # as during a call: newer than what the last one wrote at its end
    for name in ("while", "unfinished"):
        pack(here, out)
        unpack(out, tmp_path / name)
        went_on = load_file(tmp_path / name / "vae" / "vae.safetensors")
        assert went_on.keys() == held.keys() and all((later[f"ema.{n}"] - t).abs().max() < 2e-3 * later[f"ema.{n}"].abs().max() for n, t in went_on.items())
        (here / "vae" / "vae.safetensors").unlink(missing_ok=True)  # as on a CPU, where only a finished codec is written
    pack(tmp_path / "while", out)  # an archive of an archive: its checkpoint has no average of its own
    unpack(out, tmp_path / "twice")
    assert load_file(tmp_path / "twice" / "vae" / "vae.safetensors").keys() == held.keys()
    assert train_on_frames(there / "vae", frames, plan.vae, plan.model.vae, 64, "cpu", time.monotonic() + 600)
    assert share_done(there / "vae", plan.vae) == 1 and checkpoint_path(there / "vae", Ranks()).exists()


@pytest.mark.long
def test_rendering_stops_when_asked(assets: Path, speech: Path, tmp_path: Path) -> None:
    pytest.importorskip("moderngl")
    folder, voices = tmp_path / "frames", unpack_speech(speech, tmp_path / "voices")
    processes = start_rendering(folder, assets, voices, 64, 2, 1, 1, 1, time.time() + 600, one_block=50)
    try:
        wait_for_clips(folder, 2, 1, processes, time.time() + 60)
        wait_for_clips(folder / ONE_BLOCK, 1, 0, processes, time.time() + 60)
    except Unavailable:
        pytest.skip("no EGL")
    finally:
        stop_rendering(folder, processes)
    short = paths(folder / ONE_BLOCK)
    assert len(paths(folder)) == 2 and len(paths(folder / HELD_OUT)) == 1 and 1 <= len(short) < 50 and read_frames(short[0]).shape == (17, 64, 64, 3)
    clip = paths(folder / HELD_OUT)[0]
    assert read_frames(clip).shape == (69, 64, 64, 3) and read_rest(clip)["opening"].shape == (64,)


@pytest.mark.long
def test_everything_from_frames_to_a_judged_model(frames: Path, speech: Path, plan: ChainPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call trains both, judges and ends; the next finds nothing to do but to judge."""
    run = tmp_path / "run"
    monkeypatch.setattr("everface.train.data.clips.MIN_TRAINING_CLIPS", 1)
    small = replace(plan, clips=6, vae=replace(plan.vae, least_clips=2), stage1=replace(plan.stage1, iterations=1))
    for _ in range(2):
        work(run, tmp_path / "no assets are needed", speech, frames, small, "cpu", 1, 10.0)
        report = json.loads((run / "report.json").read_text())
        assert {"codec_psnr", "mouth_agreement", "eyes_gain", "block_flicker"} <= report["mean"].keys() and len(report["people"]) == 2
        assert (run / "sheet.jpg").exists() and share_done(run / "dit", small.stage1) == 1
    again = train_stage1(run / "dit", run / "clips", small.stage1, small.model.dit)
    assert again.exists() and (run / "model" / "config.json").exists()
    later = tmp_path / "later"  # another run goes on from that model, with its codec
    work(later, tmp_path / "no assets are needed", speech, frames, small, "cpu", 1, 10.0, init=run / "model")
    kept, bundled = load_file(later / "vae" / "vae.safetensors"), load_file(run / "model" / "vae.safetensors")
    assert kept.keys() == bundled.keys() and all(torch.equal(kept[n], bundled[n].float()) for n in kept)
    assert (later / "dit" / "articulators.safetensors").read_bytes() == (run / "model" / "articulators.safetensors").read_bytes()


def test_a_models_codec_is_kept_where_it_fits(plan: ChainPlan, tmp_path: Path) -> None:
    heads = cpu_plan("heads-256")
    keep_codec(DEFAULT_WEIGHTS, tmp_path / "vae", heads)
    assert share_done(tmp_path / "vae", heads.vae) == 1 and read_vae(tmp_path / "vae").config == read_vae(DEFAULT_WEIGHTS).config
    with pytest.raises(BadInput, match="not of the size"):
        keep_codec(DEFAULT_WEIGHTS, tmp_path / "other", plan)
    assert not (tmp_path / "other").exists()


def test_clips_are_encoded_at_a_smaller_size_too(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", 3, size=128)
    write_frames(tmp_path / "frames" / ONE_BLOCK, 2, size=128)
    config = replace(SMALL_VAE, z_dim=16)
    (tmp_path / "vae").mkdir()
    write_vae(tmp_path / "vae", new_vae(config).state_dict(), config)
    for _ in range(2):  # the second time all is there
        assert encode_frames(tmp_path / "clips", tmp_path / "frames", tmp_path / "vae", "cpu", smaller=(64,), smaller_clips=2, views=1, held_out=1) == 3
    short = read_clips(tmp_path / "clips" / ONE_BLOCK)
    assert len(short) == 4 and torch.equal(short.features_NLCF[2:], torch.stack([mirrored(features) for features in short.features_NLCF[:2]]))
    (small,) = smaller_folders(tmp_path / "clips")
    clips = read_clips(tmp_path / "clips")
    assert len(clips) == 5 and torch.equal(clips.features_NLCF[3:], torch.stack([mirrored(features) for features in clips.features_NLCF[1:3]])) and read_clips(small).latents_N16Thw.shape == (2, 16, 18, 8, 8)
    assert torch.equal(read_clips(small).features_NLCF, clips.features_NLCF[:2])
    flat = torch.linspace(-1, 1, 128).expand(3, 2, 128, 128)
    assert (shrink(flat, 64)[..., 1:-1] - flat.unflatten(-1, (64, 2)).mean(-1)[..., ::2, 1:-1]).abs().max() < 2e-3


def test_readers_leave_out_clips_without_truth(frames: Path) -> None:
    np.savez(frames / "00006.npz", features=np.zeros(1), audio=np.zeros(0, np.float32))
    np.save(frames / "00006.npy", np.zeros((69, 64, 64, 3), np.uint8))
    image = torch.zeros(3, 3, 64, 64)
    for train in (train_head_lip_reader, train_pose_reader):
        one, again = (train(paths(frames), 2, "cpu") for _ in range(2))
        assert torch.equal(one(image), again(image)) and one(image).shape == (3, 3)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_the_bars_of_rendered_people(assets: Path, frames: Path, small_listener: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with random weights misses, and every bar has a number; a call goes on where one was interrupted; a second one, in processes, renders and trains
    nothing again and says the same."""
    pytest.importorskip("moderngl")
    monkeypatch.setattr(evaluate, "READER_STEPS", 2)
    monkeypatch.setattr(evaluate, "CLIPS_PER_VOICE", 1)
    monkeypatch.setattr(readers, "TUNING_FRAMES", 20)
    monkeypatch.setattr(readers, "TUNING_STEPS", 2)
    monkeypatch.setattr(evaluate, "cores", lambda: 1)
    people, whole = list[Path](), evaluate.evaluate_clip

    def interrupted(generate: Generate, codec: Reconstruct, reader: LipReader, person: evaluate.HeldOutPerson, fit_frames: int) -> Result:
        people.append(person.path)
        if len(people) == 2:
            raise KeyboardInterrupt
        return whole(generate, codec, reader, person, fit_frames)

    monkeypatch.setattr(evaluate, "evaluate_clip", interrupted)
    given = (small_listener, assets, frames, tmp_path / "out", 2, 3)
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate_people(*given)
    except Unavailable as error:
        pytest.skip(str(error))
    reports = [evaluate.evaluate_people(*given)]
    assert [path.name for path in people] == ["00000.npy", "00001.npy", "00001.npy"]
    for name in ("make_phoneme_speech", "train_pose_reader"):
        monkeypatch.setattr(evaluate, name, None)
    reports.append(evaluate.evaluate_people(*given, processes=2))
    assert json.dumps(reports[0]) == json.dumps(reports[1]) and not reports[0]["pass"] and len(reports[0]["bars"]) == 15 and len(reports[0]["characters"]) == 2
    assert all(math.isfinite(bar["value"]) or bar["name"].startswith("blinks") for bar in reports[0]["bars"]), reports[0]["bars"]
    assert (tmp_path / "out" / "report.md").exists()
    monkeypatch.setattr(horizon, "FIT_FRAMES", 1)
    report = horizon.evaluate_loop(small_listener, assets, frames, tmp_path / "out", 0.1, Deployment(threads=1), loop_s=4 * 0.48, window=3)
    assert report["complete"] and [row["seconds"] for row in report["windows"]] == [0.0, 4 * 0.48]
    assert all(math.isfinite(row["fit_psnr"]) and row["motion"] > 0 for row in report["windows"])


def test_people_of_another_size_or_length_are_others(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no voice lasts so long, that is known before a reader is trained."""
    assert evaluate.person_path(tmp_path, 3, 256, 20) == tmp_path / "people" / "00003.npy"
    assert len({evaluate.person_path(tmp_path, 3, *of) for of in ((256, 20), (256, 5), (384, 20))}) == 3
    monkeypatch.setattr(evaluate, "held_out_voices", lambda out: [(torch.zeros(31 * 16_000), [(0.0, "_")])])
    monkeypatch.setattr(evaluate, "read_lip_reader", lambda *given, **named: pytest.fail("a reader is trained"))
    with pytest.raises(BadInput, match="give --seconds 30 or less"):
        evaluate.evaluate_people(DEFAULT_WEIGHTS, tmp_path / "no assets", frames, tmp_path / "out", 2, 60)


def test_recordings_are_joined_with_their_phonemes() -> None:
    joined_S, phonemes = horizon.joined([(torch.ones(16_000), [(0.0, "_"), (0.5, "ɑː")]), (torch.zeros(8_000), [(0.25, "m")])])
    assert joined_S.shape == (24_000,) and phonemes == [(0.0, "_"), (0.5, "ɑː"), (1.25, "m")]
