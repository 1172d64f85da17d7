"""Does a stream of a rendered person last? As `everface train evaluate --horizon`, with a person whose truth the renderer knows.

    python -m everface.train.chain.horizon MODEL --assets heads.npz --frames RUN/frames --out out --seconds 10000

OUT is that of `everface.train.chain.evaluate`, whose readers are used; the person of the loop is rendered into it once, 100.8 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Deployment
from everface.core.log import log, start_log
from everface.core.machine import cores
from everface.networks.audio.features import LogMel
from everface.train.chain.evaluate import HeldOutPerson, add_paths, held_out_voices, read_lip_reader, read_pose_reader
from everface.train.chain.frames import paths, write_clip
from everface.train.chain.readers import read_faces
from everface.train.data.drawn import clip_generator
from everface.train.evaluate.held_out import HELD_OUT_SEED
from everface.train.evaluate.horizon import LOOP_S, WINDOW_BLOCKS, Truth, evaluate_horizon
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.heads.clips import HeadClips
from everface.train.heads.motion.speech import Phonemes
from everface.train.heads.renderer import Renderer

FIT_FRAMES = 8  # of a window: a fit through the renderer takes ten seconds
PERSON = 100  # of HELD_OUT_SEED: none of those that are evaluated


def render_loop(path: Path, assets: Path, size: int, loop_s: float, out: Path) -> None:
    """One person who speaks for so long, with several held-out voices one after the other."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = HeadClips(assets, size, [joined(held_out_voices(out))], listening_share=0.0, clean=True)
    write_clip(path, source.draw(LogMel(), clip_generator(HELD_OUT_SEED, PERSON), frames=round(loop_s * FPS)))
    log.info("the person of the loop is rendered")


def joined(voices: Sequence[tuple[torch.Tensor, Phonemes]]) -> tuple[torch.Tensor, Phonemes]:
    """One recording after the other."""
    phonemes: Phonemes = []
    begin_s = 0.0
    for pcm_S, spoken in voices:
        phonemes += [(begin_s + t, name) for t, name in spoken]
        begin_s += len(pcm_S) / SAMPLE_RATE
    return torch.cat([pcm_S for pcm_S, _ in voices]), phonemes


def evaluate_loop(
    model: Path, assets: Path, frames: Path, out: Path, seconds: float, deployment: Deployment, loop_s: float = LOOP_S, window: int = WINDOW_BLOCKS
) -> dict[str, Any]:  # fmt: skip
    """Writes horizon.json, .md and .png to `out` and returns the report."""
    offline = OfflineModel(model, deployment)
    size, clip = offline.image_size, out / "loop" / "00000.npy"
    render_loop(clip, assets, size, loop_s, out)
    lips, poses = read_lip_reader(out, frames), read_pose_reader(out, frames)
    renderer, face_NC = Renderer(assets, size), read_faces(paths(frames))
    person = HeldOutPerson(clip, renderer, poses, face_NC)
    audio_S, lips = person.pcm_S, person.reader(lips)
    loop_frames = len(audio_S) // SAMPLES_PER_FRAME

    def at(first: int, count: int) -> HeldOutPerson:
        return HeldOutPerson(clip, renderer, poses, face_NC, first % loop_frames, count)

    truth: Truth = at
    return evaluate_horizon(offline, lips, truth, audio_S, seconds, out, window=window, fit_frames=FIT_FRAMES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.chain.horizon", description="Evaluate a long stream of a rendered person.")
    add_paths(parser)
    parser.add_argument("--seconds", type=float, default=10_000)
    args = parser.parse_args()
    start_log()
    log.setLevel("INFO")
    report = evaluate_loop(args.model, args.assets, args.frames, args.out, args.seconds, Deployment(threads=cores()))
    print((args.out / "horizon.md").read_text())
    raise SystemExit(0 if report["pass"] else 1)


if __name__ == "__main__":
    main()
