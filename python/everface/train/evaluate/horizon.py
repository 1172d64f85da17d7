"""`everface train evaluate --horizon SECONDS`: does a stream last? Its windows at the start, after 100 s, 1,000 s, 10,000 s are compared.

A held-out person listens to a loop of held-out speech. Every block is denoised, but only windows are decoded. All windows begin with the
loop, so their audio is the same: what differs between them is drift, or chance. The first and the last loop are measured completely, so each
of their windows has a partner with the same audio, and the differences of those pairs among themselves show the effect of chance. The report
is written after every window, so a run that is stopped leaves the windows it has.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, StreamConfig
from everface.core.log import log
from everface.train.engine.chart import draw_panels
from everface.train.evaluate.bars import Row
from everface.train.evaluate.held_out import HeldOut, HeldOutClip, draw_held_out
from everface.train.evaluate.offline_stream import OfflineModel, StreamVariant
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.stream_windows import Report, decode_windows, measure_window

WINDOW_BLOCKS, LOOP_S = 42, 100.8  # of 20.16 s; a loop is five windows
FIT_FRAMES = 64  # of a window, that the pose is fitted to


class Tolerance(NamedTuple):
    """How far the last window may be from the first: `share` of the first's value, or `within`, in the measure's unit."""

    share: float = 0.0
    within: float = 0.0

    def room(self, first: float) -> float:
        return max(self.share * abs(first), self.within)


# Colors and the latents' mean are near 0, so their 2 % is of their range and of the latents' deviation of 1. Other measures are only shown:
# 20 s hold about five blinks and a few sways of the head; their number and size vary by chance. On the first bundled model neighboring
# windows with the same audio had flickers of 1.88 to 2.04. The mean change and its error separate chance from drift.
TOLERANCES = {
    "open_corr": Tolerance(within=0.03), "lag": Tolerance(within=0.0), "fit_psnr": Tolerance(0.02), "sharpness": Tolerance(0.02),
    "red": Tolerance(within=0.04), "green": Tolerance(within=0.04), "blue": Tolerance(within=0.04), "latent_mean": Tolerance(within=0.02),
    "latent_std": Tolerance(0.02),
}  # fmt: skip
SHOWN = (*TOLERANCES, "wide_corr", "open_amplitude", "eyes_psnr", "motion", "blinks", "block_flicker")


def window_begins(seconds: float, loop: int, window: int, block_s: float) -> list[int]:
    """First blocks of the windows: all that fit into the first loop, one after 1, 10, 100 ... loops, and all of the loop after `seconds`.
    `loop` and `window` are in blocks."""
    loops = max(1, math.ceil(seconds / (loop * block_s)))
    near, tens = range(0, loop - window + 1, window), [10**k for k in range(12) if 10**k < loops]
    return [*near, *(loop * n for n in tens), *(loop * loops + begin for begin in near)]


def drift(early: list[Row], late: list[Row]) -> dict[str, dict[str, Any]]:
    """The first of the `late` windows against the first of the `early` ones, measure by measure; `pass` where there is a tolerance.

    Over all pairs with the same audio: `mean_change`, and `error`, its standard error (0 for a single pair).
    """
    first, last, report = early[0], late[0], {}
    for key in SHOWN:
        change, tolerance = last[key] - first[key], TOLERANCES.get(key)
        changes = [b[key] - a[key] for a, b in zip(early, late, strict=False)]
        error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
        report[key] = {"first": first[key], "last": last[key], "change": change, "mean_change": statistics.fmean(changes), "error": error}
        if tolerance is not None:
            report[key] |= {"room": tolerance.room(first[key]), "pass": abs(change) <= tolerance.room(first[key])}
    return report


Truth = Callable[[int, int], HeldOut]
"""(first frame, frames) of the repeated audio -> the person with its true mouth there, and with the true frames of the first window."""


def drawn_truth(audio_S: Tensor, size: int, seed: int = 0) -> Truth:
    """Of a drawn character."""
    loop_frames = len(audio_S) // SAMPLES_PER_FRAME
    # The rule of the mouth is a low-pass filter: at 0 the loop follows silence, later its own end. The character is the same.
    twice = draw_held_out([torch.cat([audio_S, audio_S])], seed, size)[0]

    def truth(first: int, frames: int) -> HeldOutClip:
        here = twice.part(first if first < loop_frames else loop_frames + first % loop_frames, frames)
        return replace(twice.part(0, frames), open_T=here.open_T, wide_T=here.wide_T)

    return truth


def evaluate_horizon(
    model: OfflineModel, reader: LipReader, truth: Truth, audio_S: Tensor, seconds: float, out: Path, variant: StreamVariant | None = None,
    window: int = WINDOW_BLOCKS, fit_frames: int = FIT_FRAMES, progress: Report = log.info,
) -> dict[str, Any]:  # fmt: skip
    """One stream of `seconds` and a loop more over the repeated audio, which must be whole blocks long and longer than a window.

    Writes horizon.json, horizon.md and horizon.png after every window and returns the report.
    """
    out.mkdir(parents=True, exist_ok=True)
    frames, block_s = window * model.block_frames, model.block_frames / FPS
    loop_frames = len(audio_S) // SAMPLES_PER_FRAME
    rows: list[Row] = []
    report: dict[str, Any] = {}
    began = time.monotonic()
    with model.stream(truth(0, frames).image_3HW, StreamConfig(), variant) as stream:
        begins = window_begins(seconds, loop_frames // model.block_frames, window, block_s)
        near = sum(begin * model.block_frames < loop_frames for begin in begins)
        audio = chain.from_iterable(repeat(audio_S.split(SAMPLE_RATE // 2)))
        for seen in decode_windows(stream, audio, begins, window, progress):
            at_s, clip = seen.first * block_s, truth(seen.first * model.block_frames, frames)
            rows.append({"seconds": at_s} | measure_window(reader, clip, seen, model.block_frames, fit_frames))
            progress(f"{at_s:.0f} s: " + " ".join(f"{k} {rows[-1][k]:.3f}" for k in SHOWN))
            report = {"seconds": seconds, "windows": rows, "complete": len(rows) == len(begins), "took_s": time.monotonic() - began}
            report["drift"] = drift(rows[:near], rows[len(begins) - near :] or rows[-1:])
            report["pass"] = report["complete"] and all(d.get("pass", True) for d in report["drift"].values())
            write(report, out)
    return report


def write(report: dict[str, Any], out: Path) -> None:
    rows = report["windows"]
    (out / "horizon.json").write_text(json.dumps(report, indent=1))
    (out / "horizon.md").write_text(table(report))
    points = {key: [(math.log10(max(row["seconds"], 1.0)), row[key]) for row in rows] for key in SHOWN}
    bands = {key: (rows[0][key] - d["room"], rows[0][key] + d["room"]) for key, d in report["drift"].items() if "room" in d}
    draw_panels(out / "horizon.png", points, "log10 of the seconds before the window; shaded: tolerance of the last", bands)


def table(report: dict[str, Any]) -> str:
    """As markdown: a column for each window, the change of the last loop's first window and its tolerance, and the loops' mean change."""
    rows = report["windows"]
    verdict = ("PASS" if report["pass"] else "MISS") if report["complete"] else f"stopped after {len(rows)} windows"
    lines = [f"One stream over {report['seconds']:g} s: {verdict}", ""]
    lines += ["| measure | " + " | ".join(f"{row['seconds']:.0f} s" for row in rows) + " | change | tolerance | | loops' mean change |"]
    lines += ["|---" * (len(rows) + 5) + "|"]
    for key, d in report["drift"].items():
        held = f"{d['room']:.3f} | {'pass' if d['pass'] else 'MISS'}" if "room" in d else " | shown only"
        mean = f"{d['mean_change']:+.3f} +- {d['error']:.3f}"
        lines.append(f"| {key} | " + " | ".join(f"{row[key]:.3f}" for row in rows) + f" | {d['change']:+.3f} | {held} | {mean} |")
    return "\n".join(lines) + "\n"
