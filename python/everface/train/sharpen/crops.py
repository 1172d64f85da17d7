"""What the decoder learns from: crops of rendered clips with their latents, the codec's own or those that the transformer makes with the clip's true motion.

Legend: N clips, z channels, L latents of a clip (of which two are of the still image), B crops, F latents of a crop.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import LATENT_FRAMES, SAMPLES_PER_FRAME, Deployment, StreamConfig
from everface.core.log import log
from everface.models.live_avatar.roles import whole_image
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import FACE
from everface.networks.video.vae import VAE
from everface.train.chain.codec import encode_all
from everface.train.chain.frames import as_video, read_frames, read_rest
from everface.train.codec.crops import place_crop
from everface.train.data.clips import STILL_LATENTS
from everface.train.evaluate.offline_stream import OfflineModel
from everface.weights.files import open_file
from everface.weights.store import write_half

SAY_EVERY = 50  # clips


@dataclass(frozen=True)
class ClipLatents:
    """By the names of clips: `known` [z, L, h, w] float16, and `made` [z, L - 2, h, w] of the moving frames, of people only."""

    known: dict[str, Tensor]
    made: dict[str, Tensor]

    def of(self, name: str, made: bool) -> Tensor:
        """All latents of a clip, float32."""
        known = self.known[name].float()
        return torch.cat([known[:, :STILL_LATENTS], self.made[name].float()], 1) if made else known


def clip_latents(path: Path, model: Path, vae: VAE, clips: list[Path], device: str) -> ClipLatents:
    """Of these clips, made once and kept in the file `path`; later that file says which clips there are."""
    if not path.exists():
        known = {clip.stem: z for clip, z in zip(clips, encode_all(vae, clips, device), strict=True)}
        parts = {"known": known, "made": make_latents(model, clips, known)}
        write_half(path, {f"{part}.{name}": z for part, of_clips in parts.items() for name, z in of_clips.items()})
    held = open_file(path)
    known, made = ({key.removeprefix(part): held[key] for key in held if key.startswith(part)} for part in ("known.", "made."))
    return ClipLatents(known, made)


def make_latents(model: Path, clips: list[Path], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model's transformer makes of the image, the audio and the true motion of each clip of a person."""
    offline, out = OfflineModel(model, Deployment(threads=torch.get_num_threads())), dict[str, Tensor]()
    for n, path in enumerate(clips):
        rest = read_rest(path)
        if "opening" not in rest:
            continue  # a drawn character, whose motion is not known
        still_z1hw, count = known[path.stem][:, 1:STILL_LATENTS].float(), known[path.stem].shape[1] - STILL_LATENTS
        block_latents = offline.config.dit.block_frames
        frames = -(-count // block_latents) * block_latents * LATENT_FRAMES
        face_CT = torch.from_numpy(rest["features"][0, -len(FACE) :, PAST_FRAMES:]).float()
        face_CT = torch.cat([face_CT, face_CT[:, -1:].expand(-1, frames - face_CT.shape[1])], 1)
        pcm_S = F.pad(torch.from_numpy(rest["audio"]), (0, frames * SAMPLES_PER_FRAME - len(rest["audio"])))
        image_3HW = as_video(np.array(read_frames(path)[:1]), "cpu")[:, 0]
        with torch.inference_mode(), offline.stream(image_3HW, StreamConfig(seed=n)) as stream:
            made = torch.cat([block.x.float().cpu() for block in stream.blocks([pcm_S], face_CT)], 1)[:, :count]
        out[path.stem] = whole_image(made, still_z1hw, offline.config).half()
        if len(out) % SAY_EVERY == 0:
            log.info("latents of %d clips are made", len(out))
    return out


@dataclass(frozen=True)
class CropSize:
    """side: in pixels; latents: that move."""

    batch: int = 4
    side: int = 96
    latents: int = 2
    feature_share: float = 0.7  # about mouth or eyes
    made_share: float = 0.5  # with the transformer's latents


def draw_crops(frames: Path, latents: ClipLatents, size: CropSize, cell: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """(z [B, z, 2 + F, h, w], true frames [B, 3, 1 + 4F, H, W] in -1..1): the image's latent, the one before, and those of the frames, of which the first
    is the last of the one before."""
    some_z, some_frames, known, made_ones = [], [], sorted(latents.known), sorted(latents.made)
    for _ in range(size.batch):
        made = bool(made_ones) and rng.random() < size.made_share
        name = rng.choice(made_ones if made else known)
        z, video = latents.of(name, made), read_frames(frames / f"{name}.npy")
        image_side = video.shape[1]
        first = rng.randrange(STILL_LATENTS, z.shape[1] - size.latents + 1)
        corner = place_crop(image_side, size.side, rng.randrange, features=rng.random() < size.feature_share)
        top, left = (min(round(at / cell) * cell, image_side - size.side) for at in corner)
        rows, columns = (slice(at // cell, (at + size.side) // cell) for at in (top, left))
        some_z.append(torch.cat([z[:, :1, rows, columns], z[:, first - 1 : first + size.latents, rows, columns]], 1))
        begin = LATENT_FRAMES * (first - 1)
        some_frames.append(np.array(video[begin : begin + 1 + LATENT_FRAMES * size.latents, top : top + size.side, left : left + size.side]))
    return torch.stack(some_z), as_video(np.stack(some_frames), "cpu")
