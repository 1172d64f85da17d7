"""The transformer's training set: clips of a talking person as latents and audio features, in shards.

A clip is the still reference image for five frames (two latents), then `MOVING_LATENTS` latents of four frames each, and the audio features
of every moving frame and of five before them. A shard is a safetensors file of `SHARD_CLIPS` clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from everface.core.errors import BadInput
from everface.core.regions import Box, cells
from everface.networks.video.vae import VAE
from everface.train.engine.precision import autocast

STILL_FRAMES = 5
STILL_LATENTS = 2  # of the still frames
MOVING_LATENTS = 16
ONE_BLOCK = "one_block"  # folder within one of clips: others of as many moving latents as a block of the transformer has, and so of more people
SHARD_CLIPS = 50
FILM = "film-"  # shards of one video are named film-KEY-NUMBER; clips of other shards have a person each
IMAGE_SIZE = 128  # pixels, square
MIN_TRAINING_CLIPS = 16


@dataclass
class Clips:
    """latents_N16Thw: float16, T = 2 still + 16 moving. features_NLCF: float16, F = 5 past + 64 video frames of audio features."""

    latents_N16Thw: torch.Tensor
    features_NLCF: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents_N16Thw)

    def to(self, device: str) -> Clips:
        """On a device: a GPU holds all clips, so that no step waits for a transfer."""
        return Clips(self.latents_N16Thw.to(device), self.features_NLCF.to(device))

    def within(self, region: Box | None, multiple: int) -> Clips:
        """With the latents of a region only; None: of the whole image."""
        if region is None:
            return self
        rows, columns = cells(region, self.latents_N16Thw.shape[-2:], multiple)
        return Clips(self.latents_N16Thw[..., rows, columns].contiguous(), self.features_NLCF)

    def __getitem__(self, rows: slice | list[int]) -> Clips:
        return Clips(self.latents_N16Thw[rows], self.features_NLCF[rows])


def encode_clip(vae: VAE, rgb_3THW: torch.Tensor) -> torch.Tensor:
    """Latents [16, T, h, w] float16 of one clip's frames in -1..1, on a CPU."""
    return encode_clips(vae, rgb_3THW[None])[0]


def encode_clips(vae: VAE, rgb_N3THW: torch.Tensor) -> torch.Tensor:
    """Those of several clips, on the device where they and the VAE are."""
    with torch.inference_mode(), autocast(rgb_N3THW.device.type):
        return vae.encode(rgb_N3THW).half()


def write_shard(
    path: Path, latents: list[torch.Tensor], features_LCF: list[torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write clips as one file, which appears only when it is complete."""
    partial = path.with_suffix(".partial")
    save_file({"latents": torch.stack(latents), "features": torch.stack([f.half() for f in features_LCF])}, partial, metadata)
    partial.rename(path)


def read_clips(folder: Path) -> Clips:
    """All shards of a folder, in the order of their names. Raises BadInput."""
    return _read_films(folder)[0]


def _read_films(folder: Path) -> tuple[Clips, list[str]]:
    """All clips, and of each the video that it was cut from, "" if from none."""
    paths, shards, films = sorted(folder.glob("*.safetensors")), [], list[str]()
    if not paths:
        raise BadInput(f"{folder} holds no clips (.safetensors): name a folder of `everface train data`")
    for path in paths:
        try:
            shards.append(load_file(path))
        except (OSError, SafetensorError) as error:
            raise BadInput(f"the clips in {path} cannot be read ({error}): make them again with `everface train data`") from None
        if {"latents", "features"} - shards[-1].keys():
            raise BadInput(f"{path} holds no clips, but other tensors: name a folder of `everface train data`")
        films += [path.stem.rpartition("-")[0] if path.name.startswith(FILM) else ""] * len(shards[-1]["latents"])
    return Clips(*(torch.cat([s[k] for s in shards]) for k in ("latents", "features"))), films


def smaller_folders(folder: Path) -> list[Path]:
    """Folders within one of clips that hold the first of these at smaller sizes, named by their side in pixels, in a fixed order."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def split_clips(folder: Path, held_out: int) -> tuple[Clips, Clips]:
    """(training clips, the first `held_out` clips for validation). The rest of a video that some of these are of is neither: it shows the same person.
    Raises BadInput."""
    clips, films = _read_films(folder)
    known = set(films[:held_out]) - {""}
    rows = [n for n in range(held_out, len(clips)) if films[n] not in known]
    if len(rows) <= MIN_TRAINING_CLIPS:
        more = f"`everface train data`, of other videos than the {held_out} that are held out, or set held_out=0" if known else "`everface train data`"
        raise BadInput(f"{folder} holds {len(clips)} clips, of which {len(rows)} are left to train on, too few: make more with {more}")
    return clips[rows] if known else clips[held_out:], clips[:held_out]
