"""Quality of a model on held-out characters: does it follow the audio, keep the person, look sharp and run without seams?

The model comes as two functions, so that this module knows no model:
    generate(image_3HW float32 -1..1, pcm_S float32 16 kHz) -> frames_THW3 uint8, 25 per second
    vae_reconstruct(rgb_T3HW float32 -1..1) -> rgb_T3HW float32: the ceiling that the codec sets
The true video goes through the lip reader first, to check the reader, then through the VAE; then comes the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from everface.core.log import log
from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.bars import BARS, Bar, Row, check_bars
from everface.train.evaluate.held_out import HeldOut
from everface.train.evaluate.measure import measure
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.synthetic.characters import mouth_box

Generate = Callable[[Tensor, Tensor], Tensor]
Reconstruct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """What is kept of one clip."""

    row: Row
    read_T: Tensor  # the mouth's opening that was read
    open_T: Tensor  # the true one
    panel_3HW: Tensor  # for the sheet, in -1..1


def evaluate_quality(
    generate: Generate,
    vae_reconstruct: Reconstruct,
    reader: LipReader,
    clips: Sequence[HeldOut],
    out_dir: Path,
    bars: Sequence[Bar] = BARS,
) -> dict[str, Any]:
    """Evaluate each clip and write the report (`write_report`), which is returned."""
    results = []
    for clip in clips:
        results.append(evaluate_clip(generate, vae_reconstruct, reader, clip))
        log.info("character %d/%d: %s", len(results), len(clips), summary(results[-1].row))
    return write_report(results, out_dir, bars)


def evaluate_clip(generate: Generate, vae_reconstruct: Reconstruct, reader: LipReader, clip: HeldOut, fit_frames: int | None = None) -> Result:
    """One clip, its own codec too. fit_frames: as `measure` has it."""
    with torch.no_grad():
        vae = vae_reconstruct(clip.truth_T3HW)
    made = metrics.as_rgb(generate(clip.image_3HW, clip.pcm_S))
    row, read_T = _measure_all(clip.reader(reader), clip, made, vae, fit_frames)
    return Result(row, read_T, clip.open_T, _panel(clip.image_3HW, made, clip.truth_T3HW))


def summary(row: Row) -> str:
    return " ".join(f"{k} {v:.3f}" for k, v in row.items())


def write_report(results: Sequence[Result], out_dir: Path, bars: Sequence[Bar] = BARS) -> dict[str, Any]:
    """Write report.json, report.md and sheet.png to out_dir and return the report (bars.check_bars)."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for i, result in enumerate(results):
        others = [other.open_T for j, other in enumerate(results) if j != i] or [result.open_T.flip(0)]
        wrong = [correlation(result.read_T[: len(open_T)], open_T[: len(result.read_T)]) for open_T in others]
        result.row["wrong_corr"] = sum(wrong) / len(wrong)
    report = check_bars([result.row for result in results], bars)
    (out_dir / "report.json").write_text(json.dumps(report, indent=1))
    (out_dir / "report.md").write_text(table(report))
    _save_sheet([result.panel_3HW for result in results], out_dir / "sheet.png")
    return report


def _measure_all(reader: LipReader, clip: HeldOut, made: Tensor, vae: Tensor, fit_frames: int | None) -> tuple[Row, Tensor]:
    """All measures of one character but the correlation with other audio, and the mouth opening that was read."""
    read, mouth = reader.read(clip.truth_T3HW), mouth_box(made.shape[-1])
    row, open_T = measure(reader, clip, made, fit_frames=fit_frames)
    codec, _ = measure(reader, clip, vae, fit_frames=fit_frames)
    row |= {
        "gate": correlation(read[0], clip.open_T),
        "gate_wide": correlation(read[1], clip.wide_T),
        "eyes_gap": codec["eyes_psnr"] - row["eyes_psnr"],
        "vae_psnr": metrics.psnr(vae, clip.truth_T3HW),
        "vae_mouth_psnr": metrics.psnr(metrics.crop(vae, mouth), metrics.crop(clip.truth_T3HW, mouth)),
    }
    return row | {f"vae_{key}": value for key, value in codec.items()}, open_T


def table(report: dict[str, Any]) -> str:
    """The report as markdown: bars with pass or MISS, measures without a bar, one line per character."""
    lines = [f"{len(report['characters'])} held-out characters and voices: {'PASS' if report['pass'] else 'MISS'}", ""]
    lines += ["| measure | value | bar | | |", "|---|---|---|---|---|"]
    lines += [
        f"| {b['name']} | {b['value']:.3f} | {b['bar']} | {'pass' if b['pass'] else 'MISS'} | {b['says']} |" for b in report["bars"]
    ]
    lines += [
        "",
        "| without a bar | mean |",
        "|---|---|",
        *(f"| {key} | {value:.3f} |" for key, value in report["notes"].items()),
    ]
    keys = list(dict.fromkeys(bar.key for bar in BARS))
    lines += ["", f"| character | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    lines += [f"| {i} | {' | '.join(f'{row[key]:.3f}' for key in keys)} |" for i, row in enumerate(report["characters"])]
    return "\n".join(lines) + "\n"


def _panel(image_3HW: Tensor, made: Tensor, truth: Tensor) -> Tensor:
    """One character: the reference and eight generated frames; below, generated lips over true lips at the same moments."""
    size, last = image_3HW.shape[-1], min(len(made), len(truth)) - 1
    top, bottom, left, right = mouth_box(size)
    faces = torch.cat([image_3HW[None], made[torch.linspace(0, last, 8).long()]]).permute(1, 2, 0, 3).flatten(2)
    at = torch.linspace(0, last, faces.shape[-1] // (right - left)).long()
    lips = [rgb[at, :, top:bottom, left:right].permute(1, 2, 0, 3).flatten(2) for rgb in (made, truth)]
    return torch.cat([faces, *lips], 1)


def _save_sheet(panels: list[Tensor], path: Path) -> None:
    half = (len(panels) + 1) // 2
    columns = [torch.cat(part, 1) for part in (panels[:half], panels[half:]) if part]
    height = max(column.shape[1] for column in columns)
    columns = [torch.nn.functional.pad(column, (0, 8, 0, height - column.shape[1]), value=1.0) for column in columns]
    Image.fromarray(metrics.as_frames(torch.cat(columns, 2)[None])[0].numpy()).save(path)
