"""Trains the audio-video sync scorer on drawn characters: `python -m everface.genbench.sync_training OUT.safetensors`.

Speech by espeak-ng moves drawn mouths, so what is in sync is known. Symmetric InfoNCE: among windows of other times and other clips, each
mouth must find its audio, and each audio its mouth. The characters and the Spanish and Italian voices of
GenBench's sets are held out, as they are in all training.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from everface.core.config import FPS, SAMPLES_PER_FRAME
from everface.core.log import log
from everface.genbench.metrics.av_network import FRAMES, MOUTH_HW, AVNetwork, audio_windows
from everface.train.synthetic import voices
from everface.train.synthetic.characters import mouth_box, render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import mouth_targets, sample_motion

CLIP_FRAMES, SIZE = 4 * FPS, 96
MARGIN = 4  # pixels around a drawn mouth, from which crops are taken at random


@dataclass
class SpeakingMouths:
    """mouths_NTHW: gray, 0..1, with MARGIN around. mels_NTMH: one window of audio a frame."""

    mouths_NTHW: Tensor
    mels_NTMH: Tensor


def draw_clips(speech: list[Tensor], count: int, generator: torch.Generator) -> SpeakingMouths:
    """`count` characters that speak stretches of `speech`, at levels from -9 to 6 dB of theirs."""
    mouths, mels = [], []
    h, w = MOUTH_HW[0] + 2 * MARGIN, MOUTH_HW[1] + 2 * MARGIN
    top, bottom, left, right = mouth_box(SIZE)
    for i in range(count):
        pcm_S = speech[i % len(speech)]
        at = int(torch.randint(len(pcm_S) - CLIP_FRAMES * SAMPLES_PER_FRAME, (1,), generator=generator))
        pcm_S = pcm_S[at : at + CLIP_FRAMES * SAMPLES_PER_FRAME]
        with torch.no_grad():
            rgb = render(sample_identity(1, generator), sample_motion(*mouth_targets(pcm_S), generator), SIZE)
        gray = (rgb[:, :, top:bottom, left:right].mean(1, keepdim=True) + 1) / 2
        mouths.append(F.interpolate(gray, (h, w), mode="bilinear", antialias=True)[:, 0])
        gain = 10 ** ((torch.rand(1, generator=generator).item() * 15 - 9) / 20)
        mels.append(audio_windows(gain * pcm_S, CLIP_FRAMES))
    return SpeakingMouths(torch.stack(mouths), torch.stack(mels))


def sample_batch(clips: SpeakingMouths, many: int, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows of `many` clips, `each` of one: mouths cropped, flipped, noised and blurred at random, and their audio."""
    mouths, mels = [], []
    for clip in torch.randperm(len(clips.mouths_NTHW), generator=generator)[:many].tolist():
        y, x = torch.randint(2 * MARGIN + 1, (2,), generator=generator).tolist()
        mouth_THW = clips.mouths_NTHW[clip, :, y : y + MOUTH_HW[0], x : x + MOUTH_HW[1]]
        if torch.rand(1, generator=generator) < 0.5:
            mouth_THW = mouth_THW.flip(2)
        if torch.rand(1, generator=generator) < 0.5:
            mouth_THW = F.avg_pool2d(mouth_THW[:, None], 3, 1, 1)[:, 0]
        mouth_THW = mouth_THW + 0.04 * torch.rand(1, generator=generator) * torch.randn(mouth_THW.shape, generator=generator)
        for t in torch.randperm(CLIP_FRAMES - FRAMES, generator=generator)[:each].tolist():
            window = mouth_THW[t : t + FRAMES]
            mouths.append((window - window.mean()) / window.std().clamp(min=1e-4))
            mels.append(clips.mels_NTMH[clip, t])
    return torch.stack(mouths), torch.stack(mels)


def train_sync(speech: list[Tensor], seed: int = 0, count: int = 220, iterations: int = 1500) -> AVNetwork:
    """Train and return the network. Repeatable on one machine."""
    generator = torch.Generator().manual_seed(seed)
    clips = draw_clips(speech, count, generator)
    log.info("sync scorer: %d clips drawn", count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AVNetwork()
    heat = torch.nn.Parameter(torch.tensor(2.0))
    parameters = [*network.parameters(), heat]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=iterations, pct_start=0.1)
    for i in range(iterations):
        mouths, mels = sample_batch(clips, 8, 12, generator)
        logits = heat.exp() * network.embed_mouth(mouths) @ network.embed_audio(mels).T
        same = torch.arange(len(logits))
        loss = F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (i + 1) % 100 == 0:
            log.info("sync scorer %d/%d: loss %.3f", i + 1, iterations, loss.item())
    return network.eval()


def main(out: Path) -> None:
    """Make speech, train, write the weights in half precision."""
    with tempfile.TemporaryDirectory() as folder:
        seen = tuple(voice for voice in voices.VOICES if not voice.startswith(voices.HELD_OUT))
        paths = voices.make_speech(Path(folder), seed=11, clips_per_voice=2, voices=seen)
        speech = [voices.read_wav(path) for path in paths]
    network = train_sync(speech)
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
