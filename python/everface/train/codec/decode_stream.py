"""Clips decoded as the runtime decodes them: two latents at a time, from the state that the latents before left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from everface.core.config import LATENT_FRAMES
from everface.networks.video.vae import VAE, VAEStream
from everface.train.data.clips import STILL_FRAMES, STILL_LATENTS, Clips
from everface.train.synthetic.characters import from_uint8

WARM_UP_LATENTS = 7  # of the still image, before a stream begins
STEP_LATENTS = 2
BATCH = 2  # streams of a step
INTERLEAVED = 6  # batches that take turns, so that consecutive steps see different characters


class DecodeStream:
    """A batch of clips, decoded from the still image to the end of the clip."""

    def __init__(self, vae: VAE, z_B16Thw: torch.Tensor, frames_B3THW: torch.Tensor) -> None:
        self.z_B16Thw, self.frames_B3THW, self.at = z_B16Thw, frames_B3THW, STILL_LATENTS
        self.state: VAEStream = vae.stream(len(z_B16Thw))
        still = torch.cat([z_B16Thw[:, :, :1], z_B16Thw[:, :, 1:2].expand(-1, -1, WARM_UP_LATENTS - 1, -1, -1)], dim=2)
        with torch.no_grad():
            self.last_B31HW = vae.decode_stream(still, self.state)[:, :, -1:]

    def is_over(self) -> bool:
        return self.at + STEP_LATENTS > self.z_B16Thw.shape[2]

    def step(self, vae: VAE, noise: float, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(decoded frames, true frames), both [B, 3, 1 + 4 STEP_LATENTS, H, W]: the last frame of the step before, without gradients,
        then those of the next latents, to which noise of std `noise` is added."""
        z = self.z_B16Thw[:, :, self.at : self.at + STEP_LATENTS]
        out = vae.decode_stream(z + noise * torch.randn(z.shape, generator=g).to(z), self.state)
        first = STILL_FRAMES + LATENT_FRAMES * (self.at - STILL_LATENTS)
        video = from_uint8(self.frames_B3THW[:, :, first - 1 : first + LATENT_FRAMES * STEP_LATENTS].to(out.device))
        out, self.last_B31HW = torch.cat([self.last_B31HW.to(out), out], dim=2), out[:, :, -1:].detach()
        self.state.caches = [c if c is None else c.detach() for c in self.state.caches]
        self.at += STEP_LATENTS
        return out, video


def interleave_streams(
    vae: VAE, clips: Clips, frames_N3THW: Tensor, offset: int, seed: int, device: str
) -> Iterator[DecodeStream]:
    """The stream of each step, endlessly. Row n of the frames belongs to clip n + offset."""
    g = torch.Generator().manual_seed(seed)
    streams: list[DecodeStream | None] = [None] * INTERLEAVED
    while True:
        for n, stream in enumerate(streams):
            if stream is None or stream.is_over():
                rows = torch.randint(len(frames_N3THW), (BATCH,), generator=g)
                z = clips.latents_N16Thw[rows + offset].to(device).float()
                stream = streams[n] = DecodeStream(vae, z, frames_N3THW[rows])
            yield stream
