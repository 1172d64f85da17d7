"""What a block of LiveTalk is conditioned on: image and prompt once a session, audio and noise once a block.

Runs in the process that owns the sessions; nothing here needs the big transformer, only its audio projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from everface.core.live_talk_config import LiveTalkModelConfig
from everface.models.live_talk.names import AUDIO, REFERENCE, STEPS, TEXT
from everface.networks.text import Prompter
from everface.networks.transformer.live_talk import FRAMES_PER_LATENT, LiveTalkAudio, pad_first
from everface.networks.transformer.schedule import splitmix64
from everface.networks.video.vae import VAE
from everface.runtime.messages import Tensors

if TYPE_CHECKING:  # it imports transformers, which takes seconds
    from everface.networks.audio.wav2vec_frames import FrameRateWav2Vec2


class LiveTalkConditioner:
    """Turns an image, a prompt and audio into tensors that ride with the blocks. The VAE's encoder is on `device`, the rest on the CPU."""

    def __init__(
        self, config: LiveTalkModelConfig, vae: VAE, audio: LiveTalkAudio, front_end: FrameRateWav2Vec2, prompter: Prompter, device: torch.device
    ) -> None:
        self.config, self.vae, self.audio, self.front_end, self.prompter, self.device = config, vae, audio, front_end, prompter, device

    @torch.inference_mode()
    def image_state(self, image_3HW: torch.Tensor) -> Tensors:
        """The reference latent [16, 1, h, w] of an image, float32 in -1..1."""
        return {REFERENCE: self.vae.encode(image_3HW.to(self.device)[None, :, None])[0].cpu()}

    @torch.inference_mode()
    def text_state(self, prompt: str) -> Tensors:
        """Text features [L, C] of a prompt."""
        return {TEXT: self.prompter.features(prompt)}

    @torch.inference_mode()
    def block(self, pcm_S: torch.Tensor, frames: int) -> Tensors:
        """Audio vectors [A, F, D] of a block of so many video frames, from its window of samples. The first block of a stream lacks three,
        which its first stands for."""
        features_TC = self.front_end.features(pcm_S, frames)
        whole = frames % FRAMES_PER_LATENT == 0
        return {AUDIO: self.audio.audio_vectors(features_TC if whole else pad_first(features_TC))}


def block_noise(seed: int, index: int, retry: int, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """All noise of a block, float32 [steps, 16, F, h, w]: what it starts from, then what is added after every step but the last. Drawn on the
    CPU from (seed, index, retry), so that every device and placement computes with the same numbers."""
    state = 0
    for word in (seed, index, retry):
        state = splitmix64(state ^ word)
    generator = torch.Generator().manual_seed(state >> 1)
    return torch.randn(STEPS, *shape, generator=generator)
