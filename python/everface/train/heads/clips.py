"""One clip of a rendered person: frames, audio features and truth, in the shape that drawn clips have (`data.drawn.make_clip`).

    source = HeadClips(Path("heads.npz"), size=256, speech=read_phoneme_speech(folder, held_out=False))
    rgb_3THW, features_LCF, truth = source.make(front_end, clip_generator(seed, n))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from everface.core.config import FPS, LATENT_FRAMES, SAMPLES_PER_FRAME
from everface.models.live_avatar.motion import loudness
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.audio.features import LogMel
from everface.train.data.clips import MOVING_LATENTS, STILL_FRAMES
from everface.train.data.drawn import BACKGROUND_SHARE, make_clip
from everface.train.heads.light import sample_shot
from everface.train.heads.motion.body import Body, body_actions, hold_head, sample_body
from everface.train.heads.motion.channels import body_face, drawn_face
from everface.train.heads.motion.speech import Phonemes
from everface.train.heads.motion.visemes import articulate, mouth_actions
from everface.train.heads.renderer import Pose, Renderer
from everface.train.synthetic.background import add_background
from everface.train.synthetic.characters import from_uint8, to_uint8

FRAMES = LATENT_FRAMES * MOVING_LATENTS
DRAWN_SHARE = 0.15  # of the clips are drawn characters, so that those stay known
LISTENING_SHARE = 0.25  # of the rendered clips: someone else speaks, and the person nods
TURN_SHARE = 0.3  # of those: the other stops, and the person speaks
TURN_AT = (0.3, 0.7)  # when, as shares of the clip
GAP_S = 0.2  # between the two
REST = mouth_actions(np.array([0, 0, 0, 0.6, 0, 0]))  # of the articulators: a shut mouth
OPEN_UNITS, WIDE_UNITS = 2.2, (3.2, 6.0)  # lip gap that counts as 1; mouth widths that count as 0 and 1, in mesh units


@dataclass(frozen=True)
class Truth:
    """What is known of each moving frame, [T] float32: `opening` and `width` of the mouth as the mesh has them, 0..1; `blink` 0..1; `turn`
    [T, 3] of the head in radians; `gaze` [T, 2]; `lips` [T, 4, 2], positions in the image, 0..1, of upper and lower inner lip and of the
    corners; `listening` 0 or 1; `seed` of the person, -1 for a drawn character."""

    opening: np.ndarray
    width: np.ndarray
    blink: np.ndarray
    turn: np.ndarray
    gaze: np.ndarray
    lips: np.ndarray
    listening: np.ndarray
    seed: int


class HeadClip(NamedTuple):
    """One clip as it is drawn."""

    images: np.ndarray  # uint8 [5 + T, H, W, 3]
    features_LCF: torch.Tensor  # C: of the person's own voice; of what it hears, which is someone else's voice or silence; FACE
    audio_S: torch.Tensor  # of the moving frames, as the features have it; empty for drawn characters
    truth: Truth | None


class HeadClips:
    """Makes clips of rendered people, and now and then of drawn characters. One a process; needs EGL."""

    def __init__(
        self, assets: Path, size: int, speech: list[tuple[torch.Tensor, Phonemes]], drawn_share: float = DRAWN_SHARE,
        listening_share: float = LISTENING_SHARE, clean: bool = False, still_head: bool = False,
    ) -> None:  # fmt: skip
        """clean: without the grain of a sensor and without JPEG, where frames are a truth to measure sharpness by. still_head: only faces move."""
        self.renderer, self.size, self.speech, self.clean, self.still_head = Renderer(assets, size), size, speech, clean, still_head
        self.drawn_share, self.listening_share = drawn_share, listening_share

    def make(self, front_end: LogMel, generator: torch.Generator, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor, Truth | None]:
        """rgb [3, 5 + T, H, W] in -1..1, features [L, 2C, 5 + T], and truth (None for drawn characters). T is `frames`."""
        clip = self.draw(front_end, generator, frames)
        return from_uint8(torch.from_numpy(clip.images)).permute(3, 0, 1, 2).contiguous(), clip.features_LCF, clip.truth

    def draw(self, front_end: LogMel, generator: torch.Generator, frames: int = FRAMES) -> HeadClip:
        """The same as bytes, and the audio."""
        seed = int(torch.randint(1 << 31, (1,), generator=generator))
        rng = np.random.Generator(np.random.PCG64([seed, 11]))
        if frames <= FRAMES and rng.random() < self.drawn_share:
            rgb, features, anim = make_clip([pcm for pcm, _ in self.speech], front_end, generator, self.size, still_head=self.still_head)
            silence = front_end.features(torch.zeros(front_end.lookback_samples + features.shape[-1] * SAMPLES_PER_FRAME), features.shape[-1])
            features = torch.cat([features, silence, drawn_face(anim, rng)], 1)[..., : PAST_FRAMES + frames]
            return HeadClip(to_uint8(rgb).permute(1, 2, 3, 0).numpy()[: STILL_FRAMES + frames], features, torch.zeros(0), None)
        listening = rng.random() < self.listening_share
        before = front_end.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME
        user_S = torch.zeros(before + frames * SAMPLES_PER_FRAME)
        if listening:
            voice_S, phonemes, user_S, turn = self._draw_dialog(before, frames, rng)
        else:
            (voice_S, phonemes), turn = self._draw_audio(before, frames, rng), 0
        mixed_S = add_background(voice_S, torch.Generator().manual_seed(seed)) if rng.random() < BACKGROUND_SHARE else voice_S
        moves = articulate(phonemes, voice_S[before:].numpy(), frames, 0.0, rng.uniform(0.8, 1.2)) if phonemes else np.tile([0, 0, 0, 0.6, 0, 0], (frames, 1))
        body = sample_body(moves[:, 0], loudness(user_S[before:]) if listening else None, rng)
        body.listening[turn:] = listening and turn == 0
        body = hold_head(body) if self.still_head else body
        images, truth = self.render(seed, moves, body)
        features = [front_end.features(s, PAST_FRAMES + frames) for s in (mixed_S, user_S)]
        return HeadClip(images, torch.cat([*features, body_face(body, moves)], 1), mixed_S[before:], truth)

    def render(self, seed: int, articulators_TA: np.ndarray, body: Body) -> tuple[np.ndarray, Truth]:
        """uint8 [5 + T, H, W, 3]: the still reference image for five frames, then the moving ones; and their truth."""
        renderer = self.renderer
        renderer.show(seed, scene=replace(sample_shot(seed), grain=0.0, jpeg=0) if self.clean else None)
        rest = Pose(REST, turn=tuple(body.rest))
        frames, rows = [renderer.draw(rest)] * STILL_FRAMES, []
        for t, row in enumerate(articulators_TA):
            weights = body_actions(body, t)
            for name, value in mouth_actions(row).items():
                weights[name] = weights.get(name, 0.0) + value
            frames.append(renderer.draw(Pose(weights, tuple(body.turn[t]), tuple(body.shift[t]), tuple(body.body[t]))))
            rows.append(renderer.measure_mouth())
        gap, wide, lips = (np.array(v, np.float32) for v in zip(*rows))
        truth = Truth(
            *mouth_truth(gap, wide), body.blink, body.turn.astype(np.float32),
            body.gaze.astype(np.float32), lips, body.listening.astype(np.float32), seed,
        )  # fmt: skip
        return np.stack(frames), truth

    def _draw_audio(self, before: int, frames: int, rng: np.random.Generator) -> tuple[torch.Tensor, Phonemes]:
        """(voice of the clip and of `before` samples ahead of it, phonemes with times from the clip's first frame)."""
        samples = before + frames * SAMPLES_PER_FRAME
        pcm, phonemes = self.speech[int(rng.integers(len(self.speech)))]
        if len(pcm) < samples:
            pcm = torch.nn.functional.pad(pcm, (0, samples - len(pcm)))
        start = int(rng.integers(len(pcm) - samples + 1))
        first_s = (start + before) / (FPS * SAMPLES_PER_FRAME)
        return pcm[start : start + samples] * 10 ** (rng.uniform(-4, 4) / 20), [(t - first_s, name) for t, name in phonemes]

    def _draw_dialog(self, before: int, frames: int, rng: np.random.Generator) -> tuple[torch.Tensor, Phonemes, torch.Tensor, int]:
        """(the person's voice, its phonemes, the voice that is heard, the frame from which the person speaks or 0 for never)."""
        user_S, _ = self._draw_audio(before, frames, rng)
        if rng.random() >= TURN_SHARE:
            return torch.zeros_like(user_S), [], user_S, 0
        voice_S, phonemes = self._draw_audio(before, frames, rng)
        turn = int(rng.uniform(*TURN_AT) * frames)
        begin = before + turn * SAMPLES_PER_FRAME
        voice_S[:begin] = 0  # copies: `_draw_audio` scaled them
        user_S[begin - int(GAP_S * FPS * SAMPLES_PER_FRAME) :] = 0
        return voice_S, [(0.0, "_"), *((t, name) for t, name in phonemes if t >= turn / FPS)], user_S, turn


def mouth_truth(gap: np.ndarray, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Opening and width, 0..1, of a mouth as `Renderer.measure_mouth` gives it."""
    low, high = WIDE_UNITS
    return np.clip(gap / OPEN_UNITS, 0, 1), np.clip((wide - low) / (high - low), 0, 1)
