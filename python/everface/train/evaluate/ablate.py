"""`everface train ablate`: the worth of each part of the method, as in tables 4, 5, 6 and 10 of the paper.

Held-out characters speak in the stream of each row; its first and last window are measured. A row is fair only with a student that was
trained for it (`everface train stage1 --set history=clean ...`, or stage2, then `bundle`). Weights run without a part they were trained with
show how far they rely on it, and the row says so. There is no column for speed: the rows share the product's code, not its performance.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from everface.core.config import FPS, SAMPLE_RATE, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.train.evaluate.bars import STATISTICS, Row
from everface.train.evaluate.held_out import draw_held_out
from everface.train.evaluate.offline_stream import OfflineModel, StreamVariant
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.stream_windows import Report, decode_windows, measure_window
from everface.train.pretrain.plans import StreamingPlan

PRODUCT: dict[str, Any] = asdict(StreamingPlan()) | {"block_frames": 3}  # what both stages train for by default
WINDOW_S = 10.0  # rounded to whole blocks


@dataclass(frozen=True)
class Ablation:
    """One row. `trained`: the plan's fields that a student for it must have been trained with."""

    name: str
    variant: StreamVariant = field(default_factory=StreamVariant)
    trained: dict[str, Any] = field(default_factory=dict)


ABLATIONS = (
    Ablation("default"),
    Ablation("no adaptive sink", StreamVariant(refresh=False), {"refresh": False}),
    Ablation("no rolling RoPE", StreamVariant(rolling=False), {"rolling": False}),
    Ablation("clean cache", StreamVariant(history="clean"), {"history": "clean"}),
    Ablation("fixed-noise cache", StreamVariant(history="fixed", history_sigma=0.557), {"history": "fixed", "history_sigma": 0.557}),
    Ablation("2 steps", StreamVariant(steps=2), {"steps": 2}),
    Ablation("3 steps", StreamVariant(steps=3), {"steps": 3}),
    Ablation("skip-null", StreamVariant(skip_null=True)),
    Ablation("block 1", trained={"block_frames": 1}),
    Ablation("block 2", trained={"block_frames": 2}),
    Ablation("block 4", trained={"block_frames": 4}),
)
COLUMNS = ("open_corr", "wide_corr", "fit_psnr", "sharpness", "block_flicker", "motion", "blinks")  # means of both windows; blinks pooled
DRIFTS = ("open_corr", "fit_psnr", "sharpness", "latent_std")  # last window minus first


def ablate(
    weights: Path | None, students: dict[str, Path], reader: LipReader, audio_S: Sequence[Tensor], out: Path, deployment: Deployment,
    window_s: float = WINDOW_S, progress: Report = log.info, only: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """All rows, or those named in `only`. A row uses its own student where `students` (row -> model folder) has one, else `weights` with a
    changed stream. Writes ablate.json and ablate.md to `out` after every row.

    Raises BadInput for an unknown row and for a student whose blocks are of another size.
    """
    check_rows([*only, *students])
    out.mkdir(parents=True, exist_ok=True)
    base = OfflineModel(weights, deployment)
    report: dict[str, Any] = {"characters": len(audio_S), "seconds": len(audio_S[0]) / SAMPLE_RATE, "window_s": window_s, "rows": []}
    for ablation in ABLATIONS:
        if only and ablation.name not in only:
            continue
        model = OfflineModel(students[ablation.name], deployment) if ablation.name in students else base
        wanted, held = ablation.trained.get("block_frames", PRODUCT["block_frames"]), model.config.dit.block_frames
        row: dict[str, Any] = {"name": ablation.name, "weights": str(model.weights), "note": caveat(ablation, model)}
        if held == wanted:
            row |= measure_ablation(ablation, model, reader, audio_S, window_s)
        elif ablation.name in students:
            raise BadInput(f"{model.weights} makes blocks of {held} latents, but the row {ablation.name!r} needs {wanted}")
        report["rows"].append(row)
        progress(f"{ablation.name}: " + (" ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)) or row["note"]))
        (out / "ablate.json").write_text(json.dumps(report, indent=1))
        (out / "ablate.md").write_text(table(report))
    return report


def check_rows(names: Collection[str]) -> None:
    known = [a.name for a in ABLATIONS]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"there is no row {unknown[0]!r}: choose one of {', '.join(known)}")


def caveat(ablation: Ablation, model: OfflineModel) -> str:
    """A note for the row where the weights were not trained for it. Weights without a plan beside them count as the product's."""
    known = PRODUCT | trained_with(model.weights) | {"block_frames": model.config.dit.block_frames}
    different = [name for name, value in ablation.trained.items() if known[name] != value]
    if not different:
        return ""
    if different == ["block_frames"]:
        return "not trained"
    if ablation.name == "clean cache":
        return "weights never trained with t = 0 history: this is what fails here, not the method"
    return f"weights not trained for it ({', '.join(f'{n}={known[n]}' for n in different)})"


def trained_with(weights: Path) -> dict[str, Any]:
    """The plan that `everface train bundle` puts beside the weights; empty where there is none."""
    try:
        return json.loads((weights / "plan.json").read_text())
    except (OSError, ValueError):
        return {}


def measure_ablation(ablation: Ablation, model: OfflineModel, reader: LipReader, audio_S: Sequence[Tensor], window_s: float) -> Row:
    """The columns of one row, over all characters."""
    block_s = model.block_frames / FPS
    length, total = round(window_s / block_s), int(len(audio_S[0]) / SAMPLE_RATE / block_s)
    if total < 2 * length:
        raise BadInput(f"streams of {total * block_s:.1f} s do not hold two windows of {window_s:g} s: make them longer")
    first: list[Row] = []
    last: list[Row] = []
    for clip in draw_held_out(audio_S, size=model.image_size):
        with model.stream(clip.image_3HW, StreamConfig(), ablation.variant) as stream:
            windows = decode_windows(stream, iter(clip.pcm_S.split(SAMPLE_RATE)), [0, total - length], length)
            for window, rows in zip(windows, (first, last), strict=True):
                part = clip.part(window.first * model.block_frames, length * model.block_frames)
                rows.append(measure_window(reader, part, window, model.block_frames))
    mean = STATISTICS["mean"]
    columns = {key: mean(first + last, key) for key in COLUMNS[:-1]}
    columns["blinks"] = STATISTICS["pooled"](first + last, "blinks")
    return columns | {f"drift_{key}": mean(last, key) - mean(first, key) for key in DRIFTS}


def table(report: dict[str, Any]) -> str:
    """As markdown, one line per row."""
    columns = [*COLUMNS, *(f"drift_{key}" for key in DRIFTS)]
    lines = [
        f"{report['characters']} held-out characters, streams of {report['seconds']:.0f} s, windows of {report['window_s']:g} s at their "
        "beginning and end; drift: end minus beginning; blinks: relative to the truth's.",
        "",
        "| row | " + " | ".join(c.replace("_", " ") for c in columns) + " | |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in report["rows"]:
        values = [f"{row[c]:{'+' if c.startswith('drift') else ''}.3f}" if c in row else "" for c in columns]
        lines.append(f"| {row['name']} | {' | '.join(values)} | {row['note']} |")
    return "\n".join(lines) + "\n"
