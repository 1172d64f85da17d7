"""From frames to the transformer's training set: latents by the trained codec, in shards as `everface train data` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from everface.train.chain.codec import encode_all, shrink
from everface.train.chain.frames import paths, read_rest
from everface.train.data.clips import SHARD_CLIPS, write_shard
from everface.train.data.vae_files import read_vae


def encode_frames(folder: Path, frames: Path, vae_run: Path, device: str, smaller: tuple[int, ...] = (), smaller_clips: int = 0) -> int:
    """Write the missing shards into `folder`, and of the first `smaller_clips` clips shards at these sides too, in folders of it. Returns the number of clips."""
    vae, clips = read_vae(vae_run).to(device), paths(frames)

    def write(where: Path, some: list[Path], change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        where.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(some), SHARD_CLIPS):
            path, shard = where / f"{first:05d}.safetensors", some[first : first + SHARD_CLIPS]
            if not path.exists():
                write_shard(path, list(encode_all(vae, shard, device, change)), [torch.from_numpy(read_rest(clip)["features"]) for clip in shard])

    write(folder, clips)
    for side in smaller:
        write(folder / str(side), clips[:smaller_clips], lambda video, side=side: shrink(video, side))
    return len(clips)
