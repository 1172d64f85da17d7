"""`everface train evaluate`: a checkpoint before the judge, as a viewer would see it, through a session of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLE_RATE, Deployment
from everface.model.vae import VAE
from everface.train.evaluate import evaluate, held_out_sounds
from everface.train.reader import train_reader
from everface.train.voices import make_speech
from everface.weights.load import load_into, open_checkpoint

SPEECH_SEED = 0


def judge(weights: Path | None, out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment) -> dict[str, Any]:
    """Judge `weights` (the bundled model without any) on `characters` unseen people, each `seconds` long with an unseen voice.

    `speech` is a folder of make_speech; without one the voices are spoken anew by espeak-ng. Writes report.json, report.md and
    sheet.png to `out` and returns the report. Trains the reader first, about two minutes.
    """
    with tempfile.TemporaryDirectory() as fresh, Avatar(weights, None, deployment) as avatar:
        if speech is None:
            make_speech(Path(fresh), SPEECH_SEED)
        sounds = held_out_sounds(speech or Path(fresh), characters, seconds)
        vae = VAE(avatar.config.vae).eval()
        load_into(vae, open_checkpoint(avatar.weights).vae())

        def generate(picture_3HW: Tensor, pcm_S: Tensor) -> Tensor:
            with avatar.open(picture_3HW) as session:
                blocks = []
                for part in pcm_S.split(SAMPLE_RATE // 2):
                    while not session.push(part):
                        session.wait(1.0)
                        blocks += session.poll()
                    blocks += session.poll()
                session.end()
                blocks += session.frames()
            return torch.cat([block.frames_THW3 for block in blocks])

        return evaluate(generate, lambda rgb_T3HW: _through(vae, rgb_T3HW), train_reader(), sounds, out)


@torch.inference_mode()
def _through(vae: VAE, rgb_T3HW: Tensor) -> Tensor:
    """Encode and decode a video of any length: the codec takes 1 + 4k frames, so the last one is repeated and cut again."""
    frames = len(rgb_T3HW)
    padded = torch.cat([rgb_T3HW, rgb_T3HW[-1:].expand(-(frames - 1) % 4, -1, -1, -1)])
    video_13THW = padded.permute(1, 0, 2, 3)[None]
    return vae.decode(vae.encode(video_13THW))[0].permute(1, 0, 2, 3)[:frames]
