"""Training data of rendered people in processes: clips as latents for the transformer, short videos for the codec.

    python -m everface.train.heads.dataset clips RUN --assets heads.npz --vae runs/vae --count 2500 --size 256
    python -m everface.train.heads.dataset videos RUN --assets heads.npz --count 1200 --size 256

`clips` writes what `everface train data` writes, RUN/speech and RUN/clips, and truth beside each shard (.npz). `videos` writes the file that
`everface train vae RUN` finds in its run's folder and trains on. Both resume, are divided among processes by shard, and log how fast they render.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from everface.core.errors import Unavailable
from everface.core.log import log, start_log
from everface.core.machine import cores
from everface.networks.audio.features import LogMel
from everface.train.data.clips import SHARD_CLIPS, STILL_FRAMES, encode_clip, write_shard
from everface.train.data.drawn import clip_generator
from everface.train.data.vae_files import read_vae
from everface.train.heads.clips import DRAWN_SHARE, FRAMES, HeadClips
from everface.train.heads.motion.body import sample_body
from everface.train.heads.motion.speech import make_phoneme_speech, read_phoneme_speech
from everface.train.synthetic.characters import render, to_uint8
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral, sample_motion

MOVING_FRAMES = 16  # of a codec's video, as `codec.crops` has them


def make_head_clips(run: Path, assets: Path, vae_run: Path, count: int, seed: int, size: int, worker: int = 0, workers: int = 1) -> None:
    """Write this worker's shards of `count` clips into run/clips. Clip n depends on (seed, n) only."""
    clips = run / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    vae, front_end = read_vae(vae_run), LogMel()
    source = HeadClips(assets, size, read_phoneme_speech(run / "speech", held_out=False), still_head=True)
    for first in range(SHARD_CLIPS * worker, count, SHARD_CLIPS * workers):
        path = clips / f"{first:05d}.safetensors"
        if path.exists():
            continue
        latents, features, truths, begin, cpu = [], [], {}, time.monotonic(), 0.0
        for n in range(first, min(first + SHARD_CLIPS, count)):
            start = time.process_time()
            rgb_3THW, features_LCF, truth = source.make(front_end, clip_generator(seed, n))
            cpu += time.process_time() - start
            latents.append(encode_clip(vae, rgb_3THW))
            features.append(features_LCF)
            truths |= {f"{n}/{name}": value for name, value in asdict(truth).items()} if truth else {}
        np.savez_compressed(path.with_suffix(".npz"), **truths)  # type: ignore[arg-type] numpy types the keywords as its own options
        write_shard(path, latents, features)
        log.info("%s: %.1f frames per second of a core rendered, %.1f with encoding", path.name, _rate(len(latents), cpu), _rate(len(latents), time.monotonic() - begin))


def make_head_videos(folder: Path, assets: Path, count: int, seed: int, size: int, worker: int = 0, workers: int = 1) -> None:
    """Write this worker's parts of `count` videos: random mouths, as the codec's drawn videos have, so that every shape is seen."""
    source = HeadClips(assets, size, [])
    for first in range(SHARD_CLIPS * worker, count, SHARD_CLIPS * workers):
        path = folder / f"videos_{seed}_{size}_{first:05d}.safetensors"
        if path.exists():
            continue
        start = time.process_time()
        out = [make_head_video(source, clip_generator(seed, n)) for n in range(first, min(first + SHARD_CLIPS, count))]
        save_file({"clips": torch.stack(out)}, path)
        frames = len(out) * (MOVING_FRAMES + 1)
        log.info("%s: %.1f frames per second of a core", path.name, frames / (time.process_time() - start))


def make_head_video(source: HeadClips, g: torch.Generator) -> torch.Tensor:
    """uint8 [3, 5 + 16, H, W] of one person, or of a drawn character in `DRAWN_SHARE` of the cases."""
    seed = int(torch.randint(1 << 31, (1,), generator=g))
    mouth = torch.rand(6, MOVING_FRAMES // 4 + 2, generator=g)
    moves = F.interpolate(mouth[None], size=MOVING_FRAMES, mode="linear")[0].clamp(0, 1)
    if torch.rand(1, generator=g) < DRAWN_SHARE:
        identity = sample_identity(1, g)
        still = render(identity, neutral(1), source.size).expand(STILL_FRAMES, -1, -1, -1)
        return to_uint8(torch.cat([still, render(identity, sample_motion(moves[0], moves[1], g), source.size)])).transpose(0, 1)
    moves_TA = (moves.T * torch.tensor([1.0, 1.0, 1.0, 0.3, 0.4, 1.0])).numpy()
    moves_TA *= float(torch.rand(1, generator=g) > 0.15)
    body = sample_body(moves_TA[:, 0], None, np.random.Generator(np.random.PCG64([seed, 12])))
    images, _ = source.render(seed, moves_TA, body)
    return torch.from_numpy(images).permute(3, 0, 1, 2).contiguous()


def join_videos(folder: Path, count: int, seed: int, size: int) -> Path:
    """One file of all parts, named as `codec.crops.draw_videos` looks for it."""
    parts = [load_file(folder / f"videos_{seed}_{size}_{first:05d}.safetensors")["clips"] for first in range(0, count, SHARD_CLIPS)]
    path = folder / f"clips_{seed}_{count}.safetensors"
    save_file({"clips": torch.cat(parts)}, path)
    return path


def _rate(clips: int, seconds: float) -> float:
    return clips * (FRAMES + 1) / max(seconds, 1e-9)


def _work(verb: str, arguments: tuple, worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    torch.set_num_threads(1)
    start_log()
    log.setLevel("INFO")
    make: Callable[..., None] = make_head_clips if verb == "clips" else make_head_videos
    make(*arguments, worker, workers)


def divide(verb: str, arguments: tuple, count: int, processes: int | None = None) -> None:
    """Run the verb in one process per core. Raises Unavailable where one fails."""
    workers = min(processes or cores(), -(-count // SHARD_CLIPS))
    spawn = multiprocessing.get_context("spawn")
    running = [spawn.Process(target=_work, args=(verb, arguments, n, workers)) for n in range(workers)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise Unavailable("a process that rendered heads failed; its error is above. Resume with the same command.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.heads.dataset", description="Render training data.")
    parser.add_argument("verb", choices=("clips", "videos"))
    parser.add_argument("run", type=Path, help="folder to fill")
    parser.add_argument("--assets", type=Path, required=True, help="the npz of everface.train.heads.assets")
    parser.add_argument("--vae", type=Path, help="clips: folder of a finished `train vae`, or a model's")
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--processes", type=int, help="one per core")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    if args.verb == "videos":
        divide("videos", (args.run, args.assets, args.count, args.seed, args.size), args.count, args.processes)
        print(join_videos(args.run, args.count, args.seed, args.size))
        return
    if args.vae is None:
        parser.error("clips need --vae: the codec that encodes them")
    if not (args.run / "speech" / "complete").exists():
        make_phoneme_speech(args.run / "speech", args.seed)
        (args.run / "speech" / "complete").touch()
    divide("clips", (args.run, args.assets, args.vae, args.count, args.seed, args.size), args.count, args.processes)


if __name__ == "__main__":
    main()
