"""Rendered clips in memory: processes write them, the codec reads crops of them, both at once.

Clip n is two files, NNNNN.npz (features, audio and truth) and NNNNN.npy (frames, uint8 [5 + T, H, W, 3]), of which the second appears last
and complete. It depends on (seed, n) only. Held-out clips, of other people and voices, are in the folder `held_out` beside them, clips of one block in `one_block`.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from everface.core.errors import Unavailable
from everface.core.log import log, start_log
from everface.networks.audio.features import LogMel
from everface.train.data.clips import ONE_BLOCK
from everface.train.data.drawn import clip_generator
from everface.train.heads.clips import DRAWN_SHARE, FRAMES, HeadClip, HeadClips
from everface.train.heads.motion.speech import read_phoneme_speech
from everface.train.heads.renderer import Renderer

HELD_OUT, STOP = "held_out", "stop"
HELD_OUT_SEED, ONE_BLOCK_SEED = 1000, 2000  # added to the run's
ONE_BLOCK_FRAMES = 12  # three latents
LEAST_FREE = 4 << 30  # bytes that rendering leaves free where the frames are
LOG_EVERY_S = 30.0
_HEADERS = threading.Lock()  # NumPy reads a file's header with `ast`, which fails in two threads at once (Python 3.11, cpython issue 106905)


def start_rendering(
    folder: Path, assets: Path, speech: Path, size: int, clips: int, held_out: int, seed: int, processes: int, until: float, moving: int = FRAMES,
    one_block: int = 0,
) -> list[BaseProcess]:  # fmt: skip
    """Processes that render until all clips are there, time.time() is `until`, or `stop_rendering`. Each has an OpenGL context.
    moving: frames of a clip, 4n; held-out clips have FRAMES. one_block: clips of ONE_BLOCK_FRAMES, which come last."""
    for name in (HELD_OUT, ONE_BLOCK):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    spawn = multiprocessing.get_context("spawn")
    given = (folder, assets, speech, size, clips, held_out, seed, processes, until, moving, one_block)
    running = [spawn.Process(target=_render, args=(*given, n), daemon=True) for n in range(processes)]
    for process in running:
        process.start()
    return list(running)


def stop_rendering(folder: Path, processes: list[BaseProcess]) -> None:
    """Each ends after its clip."""
    (folder / STOP).touch()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()


def wait_for_clips(folder: Path, count: int, held_out: int, processes: list[BaseProcess], until: float) -> None:
    """Until so many are there. Raises Unavailable where rendering ends without them, or `until` of time.time() comes first."""
    while len(paths(folder)) < count or len(paths(folder / HELD_OUT)) < held_out:
        failed = [process.exitcode for process in processes if process.exitcode]
        if time.time() > until or not any(process.is_alive() for process in processes):
            raise Unavailable(
                f"{len(paths(folder))} clips of {count} were rendered, {len(failed)} of {len(processes)} processes failed; their errors are above"
            )
        time.sleep(0.2)


def paths(folder: Path) -> list[Path]:
    """Complete clips, in order."""
    return sorted(folder.glob("[0-9]*.npy"))


def read_frames(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3], mapped: only what is used is read. Thread-safe."""
    with _HEADERS:
        return np.load(path, mmap_mode="r")


def read_rest(path: Path) -> dict[str, np.ndarray]:
    """`features` [L, C, F] float16, `audio` [S] float32, and, but for drawn characters, `opening`, `width`, `blink`, `listening` [T], `turn` [T, 3], `lips` [T, 4, 2] and `seed`."""
    with np.load(path.with_suffix(".npz")) as held:
        return dict(held)


def as_video(frames: np.ndarray | torch.Tensor, device: str) -> torch.Tensor:
    """[..., T, H, W, 3] bytes to [..., 3, T, H, W] in -1..1 on a device."""
    there = torch.from_numpy(np.array(frames)) if isinstance(frames, np.ndarray) else frames
    if device.startswith("cuda"):
        there = there.pin_memory().to(device, non_blocking=True)
    return there.movedim(-1, -4).float() / 127.5 - 1


def write_clip(path: Path, clip: HeadClip) -> None:
    truth = {} if clip.truth is None else {name: getattr(clip.truth, name) for name in ("opening", "width", "blink", "turn", "lips", "listening", "seed")}
    np.savez(path.with_suffix(".npz"), features=clip.features_LCF.half().numpy(), audio=clip.audio_S.numpy(), **truth)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.save(file, clip.images)
    partial.rename(path)


def _render(
    folder: Path, assets: Path, speech: Path, size: int, clips: int, held_out: int, seed: int, processes: int, until: float, moving: int, one_block: int,
    worker: int,
) -> None:  # fmt: skip
    """One process: its share of the held-out clips, then of the others, then of those of one block."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    torch.set_num_threads(1)
    start_log()
    log.setLevel("INFO")
    source, front_end = HeadClips(assets, size, read_phoneme_speech(speech, held_out=True), drawn_share=0.0, still_head=True), LogMel()
    if worker == 0:
        log.info("rendering by %s", renderer_name(source.renderer))
    begin, cpu, done, said = time.monotonic(), time.process_time(), 0, time.monotonic()
    parts = ((folder / HELD_OUT, seed + HELD_OUT_SEED, held_out, FRAMES), (folder, seed, clips, moving), (folder / ONE_BLOCK, seed + ONE_BLOCK_SEED, one_block, ONE_BLOCK_FRAMES))
    for where, its_seed, n, length in [(where, its_seed, n, length) for where, its_seed, count, length in parts for n in range(worker, count, processes)]:
        if where.name != HELD_OUT and source.drawn_share == 0.0:
            source.speech, source.drawn_share = read_phoneme_speech(speech, held_out=False), DRAWN_SHARE
        path = where / f"{n:05d}.npy"
        if path.exists():
            continue
        if time.time() > until or (folder / STOP).exists() or shutil.disk_usage(folder).free < LEAST_FREE:
            break
        write_clip(path, source.draw(front_end, clip_generator(its_seed, n), length))
        done += 1
        if time.monotonic() - said > LOG_EVERY_S or done == 1:
            said = time.monotonic()
            frames = done * len(read_frames(path))
            log.info("process %d: %d clips, %.1f frames per second, %.1f of processor time", worker, done, frames / (said - begin), frames / (time.process_time() - cpu))


def renderer_name(renderer: Renderer) -> str:
    """What OpenGL runs on."""
    return str(renderer.ctx.info["GL_RENDERER"])
