"""What a block is conditioned on: the image and prompt once a session, the audio once a block, the noise once a clip.

Runs in the process that owns the sessions; nothing here needs the big transformer, only its small audio encoder.
"""

from __future__ import annotations

from copy import copy

import torch
import torch.nn.functional as F

from everface.core.config import LATENT_FRAMES, SAMPLE_RATE, SAMPLES_PER_FRAME, ModelConfig, StreamConfig
from everface.core.regions import cells
from everface.models.live_avatar.names import IMAGE, SURROUND
from everface.networks.audio import articulators as mouth
from everface.networks.audio.articulators import ArticulatorNet
from everface.networks.audio.causal_encoder import PAST_FRAMES, CausalAudioEncoder
from everface.networks.audio.features import FrontEnd
from everface.networks.familiarity import KNOWN_SHARE, Familiarity
from everface.networks.text import Prompter
from everface.networks.video.vae import VAE
from everface.runtime.messages import Tensors

MOTION_LATENTS = 19  # the motion history before the stream: the still image, repeated


class Conditioner:
    """Turns an image, a prompt and audio into tensors that ride with the blocks."""

    def __init__(
        self,
        config: ModelConfig,
        vae: VAE,
        audio_encoder: CausalAudioEncoder,
        front_end: FrontEnd,
        prompter: Prompter,
        device: torch.device,
        familiarity: Familiarity | None = None,
        articulators: ArticulatorNet | None = None,
    ) -> None:
        self.config, self.vae, self.audio_encoder, self.front_end = config, vae, audio_encoder, front_end
        self.prompter, self.device = prompter, device  # the VAE's encoder runs on the device, the rest on the CPU
        self.familiarity, self.articulators = familiarity, articulators
        # Frames before and after a block that its features depend on: five for the audio encoder
        self.past_frames, self.ahead_frames = (PAST_FRAMES, 0) if articulators is None else (max(PAST_FRAMES, mouth.PAST_FRAMES), mouth.AHEAD_FRAMES)
        self.block_frames = config.dit.block_frames * LATENT_FRAMES  # 12 video frames

    @property
    def lookback_samples(self) -> int:
        """Audio before a block that its features depend on: the front end's own, and that of some frames."""
        return self.front_end.lookback_samples + self.past_frames * SAMPLES_PER_FRAME

    @property
    def lookahead_samples(self) -> int:
        """The same after it."""
        return self.front_end.lookahead_samples + self.ahead_frames * SAMPLES_PER_FRAME

    def windowed(self, window_s: tuple[float, float] | None) -> Conditioner:
        """The same with so many seconds of audio before and behind a block, where the front end has a choice; None: its own."""
        if window_s is None:
            return self
        other = copy(self)
        other.front_end = self.front_end.windowed(*(int(seconds * SAMPLE_RATE) for seconds in window_s))
        return other

    @torch.inference_mode()
    def initial_state(self, image_3HW: torch.Tensor, stream: StreamConfig) -> Tensors:
        """Reference latent [16, 1, h, w], motion latents [16, 19, h, w] and text features [L, C] of a session.

        `image_3HW` is float32 in -1..1. Where the model makes a region only, h and w are its, unless several speakers are anywhere, and SURROUND is the whole.
        """
        return {**self.image_state(image_3HW, whole=bool(stream.speakers)), "text": self.prompter.features(stream.prompt)}

    @torch.inference_mode()
    def image_state(self, image_3HW: torch.Tensor, whole: bool = False) -> Tensors:
        """The part of it that depends on the image. The motion history is the still image, as in upstream's pipeline. whole: without a region."""
        reference, motion = (latents.cpu() for latents in still_latents(self.vae, image_3HW.to(self.device), self.config.still_frames))
        tensors = {}
        if self.config.motion:
            tensors[IMAGE] = ((image_3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        if self.config.region is not None and not whole:
            tensors[SURROUND] = motion[:, :2].clone()
            rows, columns = cells(self.config.region, motion.shape[-2:], self.config.dit.patch_size[1])
            reference, motion = (latents[..., rows, columns].contiguous() for latents in (reference, motion))
        return tensors | {"reference": reference, "motion": motion}

    @torch.inference_mode()
    def remark(self, image_3HW: torch.Tensor, reference_C1hw: torch.Tensor) -> str:
        """A sentence about an image that is unlike those that the weights know, by its reference latent; else empty."""
        distance = self.distance(image_3HW, reference_C1hw)
        if distance is None or distance <= 0:
            return ""
        return (
            f"the image is unlike those that these weights know, so the face may fall apart ({distance:.1f} standard deviations beyond "
            f"{KNOWN_SHARE:.0%} of them): use one person from the front, from hair to shoulders, before a calm background"
        )

    @torch.inference_mode()
    def distance(self, image_3HW: torch.Tensor, reference_C1hw: torch.Tensor) -> float | None:
        """`Familiarity.distance` of an image and its reference latent; None where these weights cannot tell.
        An image of another size than theirs is encoded again at that size, for latents of different sizes are not alike."""
        if self.familiarity is None:
            return None
        if reference_C1hw.shape[2:] != self.familiarity.size:
            size = [side * stride for side, stride in zip(self.familiarity.size, self.config.vae.stride[1:], strict=True)]
            resized_3HW = F.interpolate(image_3HW[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
            reference_C1hw = self.vae.encode(resized_3HW[None, :, None].to(self.device))[0]
        return self.familiarity.distance(reference_C1hw[:, 0])

    @torch.inference_mode()
    def block(self, pcm_S: torch.Tensor, compat: str, user_S: torch.Tensor | None = None) -> Tensors:
        """Audio tokens of one block: local [3, K, D] and global [3, D]. user_S: of a model that listens, what the person hears; None: silence.

        `pcm_S` holds lookback + 12 frames + lookahead samples at 16 kHz. With compat "official" the five frames before the
        block are replaced by copies of its first one, as the released code does; by default the real past is used.
        """
        voices = [pcm_S, torch.zeros_like(pcm_S) if user_S is None else user_S] if self.config.audio.listens else [pcm_S]
        features_LCT = torch.cat([self._features(one_S) for one_S in voices], 1)
        begin, end = self.past_frames, self.past_frames + self.block_frames
        past_LCT, now_LCT = features_LCT[..., begin - PAST_FRAMES : begin], features_LCT[..., begin:end]
        local_FKD, global_FD = self.audio_encoder.encode_block(now_LCT, None if compat == "official" else past_LCT)
        return {"audio_local": local_FKD, "audio_global": global_FD}

    @torch.inference_mode()
    def mouth(self, pcm_S: torch.Tensor) -> torch.Tensor:
        """`networks.motion.ARTICULATORS` [6, 12] of the same window, of a model with motion."""
        assert self.articulators is not None
        medium_AT = self.articulators(self._features(pcm_S)[..., self.past_frames - mouth.PAST_FRAMES :])[0]
        voice_S = pcm_S[self.front_end.lookback_samples : len(pcm_S) - self.front_end.lookahead_samples]
        return mouth.apply_loudness(medium_AT, mouth.jaw_gain(voice_S, self.past_frames, self.block_frames))

    def _features(self, pcm_S: torch.Tensor) -> torch.Tensor:
        """[L, C, T] of the block, and of the frames before and after it."""
        return self.front_end.features(pcm_S, self.past_frames + self.block_frames + self.ahead_frames)


def still_latents(vae: VAE, image_3HW: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of a still image: its one-frame latent [16, 1, h, w] and 19 latents of the still as a video.

    `frames` of it are encoded, 73 upstream; of fewer, the last latent stands for those that are missing.
    """
    z_16thw = vae.encode(image_3HW[None, :, None].expand(-1, -1, frames, -1, -1))[0]
    rest = z_16thw[:, -1:].expand(-1, MOTION_LATENTS - z_16thw.shape[1], -1, -1)
    # The causal encoder sees the first frame alone, so latent 0 of the video is the one-frame latent.
    return z_16thw[:, :1].clone(), torch.cat([z_16thw, rest], dim=1)


class Noise:
    """The starting noise of every block, drawn as upstream draws it: one normal draw [16, 12, h, w] a clip of four blocks,
    from a generator seeded with seed + clip. Drawn on the CPU in float32, so that every device starts from the same numbers.

    With a `correlation` r, each latent frame's noise is r times the one before plus sqrt(1 - r^2) of the fresh draw: still normal in
    every frame, but what an undistilled model leaves to chance then changes slowly instead of jumping from block to block.
    Blocks must then be asked for in order, as a session does.
    """

    def __init__(
        self, seed: int, shape_Chw: tuple[int, int, int], block_frames: int, clip_blocks: int, correlation: float = 0.0
    ) -> None:
        self.seed, self.block_frames, self.clip_blocks, self.correlation = seed, block_frames, clip_blocks, correlation
        channels, h, w = shape_Chw
        self.shape = (channels, block_frames * clip_blocks, h, w)
        self.clip = -1
        self.draw = torch.empty(0)
        self.last: torch.Tensor | None = None

    def __call__(self, block_index: int) -> torch.Tensor:
        clip, place = divmod(block_index, self.clip_blocks)
        if clip != self.clip:
            self.clip = clip
            self.draw = torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed + clip))
        first = place * self.block_frames
        noise = self.draw[:, first : first + self.block_frames].clone()
        if self.correlation:
            for f in range(self.block_frames):
                if self.last is not None:
                    noise[:, f] = self.correlation * self.last + (1 - self.correlation**2) ** 0.5 * noise[:, f]
                self.last = noise[:, f]
        return noise
