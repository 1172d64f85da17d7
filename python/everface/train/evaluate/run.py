"""The evaluations that the command line offers, from weights and speech to a report. Each trains a lip reader first, about two minutes.

`weights`: a model folder, or None for the bundled model. `speech`: a folder of make_speech, or None to make it with espeak-ng.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLE_RATE, Deployment
from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.video.vae import VAE
from everface.train.evaluate.ablate import ablate, check_rows
from everface.train.evaluate.compare import CLIP_S, check_student, compare
from everface.train.evaluate.held_out import draw_held_out, held_out_audio
from everface.train.evaluate.horizon import LOOP_S, drawn_truth, evaluate_horizon
from everface.train.evaluate.levels import evaluate_levels
from everface.train.evaluate.offline_stream import OfflineModel, image_size
from everface.train.evaluate.quality import evaluate_quality
from everface.train.evaluate.readers.lip_reader import train_lip_reader
from everface.train.evaluate.stream_windows import Report
from everface.train.synthetic.voices import make_speech
from everface.weights.load import load_into, open_checkpoint

SPEECH_SEED = 0


def run_quality(
    weights: Path | None, out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment
) -> dict[str, Any]:
    """Quality on so many held-out characters, each in a session of its own with `seconds` of a held-out voice.

    Writes report.json, report.md and sheet.png to `out` and returns the report.
    """
    with speech_folder(speech) as folder, Avatar(weights, None, deployment) as avatar:
        audio = held_out_audio(folder, characters, seconds)
        vae = VAE(avatar.model.config.vae).eval()
        load_into(vae, open_checkpoint(weights or DEFAULT_WEIGHTS).vae())
        drawn = draw_held_out(audio, size=image_size(avatar.model.config))
        return evaluate_quality(lambda image, pcm: stream_frames(avatar, image, pcm), lambda rgb_T3HW: reconstruct(vae, rgb_T3HW), train_lip_reader(), drawn, out)


def stream_frames(avatar: Avatar, image_3HW: Tensor, pcm_S: Tensor) -> Tensor:
    """uint8 frames [T, H, W, 3] of a session of its own."""
    with avatar.open(image_3HW) as session:
        return torch.cat([block.frames_THW3 for block in session.stream(pcm_S.split(SAMPLE_RATE // 2))])


def run_horizon(
    weights: Path | None, out: Path, speech: Path | None, seconds: int, deployment: Deployment, progress: Report
) -> dict[str, Any]:
    """Windows of one stream of `seconds` (horizon.py). Writes horizon.json, .md and .png to `out`."""
    with speech_folder(speech) as folder:
        audio_S = held_out_audio(folder, 1, LOOP_S)[0]
    model = OfflineModel(weights, deployment)
    return evaluate_horizon(model, train_lip_reader(), drawn_truth(audio_S, model.image_size), audio_S, seconds, out, progress=progress)


def run_levels(
    weights: Path | None, out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment, progress: Report
) -> dict[str, Any]:
    """The same voices at several levels (levels.py). Writes levels.json and .md to `out`."""
    with speech_folder(speech) as folder:
        audio = held_out_audio(folder, characters, seconds)
    return evaluate_levels(OfflineModel(weights, deployment), train_lip_reader(), audio, out, progress)


def run_comparison(
    weights: Path | None, teacher: Path, out: Path, speech: Path | None, characters: int, deployment: Deployment
) -> dict[str, Any]:
    """The student against forty steps of the teacher (compare.py), over short clips. Writes teacher.json and .md to `out`."""
    student = OfflineModel(weights, deployment)
    check_student(student)  # before minutes of training the lip reader
    with speech_folder(speech) as folder:
        audio = held_out_audio(folder, characters, CLIP_S)
    return compare(student, teacher, train_lip_reader(), audio, out)


def run_ablation(
    weights: Path | None, students: list[str], out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment,
    progress: Report, rows: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The table of ablate.py, or only the named `rows`, over `characters` streams of `seconds` each. `students` are ROW=DIR, a model trained
    for that row."""
    folders = dict[str, Path]()
    for student in students:
        name, _, folder = student.partition("=")
        if not folder:
            raise BadInput(f"--student {student!r} is not NAME=DIR, as in 'clean cache=runs/clean'")
        folders[name] = Path(folder)
    check_rows([*rows, *folders])  # before minutes of training the lip reader
    with speech_folder(speech) as folder:
        audio = held_out_audio(folder, characters, seconds)
    return ablate(weights, folders, train_lip_reader(), audio, out, deployment, progress=progress, only=rows)


@contextmanager
def speech_folder(speech: Path | None) -> Iterator[Path]:
    """The folder of speech, or a temporary one that espeak-ng fills."""
    if speech is not None:
        yield speech
        return
    with tempfile.TemporaryDirectory() as made:
        make_speech(Path(made), SPEECH_SEED)
        yield Path(made)


@torch.inference_mode()
def reconstruct(vae: VAE, rgb_T3HW: Tensor) -> Tensor:
    """Encode and decode a video of any length, its frames in fours from the first one on, as in a stream. The codec takes 1 + 4k frames, with
    the first in a latent of its own, so the first frame is doubled and the last repeated, and both are cut off again."""
    frames = len(rgb_T3HW)
    padded = torch.cat([rgb_T3HW[:1], rgb_T3HW, rgb_T3HW[-1:].expand(-frames % 4, -1, -1, -1)])
    video_13THW = padded.permute(1, 0, 2, 3)[None]
    return vae.decode(vae.encode(video_13THW))[0].permute(1, 0, 2, 3)[1 : frames + 1]
