"""`everface train data`: makes speech, and from it and a trained VAE the clips for the transformer, with one process per core."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import torch

from everface.core.errors import Unavailable
from everface.core.machine import cores
from everface.train.data.clips import SHARD_CLIPS
from everface.train.data.drawn import make_clips
from everface.train.data.vae_files import read_vae
from everface.train.synthetic.voices import make_speech


def make_data(folder: Path, vae_run: Path, count: int, seed: int, minutes: float) -> Path:
    """Fill folder/speech (with espeak-ng, once) and folder/clips with `count` clips, or as many as the time allows. Resumes.

    `vae_run` is a finished `train vae` or a model folder. Returns folder/clips.
    """
    vae = read_vae(vae_run)
    speech, clips = folder / "speech", folder / "clips"
    if not (speech / "complete").exists():
        make_speech(speech, seed)
        (speech / "complete").touch()
    workers = min(cores(), -(-count // SHARD_CLIPS))
    if workers == 1:
        make_clips(clips, speech, vae, count, seed, minutes)
        return clips
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used threads may hang
    processes = [spawn.Process(target=work, args=(clips, speech, vae_run, count, seed, minutes, n, workers)) for n in range(workers)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                raise Unavailable(
                    f"a process that made clips failed with exit status {process.exitcode}; its error is above. Resume with the same command."
                )
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return clips


def work(clips: Path, speech: Path, vae_run: Path, count: int, seed: int, minutes: float, worker: int, workers: int) -> None:
    """One process of make_data, on one thread: small convolutions gain more from a second process than from a second thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and ends its workers
    torch.set_num_threads(1)
    make_clips(clips, speech, read_vae(vae_run), count, seed, minutes, worker, workers)
