"""The report of a run: means over clips, by window, as JSON and as Markdown beside the paper's tables 2, 5 and 7."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import msgspec
import torch

from everface import __version__
from everface.avatar.bench import cpu_name
from everface.core.errors import BadInput
from everface.genbench.clips.live_latency import SPEECH, LatencyRecord
from everface.genbench.clips.runner import ClipRecord
from everface.genbench.measures import COLUMNS, MEASURES, TABLE_2, TABLE_5, TABLE_7
from everface.genbench.scoring import ClipScore

SHOWN = ("weights", "lora", "size", "seed", "sampler", "dtype", "device", "placement", "threads", "seconds")  # of the settings


class Statistic(msgspec.Struct):
    """Of one measure over clips. `off`: mean distance from the measure's ideal, if it has one: offsets of 5 and -5 have a good mean."""

    mean: float
    least: float
    most: float
    clips: int
    off: float | None = None


class GenBenchReport(msgspec.Struct):
    """A whole run."""

    system: str
    set_name: str
    settings: dict[str, object]
    environment: dict[str, str]
    clips: int
    failures: dict[str, str]
    measures: dict[str, Statistic]  # of quality over first windows, of speed over clips
    windows: dict[str, dict[str, Statistic]]  # by the window's first second
    missing: dict[str, str]


def summarize(
    system: str, set_name: str, settings: dict[str, object], records: list[ClipRecord], scores: list[ClipScore], latency: LatencyRecord | None = None
) -> GenBenchReport:
    """The report of clips, their scores and what a live session was measured at."""
    failures = {record.id: record.error for record in records if record.error} | {score.id: score.error for score in scores if score.error}
    begins = sorted({window.begin_s for score in scores for window in score.windows})
    latency, made = latency or LatencyRecord(), [record for record in records if not record.error]
    quality = {begin: [w.measures for s in scores for w in s.windows if w.begin_s == begin] for begin in begins}
    measures = _statistics(quality.get(0.0, [])) | _statistics([record.speed for record in made]) | _statistics([latency.measures])
    windows = {f"{begin:g}": _statistics([*rows, *(r.windows.get(f"{begin:g}", {}) for r in made)]) for begin, rows in quality.items()}
    missing = {name: reason for score in scores for window in score.windows for name, reason in window.missing.items() if name not in measures}
    if latency.error:
        missing |= dict.fromkeys(SPEECH, latency.error)
    return GenBenchReport(system, set_name, settings, environment(), len(records), failures, _ordered(measures), windows, missing)


def _statistics(rows: list[dict[str, float]]) -> dict[str, Statistic]:
    found = dict[str, Statistic]()
    for name in {name for row in rows for name in row}:
        values = [row[name] for row in rows if name in row]
        ideal = MEASURES[name].ideal
        off = None if ideal is None else statistics.fmean(abs(value - ideal) for value in values)
        found[name] = Statistic(statistics.fmean(values), min(values), max(values), len(values), off)
    return _ordered(found)


def _ordered(found: dict[str, Statistic]) -> dict[str, Statistic]:
    return {name: found[name] for name in MEASURES if name in found}


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"everface": __version__, "commit": _commit(), "torch": str(torch.__version__), "cpu": cpu_name(), "gpu": device}


def _commit() -> str:
    """The commit of the source tree, with + if it was changed; "" for an installed package."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def read_report(path: Path) -> GenBenchReport:
    """A report.json, or the one in a folder. Raises BadInput."""
    path = path / "report.json" if path.is_dir() else path
    try:
        return msgspec.json.decode(path.read_bytes(), type=GenBenchReport)
    except OSError as error:
        raise BadInput(f"there is no report at {path} ({error.strerror}): make one with `everface genbench run` or `report`") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"{path} is no report of genbench ({error}): name a report.json or its folder") from None


def figure(name: str, value: float) -> str:
    """A measure's value with its digits."""
    return f"{value:.{MEASURES[name].digits}f}"


