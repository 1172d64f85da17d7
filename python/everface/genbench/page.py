"""What people look at: a contact sheet over time (PNG), measures by window (PNG), and an HTML page that plays the clips."""

from __future__ import annotations

import contextlib
import html
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from everface.core.errors import BadInput
from everface.genbench.clips.runner import ClipRecord
from everface.genbench.manifest import BenchmarkSet, Sample
from everface.genbench.measures import MEASURES
from everface.genbench.report import GenBenchReport, describe_run, figure, group_missing, window_table
from everface.genbench.scoring import ClipScore
from everface.media.image import read_image
from everface.media.video import probe_video, read_frames
from everface.train.engine.chart import draw_panels

SHEET_CLIPS, SHEET_FRAMES, TILE = 16, 8, 128  # rows, columns, pixels
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:left}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:1.2em}
.clips video{width:100%;background:#000}.clips p,details{margin:.2em 0;font-size:13px}.failed{color:#a00}img{max-width:100%}
.n{text-align:right}.w{color:#666;font-size:13px}"""
HEADINGS = {"sheet.png": "Each clip's image, and frames over its length", "windows.png": "Over the stream"}
TELLING = ("lip_corr", "lip_lag", "sync_c", "av_offset", "dino_s", "iqa", "motion")  # of a clip


def write_page(report: GenBenchReport, records: list[ClipRecord], scores: list[ClipScore], benchmark: BenchmarkSet, out: Path) -> list[Path]:
    """Write sheet.png, report.html and, for more than one window, windows.png. Returns their paths."""
    by_id = {score.id: score for score in scores}
    made = [record for record in records if record.id in by_id and not by_id[record.id].error]
    paths = list[Path]()
    if made:
        paths.append(draw_sheet(made[:SHEET_CLIPS], benchmark, out / "sheet.png"))
    if len(report.windows) > 1:
        paths.append(_draw_windows(report, out / "windows.png"))
    page = out / "report.html"
    page.write_text(_to_html(report, records, by_id, benchmark, out, [path.name for path in paths]))
    return [*paths, page]


def draw_sheet(records: list[ClipRecord], benchmark: BenchmarkSet, path: Path) -> Path:
    """A row a clip: its image, then frames evenly over its whole length."""
    samples = {sample.id: sample for sample in benchmark.samples}
    sheet = Image.new("RGB", (TILE * (SHEET_FRAMES + 1), TILE * len(records)), "white")
    for row, record in enumerate(records):
        reference = read_image(benchmark.image(samples[record.id]))
        for column, frame in enumerate([reference, *_spread(Path(record.video), SHEET_FRAMES)]):
            tile = Image.fromarray(frame)
            tile.thumbnail((TILE, TILE), Image.Resampling.BILINEAR)
            sheet.paste(tile, (TILE * column + (TILE - tile.width) // 2, TILE * row + (TILE - tile.height) // 2))
    sheet.save(path)
    return path


def _spread(video: Path, count: int) -> list[np.ndarray]:
    """Frames evenly over a video, the last one among them; fewer where it is damaged behind the windows that were measured."""
    spread = list[np.ndarray]()
    with contextlib.suppress(BadInput):
        wanted = {round(i) for i in np.linspace(0, max(0, probe_video(video).frames - 1), count)}
        spread.extend(frame for i, frame in enumerate(read_frames(video)) if i in wanted)
    return spread


def _draw_windows(report: GenBenchReport, path: Path) -> Path:
    panels = {
        MEASURES[name].title: [(float(begin), window[name].mean) for begin, window in report.windows.items() if name in window]
        for name in MEASURES
        if any(name in window for window in report.windows.values())
    }
    return draw_panels(path, panels, "seconds of the stream")


def _to_html(
    report: GenBenchReport, records: list[ClipRecord], scores: dict[str, ClipScore], benchmark: BenchmarkSet, out: Path, images: list[str]
) -> str:
    title = html.escape(f"GenBench: {report.system} on {report.set_name}")
    about = "".join(f"<p>{html.escape(line)}" for line in describe_run(report))
    samples = {sample.id: sample for sample in benchmark.samples}
    clips = [_clip(record, samples[record.id], scores.get(record.id), out) for record in records]
    pictures = "".join(f'<h2>{HEADINGS[name]}</h2><img src="{name}" alt="{HEADINGS[name]}">' for name in images)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{about}'
        f"<table><tr><th>measure<th>mean<th>least<th>most<th>clips<th>what it is{''.join(_rows(report))}</table>"
        f'{_windows(report)}<h2>Clips</h2><div class="clips">{"".join(clips)}</div>{pictures}</html>\n'
    )


def _rows(report: GenBenchReport) -> list[str]:
    rows = [
        f"<tr><td>{MEASURES[n].title}{_numbers(figure(n, s.mean), figure(n, s.least), figure(n, s.most), str(s.clips))}"
        f'<td class="w">{html.escape(MEASURES[n].about)}'
        for n, s in report.measures.items()
    ]
    return rows + [f'<tr><td>{titles}<td colspan="5" class="w">not available: {html.escape(reason)}' for titles, reason in group_missing(report)]


def _numbers(*cells: str) -> str:
    return "".join(f'<td class="n">{cell}' for cell in cells)


def _windows(report: GenBenchReport) -> str:
    """The table by window, if there is more than one."""
    if len(report.windows) < 2:
        return ""
    head, *rows = window_table(report)
    cells = "".join(f"<tr><td>{title}{_numbers(*values)}" for title, *values in rows)
    return f"<h2>Windows of the stream</h2><table><tr><th>{'<th>'.join(head)}{cells}</table>"


def _clip(record: ClipRecord, sample: Sample, score: ClipScore | None, out: Path) -> str:
    """A video with its most telling figures; the others unfold."""
    about = html.escape(" · ".join(part for part in (record.id, sample.tags.style, sample.tags.language) if part))
    if error := record.error or (score.error if score else ""):
        return f'<div><b>{about}</b><p class="failed">{html.escape(error)}</div>'
    measures = score.windows[0].measures if score and score.windows else {}
    few = " · ".join(f"{MEASURES[n].title} {figure(n, measures[n])}" for n in TELLING if n in measures)
    others = "<br>".join(f"{MEASURES[n].title} {figure(n, measures[n])}" for n in MEASURES if n in measures)
    source = quote(os.path.relpath(record.video, out)) + "#t=0.04"  # so that the first frame is shown, not black
    return (
        f'<div><video controls preload="metadata" src="{source}"></video><b>{about}</b><p>{html.escape(few)}'
        f"<details><summary>all figures</summary>{others}</details></div>"
    )
