"""From frames to the transformer's training set: latents by the trained codec, in shards as `everface train data` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from everface.networks.motion import mirrored
from everface.train.chain.codec import Change, encode_all, shrink
from everface.train.chain.frames import paths, read_rest
from everface.train.chain.views import mirrors, other_view
from everface.train.data.clips import ONE_BLOCK, SHARD_CLIPS, write_shard
from everface.train.data.vae_files import read_vae


def encode_frames(
    folder: Path, frames: Path, vae_run: Path, device: str, smaller: tuple[int, ...] = (), smaller_clips: int = 0, views: int = 0, held_out: int = 0
) -> int:
    """Write the missing shards into `folder`. Returns the number of clips that are not of one block; those have other views too.

    smaller: of the first `smaller_clips` clips shards at these sides too, in folders of it. views: so many others of each clip, but for the first
    `held_out` ones, in shards that come after the clips' own.
    """
    vae, clips = read_vae(vae_run).to(device), paths(frames)

    def write(where: Path, some: list[Path], change: Change | None = None, view: int = 0) -> None:
        where.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(some), SHARD_CLIPS):
            path, shard = where / f"{f'view{view}_' if view else ''}{first:05d}.safetensors", some[first : first + SHARD_CLIPS]
            if not path.exists():
                features = [torch.from_numpy(read_rest(clip)["features"]) for clip in shard]
                write_shard(path, list(encode_all(vae, shard, device, change)), [mirrored(f) for f in features] if mirrors(view) else features)

    write(folder, clips)
    for side in smaller:
        write(folder / str(side), clips[:smaller_clips], lambda video, _, side=side: shrink(video, side))
    parts = [(folder, clips[held_out:])]
    if short := paths(frames / ONE_BLOCK):
        write(folder / ONE_BLOCK, short)
        parts.append((folder / ONE_BLOCK, short))
    for where, some in parts:
        for view in range(1, views + 1):
            write(where, some, lambda video, clip, view=view: other_view(video, int(clip.stem), view), view)
    return len(clips)