def to_markdown(report: GenBenchReport) -> str:
    """Tables of the report, with the paper's."""
    lines = [f"# GenBench: {report.system} on {report.set_name}", "", *(f"{line}\n" for line in describe_run(report))]
    if report.measures:
        lines += ["| measure | mean | least | most | clips |", "|---|---|---|---|---|"]
    for name, s in report.measures.items():
        lines.append(f"| {MEASURES[name].title} | {figure(name, s.mean)} | {figure(name, s.least)} | {figure(name, s.most)} | {s.clips} |")
    lines += [f"| {titles} | not available: {reason} | | | |" for titles, reason in group_missing(report)]
    if len(report.windows) > 1:
        head, *rows = (f"| {' | '.join(row)} |" for row in window_table(report))
        lines += ["", "## Windows", "", head, "|---|" + "---|" * len(report.windows), *rows]
    if report.failures:
        lines += ["", "## Failures", "", *(f"- `{id}`: {error}" for id, error in report.failures.items())]
    if not report.measures:
        return "\n".join([*lines, ""])
    about = [f"- {MEASURES[name].title}: {MEASURES[name].about}." for name in MEASURES if name in report.measures]
    return "\n".join([*lines, "", *_paper_tables(report), "", "## What was measured", "", *about, ""])


def describe_run(report: GenBenchReport) -> list[str]:
    """How many clips, where, and with what settings, as sentences."""
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items() if value)
    lines = [f"{report.clips - len(report.failures)} of {report.clips} clips. Mean, least and most are over clips. {machine}."]
    settings = list_settings(report.settings)
    return [*lines, f"Settings: {settings}."] if settings else lines


def list_settings(settings: dict[str, object]) -> str:
    """Those that a reader asks for first; report.json has all."""
    return ", ".join(f"{name} {settings[name]}" for name in SHOWN if settings.get(name))


def group_missing(report: GenBenchReport) -> list[tuple[str, str]]:
    """(titles, reason) of measures that are not available, one row a reason."""
    reasons = dict.fromkeys(report.missing.values())
    return [(" · ".join(MEASURES[name].title for name in MEASURES if report.missing.get(name) == reason), reason) for reason in reasons]


def window_table(report: GenBenchReport) -> list[list[str]]:
    """Rows of cells, the first of titles: the means of every window."""
    begins = list(report.windows)
    rows = [["measure", *(f"{float(begin):g}-{float(begin) + 10:g} s" for begin in begins)]]
    for name in MEASURES:
        if any(name in window for window in report.windows.values()):
            cells = (figure(name, report.windows[begin][name].mean) if name in report.windows[begin] else "" for begin in begins)
            rows.append([MEASURES[name].title, *cells])
    return rows


def _paper_tables(report: GenBenchReport) -> list[str]:
    """The paper's figures are of other images, voices and sizes: beside ours for orientation, not for ranking."""
    by_column = {measure.paper: name for name, measure in MEASURES.items() if measure.paper}

    def ours(columns: tuple[str, ...], measures: dict[str, Statistic]) -> str:
        names = [by_column.get(column, "first_frame_s") for column in columns]
        return " | ".join(figure(name, measures[name].mean) if name in measures else "n/a" for name in names)

    lines = ["## Beside the paper", "", "The paper's figures are of its own set, which was not published, and of larger videos: orientation, not a ranking.", ""]
    for kind in TABLE_2 if report.set_name not in TABLE_2 else (report.set_name,):
        lines += [f"Table 2, {kind}:", "", f"| model | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
        lines += [f"| {model} | {' | '.join(f'{v:g}' for v in row)} |" for model, row in TABLE_2[kind].items()]
        lines += [f"| **this run** | {ours(COLUMNS, report.measures)} |", ""]
    five = (*COLUMNS[:5], "first frame, s")
    lines += ["Table 5, steps:", "", f"| | {' | '.join(five)} |", "|---|" + "---|" * len(five)]
    lines += [f"| {steps} | {' | '.join(f'{v:g}' for v in row)} |" for steps, row in TABLE_5.items()]
    lines += [f"| **this run** | {ours(five, report.measures)} |", ""]
    seven = ("ASE", "IQA", "Sync-C", "Dino-S")
    lines += ["Table 7, windows:", "", f"| | {' | '.join(seven)} |", "|---|" + "---|" * len(seven)]
    for begin, row in TABLE_7.items():
        lines.append(f"| {begin}-{begin + 10} s | {' | '.join(f'{v:g}' for v in row)} |")
        if f"{begin}" in report.windows:
            lines.append(f"| **this run** | {ours(seven, report.windows[str(begin)])} |")
    return lines
