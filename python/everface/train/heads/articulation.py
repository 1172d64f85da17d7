"""Trains the network that reads the mouth from audio (`networks.audio.articulators`), on speech alone: an hour on one core, the making of the speech included.

    python -m everface.train.heads.articulation runs/speech runs/dit/articulators.safetensors

Voices and languages of the evaluation are held out. Speech is made by espeak-ng, and by festival and flite in voices that were recorded from people, into
the folder, where that has none.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.log import log, start_log
from everface.networks.audio.articulators import AHEAD_FRAMES, PAST_FRAMES, ArticulatorNet, apply_loudness, jaw_gain
from everface.networks.audio.features import LogMel
from everface.networks.motion import ARTICULATORS
from everface.train.data.drawn import BACKGROUND_SHARE
from everface.train.engine.ema import Ema
from everface.train.engine.optimizer import Optimizer
from everface.train.engine.plan import RunPlan, learning_rate_factor
from everface.train.engine.precision import autocast
from everface.train.engine.sharding import clip_gradients
from everface.train.engine.statistics import correlation
from everface.train.heads.motion.acoustics import vary
from everface.train.heads.motion.recorded import make_recorded_speech
from everface.train.heads.motion.speech import Phonemes, make_both_sides, read_phoneme_speech
from everface.train.heads.motion.visemes import articulate
from everface.train.synthetic.background import add_background
from everface.weights.store import write_half

RECORDED = "recorded"  # folder of those voices, in that of the others
CLIPS, SPEECH_SEED = 3600, 11  # of about 23 s
RECORDED_CLIPS, RECORDED_SHARE = 60, 0.3  # of each recorded voice; share of the windows
LEVEL = 0.15  # of features, up and down: 2.2 dB, as much as a session leaves alone (models.live_avatar.loudness). The jaw follows the level
SPEED = 1.15  # that a recording is played faster or slower by at most, with its pitch and its formants: other voices
WEIGHT_A = torch.tensor([4.0, 1.0, 1.0, 2.0, 1.0, 0.5])  # of the squared error of each articulator


@dataclass(frozen=True)
class ArticulationPlan(RunPlan):
    """The defaults are those of the default model. It counts steps."""

    iterations: int = 4000
    lr: float = 3e-3
    warmup_steps: int = 50
    decay_from: float = 0.4
    batch: int = 24
    frames: int = 200  # of a window


@dataclass(frozen=True)
class Recording:
    """Features [C, T] float16, the jaw's gain [T], articulators [6, T]. recorded: a voice made from recordings of a person."""

    features_CT: Tensor
    gain_T: Tensor
    target_AT: Tensor
    recorded: bool


def read_recordings(folder: Path, held_out: bool, front_end: LogMel) -> list[Recording]:
    """All clips of one side of the split, and of the folder RECORDED in it; those of the training each at another speed, and some with other sounds."""
    out, rng = list[Recording](), random.Random(0)
    kinds = {recorded: read_phoneme_speech(folder / RECORDED if recorded else folder, held_out) for recorded in (False, True)}
    for n, (recorded, (pcm_S, phonemes)) in enumerate((recorded, clip) for recorded, clips in kinds.items() for clip in clips):
        if not held_out:
            pcm_S, phonemes = play(pcm_S, phonemes, rng.uniform(1 / SPEED, SPEED))
        frames = len(pcm_S) // SAMPLES_PER_FRAME
        pcm_S = pcm_S[: frames * SAMPLES_PER_FRAME]
        heard_S = add_background(pcm_S, torch.Generator().manual_seed(n)) if not held_out and rng.random() < BACKGROUND_SHARE else pcm_S
        features_CT = front_end.features(F.pad(heard_S, (front_end.lookback_samples, 0)), frames)[0].half()
        target_TA = articulate(phonemes, pcm_S.numpy(), frames, 0.0)
        out.append(Recording(features_CT, jaw_gain(heard_S, 0, frames), torch.from_numpy(target_TA.T).float(), recorded))
    return out


def play(pcm_S: Tensor, phonemes: Phonemes, slower: float) -> tuple[Tensor, Phonemes]:
    """A recording that lasts `slower` times as long."""
    import soxr

    played_S = soxr.resample(pcm_S.numpy(), SAMPLE_RATE, round(SAMPLE_RATE * slower)).astype(np.float32)
    return torch.from_numpy(played_S), [(slower * t, name) for t, name in phonemes]


