"""`everface train evaluate --teacher FILE`: the student's few steps against the teacher's many.

Both make the same clips: the same held-out character, audio and codec, as many whole blocks as fit into 16 latents. The student streams them
as the runtime does; the teacher sees the whole clip and takes forty Euler steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everface.core.config import FPS, LATENT_FRAMES, SAMPLES_PER_FRAME, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.transformer.schedule import sink_distance
from everface.runtime.messages import Block
from everface.train.data.clips import MOVING_LATENTS
from everface.train.evaluate import metrics
from everface.train.evaluate.bars import STATISTICS, Row
from everface.train.evaluate.held_out import HeldOutClip, draw_held_out
from everface.train.evaluate.measure import measure
from everface.train.evaluate.offline_stream import OfflineModel, OfflineStream
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.pretrain.dit_files import new_dit
from everface.train.pretrain.teacher import sample
from everface.train.pretrain.window_model import WindowModel
from everface.train.pretrain.windows import TrainingWindow

TEACHER_STEPS = 40
CLIP_S = LATENT_FRAMES * MOVING_LATENTS / FPS
ROWS = ("open_corr", "open_amplitude", "wide_corr", "sharpness", "fit_psnr", "eyes_psnr", "block_flicker", "latent_flicker", "motion")


def check_student(student: OfflineModel) -> None:
    """Raises BadInput for a model that no whole clip can be sampled of."""
    if student.config.motion:
        raise BadInput("a teacher cannot be compared with a model of heads, whose pose is drawn while it streams: name a model without motion with --weights")


def compare(student: OfflineModel, teacher: Path, reader: LipReader, audio_S: Sequence[Tensor], out: Path, seed: int = 0) -> dict[str, Any]:
    """One clip per audio by each. `teacher`: weights of a finished `train teacher`, of the student's size.

    Writes teacher.json and teacher.md to `out` and returns {"characters": n, "student": means, "teacher": means}.
    """
    out.mkdir(parents=True, exist_ok=True)
    dit = new_dit(student.config.dit, 0, teacher).eval().requires_grad_(False)
    model = WindowModel(dit, bidirectional=True).to(student.dit.head.modulation.device)
    blocks = MOVING_LATENTS // student.config.dit.block_frames
    frames = blocks * student.block_frames
    rows: dict[str, list[Row]] = {"student": [], "teacher": []}
    for whole in draw_held_out(audio_S, seed, student.image_size):
        clip = whole.part(0, frames)
        with student.stream(clip.image_3HW, StreamConfig()) as stream:
            streamed = list(stream.blocks([clip.pcm_S]))
            sampled = sample_teacher(stream, model, clip, blocks)
            for who, made in (("student", streamed), ("teacher", sampled)):
                stream.start_decoding()
                rgb_T3HW = metrics.as_rgb(torch.cat([stream.decode(block) for block in made]))
                row, _ = measure(reader, clip, rgb_T3HW, student.block_frames)
                rows[who].append(row)
        log.info("character %d/%d: %s", len(rows["student"]), len(audio_S), {w: round(r[-1]["open_corr"], 3) for w, r in rows.items()})
    means = {who: {key: STATISTICS["mean"](of, key) for key in ROWS} for who, of in rows.items()}
    report = {"characters": len(audio_S), "seconds": frames / FPS, "steps": TEACHER_STEPS} | means
    (out / "teacher.json").write_text(json.dumps(report, indent=1))
    (out / "teacher.md").write_text(table(report))
    return report


def sample_teacher(stream: OfflineStream, model: WindowModel, clip: HeldOutClip, blocks: int) -> list[Block]:
    """The teacher's clip, as blocks that the stream's decoder takes."""
    student, tensors = stream.model, stream.opening.tensors
    n, seed = student.config.dit.block_frames, int(stream.opening.params["seed"])
    device = model.dit.head.modulation.device
    reference_B16_1hw, motion_B16Thw = (tensors[name][None].to(device, torch.float32) for name in ("reference", "motion"))
    lookback, lookahead = student.conditioner.lookback_samples, student.conditioner.lookahead_samples
    padded_S = torch.cat([torch.zeros(lookback), clip.pcm_S, torch.zeros(lookahead)])
    features_LCF = student.conditioner.front_end.features(padded_S, PAST_FRAMES + len(clip.pcm_S) // SAMPLES_PER_FRAME)
    window = TrainingWindow(
        torch.empty(1, reference_B16_1hw.shape[1], n * blocks, *reference_B16_1hw.shape[-2:], device=device), torch.empty(1, blocks),
        reference_B16_1hw, motion_B16Thw, features_LCF[None].to(device), 0, tuple(sink_distance(seed, b, 0) for b in range(blocks)),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x0_16Fhw = sample(model, window, TEACHER_STEPS, generator, student.config.noise_correlation)[0]
    size = student.block_frames
    return [Block(1, 0, b, b * size * SAMPLES_PER_FRAME, size, x) for b, x in enumerate(x0_16Fhw.split(n, dim=1))]


def table(report: dict[str, Any]) -> str:
    """As markdown, one line per measure."""
    lines = [f"{report['characters']} held-out characters, clips of {report['seconds']:.2f} s", ""]
    lines += [f"| measure | student, streaming | teacher, {report['steps']} steps over the whole clip |", "|---|---|---|"]
    lines += [f"| {key} | {report['student'][key]:.3f} | {report['teacher'][key]:.3f} |" for key in ROWS]
    return "\n".join(lines) + "\n"
