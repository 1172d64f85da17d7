"""Runs every profile over the same clips with the same seed, and publishes its distance from the exact one as JSON and Markdown."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch

from everface.core.config import Deployment, StreamConfig
from everface.genbench.build import open_set
from everface.genbench.clips.systems import EverfaceSystem
from everface.genbench.profiles.distance import FrameDistances, compare_frames, psnr, read_raw
from everface.genbench.profiles.offered import Profile, offered_profiles
from everface.genbench.report import GenBenchReport, list_settings
from everface.genbench.scoring import MetricWeights
from everface.genbench.session import Steps, run
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, KV_PROFILE


class ProfileRow(msgspec.Struct):
    """One profile. PSNR in dB, None where no pixel differs; ratios are to the exact profile. A lag is the largest of a clip, in frames."""

    name: str
    clips: int = 0
    frames: int = 0
    psnr: float | None = None
    psnr_worst_frame: float | None = None
    ssim: float | None = None
    ssim_worst_frame: float | None = None
    lip_corr: float | None = None
    lip_lag: float | None = None
    motion_ratio: float | None = None
    speed_ratio: float | None = None
    fps: float | None = None
    note: str = ""
    missing: str = ""  # why there are no figures


class ProfileReport(msgspec.Struct):
    """All profiles. `load`: the machine's load average before; above 0.5, distrust the speeds."""

    set_name: str
    settings: dict[str, object]
    environment: dict[str, str]
    load: float
    rows: list[ProfileRow]


def publish_profiles(
    stream: StreamConfig, deployment: Deployment, model: tuple[Path | None, Path | None], set_name: str, out: Path, cache: Path,
    limit: int | None, seconds: float | None, steps: Steps,
) -> ProfileReport:  # fmt: skip
    """Run all profiles of a model (weights, LoRA), each into its folder of `out`, and write profiles.json and profiles.md there.

    Raises BadInput.
    """
    load, (profiles, absent) = os.getloadavg()[0], offered_profiles(stream, deployment, (Path(model[0] or DEFAULT_WEIGHTS) / KV_PROFILE).is_file())
    ids = [sample.id for sample in open_set(set_name, cache, limit, lambda done, many: steps("set", many, "", 0)).samples]
    runs = [
        run(
            EverfaceSystem(asdict(p.stream), asdict(p.deployment), *model, raw=True), set_name, out / p.name, cache, limit, seconds,
            MetricWeights(), lambda phase, many, thing, frames: steps(phase, many * len(profiles), thing, frames),
        )
        for p in profiles
    ]  # fmt: skip
    rows = [_row(profile, made, runs[0], ids, out) for profile, made in zip(profiles, runs)]
    rows += [ProfileRow(name, missing=reason) for name, reason in absent.items()]
    report = ProfileReport(runs[0].set_name, runs[0].settings, runs[0].environment, load, rows)
    (out / "profiles.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    (out / "profiles.md").write_text(to_markdown(report))
    return report


def _row(profile: Profile, made: GenBenchReport, exact: GenBenchReport, ids: list[str], out: Path) -> ProfileRow:
    row, distances = ProfileRow(profile.name, note=profile.note), list[FrameDistances]()
    both = [id for id in ids if id not in made.failures and id not in exact.failures]
    if not both:
        row.missing = "; ".join({**exact.failures, **made.failures}.values())
        return row
    for id in both:
        videos = (out / name / "clips" / f"{id}.mp4" for name in (profile.name, "exact"))
        distances.append(compare_frames(*map(read_raw, videos)))
    mse_T, ssim_T = torch.cat([d.mse_T for d in distances]), torch.cat([d.ssim_T for d in distances])
    row.clips, row.frames = len(both), len(mse_T)
    row.psnr, row.psnr_worst_frame = psnr(mse_T.mean().item()), psnr(mse_T.max().item())
    row.ssim, row.ssim_worst_frame = ssim_T.mean().item(), ssim_T.min().item()
    ours, theirs = made.measures, exact.measures
    if "lip_corr" in ours and "lip_lag" in ours:
        row.lip_corr, row.lip_lag = ours["lip_corr"].mean, max((ours["lip_lag"].least, ours["lip_lag"].most), key=abs)
    row.fps, row.speed_ratio = ours["fps"].mean, ours["fps"].mean / theirs["fps"].mean
    row.motion_ratio = ours["motion"].mean / theirs["motion"].mean if theirs["motion"].mean else None
    return row


COLUMNS = {
    "PSNR, dB": ("psnr", 1), "worst frame": ("psnr_worst_frame", 1), "SSIM": ("ssim", 4), "its worst frame": ("ssim_worst_frame", 4),
    "lip correlation": ("lip_corr", 3), "lip lag": ("lip_lag", 0), "motion": ("motion_ratio", 3), "speed": ("speed_ratio", 2),
}  # fmt: skip


def to_markdown(report: ProfileReport) -> str:
    """The table, with what has to be known to read it."""
    first = report.rows[0]
    lines = ["# Accelerated profiles beside the exact one", ""]
    clips = f"{first.clips} clip{'s' * (first.clips != 1)} of the set {report.set_name}, {first.frames} frames, before any video encoder"
    lines += [f"{clips}. PSNR and SSIM are to the first row, motion and speed are ratios to it; the lag is the largest of a clip.", ""]
    lines += [f"| profile | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    notes = list(dict.fromkeys(row.note for row in report.rows if row.note))
    for row in report.rows:
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        cells = [f"{row.missing}" + " |" * (len(COLUMNS) - 1)] if row.missing else [_cell(row, *column) for column in COLUMNS.values()]
        lines.append(f"| {row.name}{mark} | {' | '.join(cells)} |")
    lines += ["", *(f"({number}) {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1))]
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items() if value)
    return "\n".join([*lines, "", f"The first row: {list_settings(report.settings)}.", "", f"{machine}; load average before: {report.load:.1f}.", ""])


def _cell(row: ProfileRow, name: str, digits: int) -> str:
    value = getattr(row, name)
    if value is None:
        return "no difference" if name.startswith("psnr") else "not available"
    return f"{value:.{digits}f}"