def train_articulators(recordings: list[Recording], held_out: list[Recording], plan: ArticulationPlan) -> ArticulatorNet:
    """Averaged weights. The same on one machine with one number of threads."""
    torch.manual_seed(plan.seed)
    net, rng = ArticulatorNet(recordings[0].features_CT.shape[0]), random.Random(plan.seed)
    optimizer, average = Optimizer(net), Ema(net, plan.ema)
    usable = [r for r in recordings if r.target_AT.shape[1] >= plan.frames + PAST_FRAMES + AHEAD_FRAMES]
    people, synthetic = ([r for r in usable if r.recorded == recorded] for recorded in (True, False))
    front_end, generator = LogMel(), torch.Generator().manual_seed(plan.seed)
    for step in range(plan.iterations):
        drawn = [rng.choice(people if people and (not synthetic or rng.random() < RECORDED_SHARE) else synthetic) for _ in range(plan.batch)]
        features_NCT, gain_NT, target_NAT = (torch.stack(each) for each in zip(*(draw_window(r, plan.frames, rng) for r in drawn), strict=True))
        heard_NCT = vary(features_NCT, front_end, generator)
        with autocast("cpu"):
            medium_NAT = net(heard_NCT)
        loss = (WEIGHT_A[:, None] * (apply_loudness(medium_NAT.float(), gain_NT) - target_NAT).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(net, 1.0)
        optimizer.step(plan.lr * learning_rate_factor(step / plan.iterations, step, plan))
        average.update(net)
        if step % 500 == 499 or step == plan.iterations - 1:
            with average.swapped(net):
                log.info("step %d: loss %.5f, held-out correlation %s", step + 1, loss.item(), json.dumps(judge_articulators(net, held_out)))
    net.load_state_dict(average.weights)
    return net.eval()


def draw_window(recording: Recording, frames: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Features [C, PAST_FRAMES + frames + AHEAD_FRAMES], and the jaw's gain [frames] and articulators [6, frames] of the inner ones."""
    begin = rng.randrange(recording.target_AT.shape[1] - frames - PAST_FRAMES - AHEAD_FRAMES + 1)
    features_CT = recording.features_CT[:, begin : begin + PAST_FRAMES + frames + AHEAD_FRAMES].float() + rng.uniform(-LEVEL, LEVEL)
    inner = slice(begin + PAST_FRAMES, begin + PAST_FRAMES + frames)
    return features_CT, recording.gain_T[inner], recording.target_AT[:, inner]


@torch.inference_mode()
def judge_articulators(net: ArticulatorNet, recordings: list[Recording]) -> dict[str, dict[str, float]]:
    """Of synthetic voices and of recorded ones, by name: mean correlation with the truth; and the least of the jaw."""
    rows: dict[str, list[list[float]]] = {}
    for recording in recordings:
        inner = slice(PAST_FRAMES, -AHEAD_FRAMES)
        read_AT = apply_loudness(net(recording.features_CT.float()[None])[0], recording.gain_T[inner])
        row = [correlation(read_T, true_T[inner]) for read_T, true_T in zip(read_AT, recording.target_AT, strict=True)]
        rows.setdefault("recorded" if recording.recorded else "synthetic", []).append(row)
    return {
        kind: {name: round(value, 3) for name, value in zip(ARTICULATORS, torch.tensor(those).mean(0).tolist(), strict=True)} | {"least jaw": round(min(row[0] for row in those), 3)}
        for kind, those in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.heads.articulation", description="Train the network that reads the mouth from audio.")
    parser.add_argument("speech", type=Path, help="folder of WAV and JSON files; made where it has none")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--clips", type=int, default=CLIPS, help="to make (%(default)s)")
    parser.add_argument("--recorded", type=int, default=RECORDED_CLIPS, help="to make of each voice recorded from people; 0 without festival and flite (%(default)s)")
    parser.add_argument("--steps", type=int, default=ArticulationPlan.iterations)
    args = parser.parse_args()
    start_log()
    log.setLevel("INFO")
    if not (args.speech / "complete").exists():
        make_both_sides(args.speech, SPEECH_SEED, args.clips)
        make_recorded_speech(args.speech / RECORDED, SPEECH_SEED, args.recorded)
        (args.speech / "complete").touch()
    sides = [read_recordings(args.speech, held_out, LogMel()) for held_out in (False, True)]
    log.info("%d recordings, %.0f minutes", len(sides[0]), sum(r.target_AT.shape[1] for r in sides[0]) / 1500)
    net = train_articulators(sides[0], sides[1], ArticulationPlan(iterations=args.steps))
    print(f"{write_half(args.out, net.state_dict())}: {json.dumps(judge_articulators(net, sides[1]))}")


if __name__ == "__main__":
    main()
