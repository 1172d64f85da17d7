"""`everface train ablate`: what each part of the method is worth, as the paper's tables 4, 5, 6 and 10 ask.

Unseen characters speak for a while over each row's stream; its first and its last window are judged. A row is fair only with a student
that was trained for it (`everface train stage1 --set history=clean ...`, or stage2, then `bundle`): given weights run without a part they were
trained with show what those weights rely on, and the row says so. There is no column of time: the rows share the product's code, not
its pace.
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
from everface.train.evaluate.held_out import draw_unseen
from everface.train.evaluate.horizon import Tell, look, windows
from everface.train.evaluate.judge import STATISTICS, Row
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.stream import Studio, Ways
from everface.train.pretrain.plans import Streamed

PRODUCT: dict[str, Any] = asdict(Streamed()) | {"block_frames": 3}  # what both stages train for by default
WINDOW_S = 10.0  # or as near to it as blocks come


@dataclass(frozen=True)
class Variant:
    """One row. `trained`: the fields of its phase's plan that a student for it must have been trained with."""

    name: str
    ways: Ways = field(default_factory=Ways)
    trained: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("default"),
    Variant("no adaptive sink", Ways(refresh=False), {"refresh": False}),
    Variant("no rolling RoPE", Ways(rolling=False), {"rolling": False}),
    Variant("clean cache", Ways(history="clean"), {"history": "clean"}),
    Variant("fixed-noise cache", Ways(history="fixed", history_sigma=0.557), {"history": "fixed", "history_sigma": 0.557}),
    Variant("2 steps", Ways(steps=2), {"steps": 2}),
    Variant("3 steps", Ways(steps=3), {"steps": 3}),
    Variant("skip-null", Ways(skip_null=True)),
    Variant("block 1", trained={"block_frames": 1}),
    Variant("block 2", trained={"block_frames": 2}),
    Variant("block 4", trained={"block_frames": 4}),
)
COLUMNS = ("open_corr", "wide_corr", "fit_psnr", "sharpness", "block_flicker", "motion", "blinks")  # means of both windows; blinks pooled
DRIFTS = ("open_corr", "fit_psnr", "sharpness", "latent_std")  # last window less first


def ablate(
    weights: Path | None, students: dict[str, Path], reader: Reader, sounds_S: Sequence[Tensor], out: Path, deployment: Deployment,
    window_s: float = WINDOW_S, tell: Tell = log.info, only: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """A row a variant, or for those named in `only`: its own student's where `students` (row -> model folder) has one, else `weights`
    bent. Writes ablate.json and ablate.md to `out` after every row. Raises BadInput for a row that is not known and for a student whose
    blocks are of another size."""
    check_rows([*only, *students])
    out.mkdir(parents=True, exist_ok=True)
    base = Studio(weights, deployment)
    report: dict[str, Any] = {"characters": len(sounds_S), "seconds": len(sounds_S[0]) / SAMPLE_RATE, "window_s": window_s, "rows": []}
    for variant in VARIANTS:
        if only and variant.name not in only:
            continue
        studio = Studio(students[variant.name], deployment) if variant.name in students else base
        wanted = variant.trained.get("block_frames", PRODUCT["block_frames"])
        row: dict[str, Any] = {"name": variant.name, "weights": str(studio.weights), "note": caveat(variant, studio)}
        if studio.config.dit.block_frames == wanted:
            row |= judge_variant(variant, studio, reader, sounds_S, window_s)
        elif variant.name in students:
            raise BadInput(f"{studio.weights} makes blocks of {studio.config.dit.block_frames} latents, where {variant.name!r} wants {wanted}")
        report["rows"].append(row)
        tell(f"{variant.name}: " + (" ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)) or row["note"]))
        (out / "ablate.json").write_text(json.dumps(report, indent=1))
        (out / "ablate.md").write_text(table(report))
    return report


def check_rows(names: Collection[str]) -> None:
    known = [v.name for v in VARIANTS]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"no row is called {unknown[0]!r}: choose one of {', '.join(known)}")


def caveat(variant: Variant, studio: Studio) -> str:
    """What the reader of the row must know. Without a plan beside the weights they count as trained for the product's ways."""
    known = PRODUCT | trained_with(studio.weights) | {"block_frames": studio.config.dit.block_frames}
    strange = [name for name, value in variant.trained.items() if known[name] != value]
    if not strange:
        return ""
    if strange == ["block_frames"]:
        return "not trained"
    if variant.name == "clean cache":
        return "weights never trained with t = 0 history: what fails here is that, not the method"
    return f"weights not trained for it ({', '.join(f'{n}={known[n]}' for n in strange)})"


def trained_with(weights: Path) -> dict[str, Any]:
    """The plan that `everface train bundle` puts beside the weights; nothing where there is none."""
    try:
        return json.loads((weights / "plan.json").read_text())
    except (OSError, ValueError):
        return {}


def judge_variant(variant: Variant, studio: Studio, reader: Reader, sounds_S: Sequence[Tensor], window_s: float) -> Row:
    """The columns of one row, over all characters."""
    block_s = studio.block_frames / FPS
    length, total = round(window_s / block_s), int(len(sounds_S[0]) / SAMPLE_RATE / block_s)
    if total < 2 * length:
        raise BadInput(f"streams of {total * block_s:.1f} s do not hold two windows of {window_s:g} s: make them longer")
    first: list[Row] = []
    last: list[Row] = []
    for one in draw_unseen(sounds_S, size=studio.config.size[0] if studio.config.size else 128):
        with studio.stream(one.picture_3HW, StreamConfig(), variant.ways) as stream:
            for seen, rows in zip(windows(stream, iter(one.pcm_S.split(SAMPLE_RATE)), [0, total - length], length), (first, last), strict=True):
                part = one.part(seen.first * studio.block_frames, length * studio.block_frames)
                rows.append(look(reader, part, seen, studio.block_frames))
    mean = STATISTICS["mean"]
    columns = {key: mean(first + last, key) for key in COLUMNS[:-1]}
    columns["blinks"] = STATISTICS["pooled"](first + last, "blinks")
    return columns | {f"drift_{key}": mean(last, key) - mean(first, key) for key in DRIFTS}


def table(report: dict[str, Any]) -> str:
    """As markdown, a line a row."""
    columns = [*COLUMNS, *(f"drift_{key}" for key in DRIFTS)]
    lines = [
        f"{report['characters']} unseen characters, streams of {report['seconds']:.0f} s, windows of {report['window_s']:g} s at their "
        "beginning and end; drift: end less beginning; blinks: against the truth's.",
        "",
        "| row | " + " | ".join(c.replace("_", " ") for c in columns) + " | |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in report["rows"]:
        values = [f"{row[c]:{'+' if c.startswith('drift') else ''}.3f}" if c in row else "" for c in columns]
        lines.append(f"| {row['name']} | {' | '.join(values)} | {row['note']} |")
    return "\n".join(lines) + "\n"
