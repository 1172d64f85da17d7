"""From frames to the transformer's training set: latents by the trained codec, in shards as `everface train data` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from everface.train.chain.codec import encode_all
from everface.train.chain.frames import paths, read_rest
from everface.train.data.clips import SHARD_CLIPS, write_shard
from everface.train.data.vae_files import read_vae


def encode_frames(folder: Path, frames: Path, vae_run: Path, device: str) -> int:
    """Write the missing shards into `folder`. Returns the number of clips."""
    folder.mkdir(parents=True, exist_ok=True)
    vae, clips = read_vae(vae_run).to(device), paths(frames)
    for first in range(0, len(clips), SHARD_CLIPS):
        path, shard = folder / f"{first:05d}.safetensors", clips[first : first + SHARD_CLIPS]
        if not path.exists():
            features = [torch.from_numpy(read_rest(clip)["features"]) for clip in shard]
            write_shard(path, list(encode_all(vae, shard, device)), features)
    return len(clips)
