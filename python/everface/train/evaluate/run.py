"""`everface train evaluate`: a model before the judge, as a viewer would see it: through a session of its own, or over a long stream."""

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
from everface.model.vae import VAE
from everface.train.evaluate.ablate import ablate, check_rows
from everface.train.evaluate.compare import CLIP_S, compare
from everface.train.evaluate.held_out import held_out_sounds
from everface.train.evaluate.horizon import LOOP_S, Tell, horizon
from everface.train.evaluate.judge import evaluate
from everface.train.evaluate.lip_reader import train_reader
from everface.train.evaluate.stream import Studio
from everface.train.synthetic.voices import make_speech
from everface.weights.load import load_into, open_checkpoint

SPEECH_SEED = 0


def judge(weights: Path | None, out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment) -> dict[str, Any]:
    """Judge `weights` (the bundled model without any) on `characters` unseen people, each `seconds` long with an unseen voice.

    `speech` is a folder of make_speech; without one the voices are spoken anew by espeak-ng. Writes report.json, report.md and
    sheet.png to `out` and returns the report. Trains the reader first, about two minutes.
    """
    with spoken(speech) as folder, Avatar(weights, None, deployment) as avatar:
        sounds = held_out_sounds(folder, characters, seconds)
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


def judge_horizon(
    weights: Path | None, out: Path, speech: Path | None, seconds: int, deployment: Deployment, tell: Tell
) -> dict[str, Any]:
    """One stream of `seconds` and windows of it (horizon.py), all in this process. Writes horizon.json, .md and .png to `out`."""
    with spoken(speech) as folder:
        sound_S = held_out_sounds(folder, 1, LOOP_S)[0]
    return horizon(Studio(weights, deployment), train_reader(), sound_S, seconds, out, tell=tell)


def judge_teacher(
    weights: Path | None, teacher: Path, out: Path, speech: Path | None, characters: int, deployment: Deployment
) -> dict[str, Any]:
    """The student beside forty steps of the teacher (compare.py), over short clips. Writes teacher.json and .md to `out`."""
    with spoken(speech) as folder:
        sounds = held_out_sounds(folder, characters, CLIP_S)
    return compare(Studio(weights, deployment), teacher, train_reader(), sounds, out)


def judge_parts(
    weights: Path | None, students: list[str], out: Path, speech: Path | None, characters: int, seconds: int, deployment: Deployment, tell: Tell,
    rows: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The table of ablate.py, or the named `rows` of it, over `characters` streams of `seconds` each. `students` are NAME=DIR: a row, and
    a model trained for it."""
    folders = dict[str, Path]()
    for student in students:
        name, _, folder = student.partition("=")
        if not folder:
            raise BadInput(f"--student {student!r} is not NAME=DIR, as in 'clean cache=runs/clean'")
        folders[name] = Path(folder)
    check_rows([*rows, *folders])  # before the reader has learned for minutes
    with spoken(speech) as folder:
        sounds = held_out_sounds(folder, characters, seconds)
    return ablate(weights, folders, train_reader(), sounds, out, deployment, tell=tell, only=rows)


@contextmanager
def spoken(speech: Path | None) -> Iterator[Path]:
    """The folder of speech, or one that espeak-ng fills for the time of a `with`."""
    if speech is not None:
        yield speech
        return
    with tempfile.TemporaryDirectory() as fresh:
        make_speech(Path(fresh), SPEECH_SEED)
        yield Path(fresh)


@torch.inference_mode()
def _through(vae: VAE, rgb_T3HW: Tensor) -> Tensor:
    """Encode and decode a video of any length, its frames in fours from the first as a stream's are: the codec takes 1 + 4k frames, of
    which the first is alone, so the first one comes twice; the last is repeated, and both are cut again."""
    frames = len(rgb_T3HW)
    padded = torch.cat([rgb_T3HW[:1], rgb_T3HW, rgb_T3HW[-1:].expand(-frames % 4, -1, -1, -1)])
    video_13THW = padded.permute(1, 0, 2, 3)[None]
    return vae.decode(vae.encode(video_13THW))[0].permute(1, 0, 2, 3)[1 : frames + 1]
