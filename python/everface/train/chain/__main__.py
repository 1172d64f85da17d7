"""Render, train the codec, encode, train the transformer, look at it: what of this is not done yet, within the minutes of one call.

    python -m everface.train.chain RUN --assets heads.npz --speech speech.xz --minutes 9 --pack OUT

Call it again to go on; on another machine with `--from FOLDER`, which holds the parts of the archive that came back. Frames are rendered by
processes while the codec is trained on those that are there. Every minute a checkpoint is written; at the end the archive is.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import torch

from everface.core.errors import BadInput, EverfaceError
from everface.core.log import log, start_log
from everface.core.machine import cores
from everface.networks.audio.articulators import FILE as ARTICULATORS
from everface.networks.audio.features import LogMel
from everface.networks.video.mouth_finder import FILE as MOUTH_FINDER
from everface.train.bundle import bundle
from everface.train.chain.codec import share_done, train_on_frames
from everface.train.chain.frames import HELD_OUT, paths, start_rendering, stop_rendering, wait_for_clips
from everface.train.chain.judge import judge
from everface.train.chain.latents import encode_frames
from everface.train.chain.pack import pack, unpack
from everface.train.chain.plan import ChainPlan, Rehearsal, cpu_plan, gpu_plan
from everface.train.chain.speech import unpack_speech
from everface.train.codec.training import write_vae
from everface.train.data.clips import MIN_TRAINING_CLIPS, ONE_BLOCK
from everface.train.data.vae_files import read_vae
from everface.train.heads.articulation import read_recordings, train_articulators
from everface.train.heads.mouth_finder import leave_mouth_finder
from everface.train.pretrain.dit_files import adapt_dit
from everface.train.pretrain.stage1 import train_stage1
from everface.weights.files import open_file
from everface.weights.layout import OWN_DIT
from everface.weights.store import write_half, write_safetensors

RESERVE_S = 60.0  # of a call, for the judgement and the archive
LEAST_S = 20.0  # no phase begins with less
FIRST_CLIPS_S = 120.0  # on a GPU: if OpenGL does not work there, that is known at once


def work(
    run: Path, assets: Path, speech: Path, frames: Path, plan: ChainPlan, device: str, processes: int, minutes: float, init: Path | None = None,
    articulators: Path | None = None,
) -> None:  # fmt: skip
    """Everything but the archive. Each phase goes on where it stopped. init: a transformer to begin stage 1 with, or a model's folder, whose codec and
    articulators are kept. articulators: what reads the mouth from audio; without it, it is trained on this run's speech."""
    began = time.monotonic()
    until = began + 60 * minutes - RESERVE_S
    size = plan.model.size[0] if plan.model.size else 256
    voices, encoded = unpack_speech(speech, run / "speech"), run / "clips"
    if init is not None and init.is_dir():
        keep_codec(init, run / "vae", plan)
        articulators = articulators or (init / ARTICULATORS if (init / ARTICULATORS).exists() else None)
        init = init / OWN_DIT
    vae_done = share_done(run / "vae", plan.vae) >= 1
    least = min(plan.clips, max(plan.least_clips, 4 * max(batch for _, _, batch in plan.stage1.curriculum), plan.stage1.held_out + MIN_TRAINING_CLIPS + 1))
    more = len(paths(frames)) < (least if vae_done else plan.clips) or len(paths(frames / HELD_OUT)) < plan.held_out
    more = more or len(paths(frames / ONE_BLOCK)) < plan.one_block_clips
    left_s = until - time.monotonic()
    given = (frames, assets, voices, size, plan.clips, plan.held_out, plan.seed, processes, time.time() + left_s, plan.clip_frames, plan.one_block_clips)
    renders = start_rendering(*given) if more else []
    try:
        if not vae_done:
            wait_for_clips(frames, plan.vae.least_clips, plan.held_out, renders, time.time() + (FIRST_CLIPS_S if device.startswith("cuda") else left_s))
            log.info("codec: begins at %.0f s with %d clips", time.monotonic() - began, len(paths(frames)))
            vae_done = train_on_frames(run / "vae", frames, plan.vae, plan.model.vae, size, device, until)
        if vae_done:  # on a fresh machine too the transformer needs clips
            wait_for_clips(frames, least, plan.held_out, renders, time.time() + until - time.monotonic())
            wait_for_clips(frames / ONE_BLOCK, plan.one_block_clips, 0, renders, time.time() + until - time.monotonic())
    finally:
        stop_rendering(frames, renders)
        log.info("%d clips and %d held-out are rendered", len(paths(frames)), len(paths(frames / HELD_OUT)))
    if vae_done and share_done(run / "dit", plan.stage1) < 1 and time.monotonic() + LEAST_S < until:
        sides = tuple(height for height, _ in plan.model.smaller)
        count = encode_frames(encoded, frames, run / "vae", device, sides, plan.smaller_clips, plan.views, plan.stage1.held_out)
        log.info("transformer: begins at %.0f s with %d clips", time.monotonic() - began, count)
        train_stage1(run / "dit", encoded, plan.stage1, plan.model.dit, device, first_weights(run, init, plan), until)
    torch.set_num_threads(cores())  # rendering has ended
    if not (run / "vae" / "vae.safetensors").exists() or (not plan.judge_each_call and share_done(run / "dit", plan.stage1) < 1):
        return
    model = None
    if (run / "dit" / "dit.safetensors").exists():
        leave_articulators(run / "dit" / ARTICULATORS, voices, plan, articulators)
        leave_mouth_finder(run / "dit" / MOUTH_FINDER, paths(frames), plan.mouth_finder_steps)
        model = bundle([run / "vae"], run / "dit", run / "model", plan.model)
    report = judge(run, frames, model, device)
    log.info("at %.0f s: %s", time.monotonic() - began, report["mean"])


