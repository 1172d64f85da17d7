"""`everface train evaluate --teacher FILE`: what the student's few steps lose against the teacher's many.

Both make the same clips: the same unseen character, sound and codec, as many whole blocks as fit into 16 latents. The student streams them
as the runtime does; the teacher sees the clip as a whole and takes forty Euler steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everface.core.block import Block
from everface.core.config import FPS, LATENT_STRIDE, SAMPLES_PER_FRAME, StreamConfig
from everface.core.log import log
from everface.model.audio import PAST_FRAMES
from everface.model.schedule import sink_distance
from everface.train.data.clips import MOVING_LATENTS
from everface.train.evaluate import metrics
from everface.train.evaluate.held_out import Unseen, draw_unseen
from everface.train.evaluate.judge import STATISTICS, Row, measure
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.stream import Stream, Studio
from everface.train.pretrain.flow_matching import new_dit
from everface.train.pretrain.teacher import sample
from everface.train.pretrain.windows import Window, WindowModel

TEACHER_STEPS = 40
CLIP_S = LATENT_STRIDE[0] * MOVING_LATENTS / FPS
ROWS = ("open_corr", "open_amplitude", "wide_corr", "sharpness", "fit_psnr", "eyes_psnr", "block_flicker", "latent_flicker", "motion")


def compare(studio: Studio, teacher: Path, reader: Reader, sounds_S: Sequence[Tensor], out: Path, seed: int = 0) -> dict[str, Any]:
    """Both over one clip a sound. `teacher`: weights of a finished `train teacher`, of the student's size. Writes teacher.json and
    teacher.md to `out` and returns {"characters": n, "student": means, "teacher": means}."""
    out.mkdir(parents=True, exist_ok=True)
    model = WindowModel(new_dit(studio.config.dit, 0, teacher).eval().requires_grad_(False), full=True).to(studio.dit.head.modulation.device)
    blocks = MOVING_LATENTS // studio.config.dit.block_frames
    frames = blocks * studio.block_frames
    rows: dict[str, list[Row]] = {"student": [], "teacher": []}
    for one in draw_unseen(sounds_S, seed, studio.config.size[0] if studio.config.size else 128):
        clip = one.part(0, frames)
        with studio.stream(clip.picture_3HW, StreamConfig()) as stream:
            made = list(stream.blocks([clip.pcm_S]))
            bidirectional = teach(stream, model, clip, blocks)
            for who, shown in (("student", made), ("teacher", bidirectional)):
                stream.tune_in()
                rgb_T3HW = metrics.as_rgb(torch.cat([stream.show(block) for block in shown]))
                row, _ = measure(reader, clip, rgb_T3HW, studio.block_frames)
                rows[who].append(row)
        log.info("character %d/%d: %s", len(rows["student"]), len(sounds_S), {w: round(r[-1]["open_corr"], 3) for w, r in rows.items()})
    means = {who: {key: STATISTICS["mean"](of, key) for key in ROWS} for who, of in rows.items()}
    report = {"characters": len(sounds_S), "seconds": frames / FPS, "steps": TEACHER_STEPS} | means
    (out / "teacher.json").write_text(json.dumps(report, indent=1))
    (out / "teacher.md").write_text(table(report))
    return report


def teach(stream: Stream, model: WindowModel, clip: Unseen, blocks: int) -> list[Block]:
    """The teacher's own clip, as blocks that the stream's decoder shows."""
    studio, known = stream.studio, stream.opening.tensors
    n, seed = studio.config.dit.block_frames, int(stream.opening.params["seed"])
    device = model.dit.head.modulation.device
    reference_B16_1hw, motion_B16Thw = (known[name][None].to(device, torch.float32) for name in ("reference", "motion"))
    padded_S = torch.cat([torch.zeros(studio.conditioner.lookback_samples), clip.pcm_S, torch.zeros(studio.conditioner.lookahead_samples)])
    features_LCF = studio.conditioner.front_end.features(padded_S, PAST_FRAMES + len(clip.pcm_S) // SAMPLES_PER_FRAME)
    window = Window(
        torch.empty(1, reference_B16_1hw.shape[1], n * blocks, *reference_B16_1hw.shape[-2:], device=device), torch.empty(1, blocks),
        reference_B16_1hw, motion_B16Thw, features_LCF[None].to(device), 0, tuple(sink_distance(seed, b, 0) for b in range(blocks)),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x0_16Fhw = sample(model, window, TEACHER_STEPS, generator, studio.config.noise_correlation)[0]
    size = studio.block_frames
    return [Block(1, 0, b, b * size * SAMPLES_PER_FRAME, size, x) for b, x in enumerate(x0_16Fhw.split(n, dim=1))]


def table(report: dict[str, Any]) -> str:
    """As markdown: a line a measure."""
    lines = [f"{report['characters']} unseen characters, clips of {report['seconds']:.2f} s", ""]
    lines += [f"| measure | student, as it streams | teacher, {report['steps']} steps over the whole clip |", "|---|---|---|"]
    lines += [f"| {key} | {report['student'][key]:.3f} | {report['teacher'][key]:.3f} |" for key in ROWS]
    return "\n".join(lines) + "\n"