def keep_codec(model: Path, vae_run: Path, plan: ChainPlan) -> None:
    """Make a finished run of a model's codec, where there is no run yet. Raises BadInput for a codec of another size than the plan's."""
    if vae_run.exists():
        return
    vae = read_vae(model)
    kept, wanted = ({name: size for name, size in asdict(config).items() if name not in ("mean", "std")} for config in (vae.config, plan.model.vae))
    if kept != wanted:
        raise BadInput(f"the codec of {model} is not of the size that this run trains: begin from its dit.safetensors alone")
    vae_run.mkdir(parents=True)
    write_vae(vae_run, vae.state_dict(), vae.config)
    (vae_run / "progress.json").write_text(json.dumps({"step": plan.vae.iterations, "seconds": 60 * plan.vae.minutes}) + "\n")


def first_weights(run: Path, init: Path | None, plan: ChainPlan) -> Path | None:
    """A file with what stage 1 begins with, made from a transformer of the same width; None: nothing is given, or the run has begun."""
    if init is None or (run / "dit" / "progress.json").exists():
        return None
    path = run / "first.safetensors"
    tensors = adapt_dit(open_file(init), plan.model.dit, plan.stage1.seed)
    write_safetensors(path, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, lambda name: tensors[name], {})
    return path


def leave_articulators(path: Path, voices: Path, plan: ChainPlan, made: Path | None) -> None:
    """Put what reads the mouth from audio beside the transformer, if it is not there."""
    if made is not None:
        path.write_bytes(made.read_bytes())
    elif not path.exists():
        sides = [read_recordings(voices, held_out, LogMel()) for held_out in (False, True)]
        write_half(path, train_articulators(sides[0], sides[1], plan.articulation).state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.chain", description="Train a model of rendered people.")
    parser.add_argument("run", type=Path, help="folder of the run; what is in it is not done again")
    parser.add_argument("--assets", type=Path, required=True, help="the npz of everface.train.heads.assets")
    parser.add_argument("--speech", type=Path, required=True, help="the file of everface.train.chain.speech")
    parser.add_argument("--frames", type=Path, help="folder for rendered clips, such as one in /dev/shm (RUN/frames)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (%(default)s)")
    parser.add_argument("--pack", type=Path, help="folder for the archive and the sheet")
    parser.add_argument("--from", dest="parts", type=Path, help="folder with the parts of an earlier archive, if there are any; used where RUN is new")
    parser.add_argument("--init", type=Path, help="to begin stage 1 with: dit.safetensors of the same width, or a model's folder, whose codec and articulators are kept")
    parser.add_argument("--articulators", type=Path, help="the file of everface.train.heads.articulation; else it is trained on this speech")
    parser.add_argument("--preset", choices=("heads-256", "heads-384"), default="heads-256")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=max(1, cores() - 2), help="that render (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args()
    start_log()
    args.run.mkdir(parents=True, exist_ok=True)
    log.setLevel("INFO")
    log.addHandler(logging.FileHandler(args.run / "run.log"))
    if args.parts and any(args.parts.glob("run.tar.*")) and not (args.run / "vae").exists():
        unpack(args.parts, args.run)
    torch.set_float32_matmul_precision("high")
    plan = Rehearsal().plan if args.rehearse else (cpu_plan if args.device == "cpu" else gpu_plan)(args.preset)
    frames = args.frames or args.run / "frames"
    try:
        work(args.run, args.assets, args.speech, frames, plan, args.device, args.processes, args.minutes, args.init, args.articulators)
    except EverfaceError as error:
        raise SystemExit(f"everface: {error}") from None
    finally:
        if args.pack:
            log.info("archive: %.1f MB", pack(args.run, args.pack) / 1e6)


if __name__ == "__main__":
    main()
