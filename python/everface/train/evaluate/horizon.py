"""`everface train evaluate --horizon SECONDS`: does the face last? One stream, and a look at it now, after 100 s, 1,000 s, 10,000 s.

An unseen character listens to a loop of unseen speech; every block of the stream is denoised, but only windows of it are decoded, after
the blocks before them that the decoder remembers. All windows begin with the loop and so hear the same: what differs between them is
drift, or the luck of the noise. The first loop and the last are looked at whole, so each of their windows has one that heard the same, and
how those pairs differ among themselves tells what luck is worth. The report is written after every window, so a run that is stopped leaves
the windows it came to.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everface.core.block import Block
from everface.core.config import FPS, SAMPLES_PER_FRAME, StreamConfig
from everface.core.log import log
from everface.train.engine.chart import draw_panels
from everface.train.evaluate import metrics
from everface.train.evaluate.held_out import Unseen, draw_unseen
from everface.train.evaluate.judge import Row, measure
from everface.train.evaluate.lip_reader import Reader
from everface.train.evaluate.stream import Stream, Studio, Ways
from everface.train.synthetic import voices

WINDOW_BLOCKS, LOOP_S = 42, 100.8  # of 20.16 s; a loop is five of them
SAY_EVERY_S = 30
Tell = Callable[[str], object]


class Held(NamedTuple):
    """How far the last window may be from the first: `share` of the first's value, or `within` of it in the measure's own unit."""

    share: float = 0.0
    within: float = 0.0

    def room(self, first: float) -> float:
        return max(self.share * abs(first), self.within)


# Colours and latents' mean lie about 0, so 2 % of their range and of the latents' deviation of 1 are meant. What is not here is shown only:
# 20 s hold about five blinks and a few sways of the head, whose number and size are luck from one window to the next: on the first
# bundled model neighbouring windows with the same sound had flickers of 1.88 to 2.04. The mean change and its error tell such luck from drift.
HELD = {
    "open_corr": Held(within=0.03), "lag": Held(within=0.0), "fit_psnr": Held(0.02), "sharpness": Held(0.02),
    "red": Held(within=0.04), "green": Held(within=0.04), "blue": Held(within=0.04), "latent_mean": Held(within=0.02),
    "latent_std": Held(0.02),
}  # fmt: skip
SHOWN = (*HELD, "wide_corr", "open_amplitude", "eyes_psnr", "motion", "blinks", "block_flicker")
MANY_FRAMES = 64  # of a window that the pose is fitted to


def begin_blocks(seconds: float, loop: int, window: int, block_s: float) -> list[int]:
    """First blocks of the windows: as many as fit into the first loop, then one after 1, 10, 100 ... loops, and the loop after `seconds` as the first."""
    loops = max(1, math.ceil(seconds / (loop * block_s)))
    near, tens = range(0, loop - window + 1, window), [10**k for k in range(12) if 10**k < loops]
    return [*near, *(loop * n for n in tens), *(loop * loops + begin for begin in near)]


@dataclass(frozen=True)
class Window:
    """What was seen of a stream: frames and latents of whole blocks from `first` on."""

    first: int
    frames_THW3: Tensor
    latents_16Fhw: Tensor


def windows(stream: Stream, sound: Iterable[Tensor], begins: list[int], length: int, tell: Tell = log.info) -> Iterator[Window]:
    """Run the stream and look at it where windows of `length` blocks begin; memory does not grow between them."""
    memory: deque[Block] = deque(maxlen=stream.studio.memory_blocks)
    frames: list[Tensor] = []
    latents: list[Tensor] = []
    begins, began, told = list(begins), time.monotonic(), time.monotonic()
    for block in stream.blocks(sound):
        if block.index == begins[0]:
            stream.tune_in(memory)
        if block.index >= begins[0]:
            frames.append(stream.show(block))
            latents.append(block.x.float().cpu())
        memory.append(block)
        if len(frames) == length:
            yield Window(begins.pop(0), torch.cat(frames), torch.cat(latents, dim=1))
            frames.clear()
            latents.clear()
            if not begins:
                return
        if time.monotonic() - told > SAY_EVERY_S:
            told, done = time.monotonic(), (block.index + 1) / (begins[-1] + length)
            tell(f"{block.pts / voices.RATE:.0f} s of the stream, {done:.1%}, {(told - began) * (1 / done - 1) / 60:.0f} minutes left")


def look(reader: Reader, one: Unseen, window: Window, block_frames: int, fit_frames: int | None = None) -> Row:
    """All figures of one window; `one` says what its mouth should do from the window's first frame on."""
    made = metrics.as_rgb(window.frames_THW3)
    row, _ = measure(reader, one, made, block_frames, fit_frames)
    row |= dict(zip(("red", "green", "blue"), made.mean((0, 2, 3)).tolist(), strict=True))
    z = window.latents_16Fhw
    return row | {"latent_mean": z.mean().item(), "latent_std": z.std().item()}


def drift(early: list[Row], late: list[Row]) -> dict[str, dict[str, Any]]:
    """The first of the `late` windows against the first of the `early` ones, measure by measure; `pass` only where it is held to something.
    All of them, in pairs that heard the same: `mean_change`, and `error`, its standard error (0 of a single pair)."""
    first, last, report = early[0], late[0], {}
    for key in SHOWN:
        change, held = last[key] - first[key], HELD.get(key)
        changes = [b[key] - a[key] for a, b in zip(early, late, strict=False)]
        error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
        report[key] = {"first": first[key], "last": last[key], "change": change, "mean_change": statistics.fmean(changes), "error": error}
        if held is not None:
            report[key] |= {"room": held.room(first[key]), "pass": abs(change) <= held.room(first[key])}
    return report


def horizon(
    studio: Studio, reader: Reader, sound_S: Tensor, seconds: float, out: Path, ways: Ways | None = None, seed: int = 0,
    window: int = WINDOW_BLOCKS, tell: Tell = log.info,
) -> dict[str, Any]:  # fmt: skip
    """One stream of `seconds` and a loop more, over and over the sound, which must be whole blocks long and longer than a window.
    Writes horizon.json, horizon.md and horizon.png after every window and returns the report."""
    out.mkdir(parents=True, exist_ok=True)
    frames, block_s = window * studio.block_frames, studio.block_frames / FPS
    loop_frames = len(sound_S) // SAMPLES_PER_FRAME
    # The mouth's rule has a memory: at 0 the loop comes out of silence, later out of its own end. The face it is drawn on is the same.
    size = studio.config.size[0] if studio.config.size else 128
    twice = draw_unseen([torch.cat([sound_S, sound_S])], seed, size)[0]
    first = twice.part(0, frames)
    rows: list[Row] = []
    report: dict[str, Any] = {}
    began = time.monotonic()
    with studio.stream(first.picture_3HW, StreamConfig(), ways) as stream:
        begins = begin_blocks(seconds, loop_frames // studio.block_frames, window, block_s)
        near = sum(begin * studio.block_frames < loop_frames for begin in begins)
        for seen in windows(stream, chain.from_iterable(repeat(sound_S.split(voices.RATE // 2))), begins, window, tell):
            at_s, frame = seen.first * block_s, seen.first * studio.block_frames
            heard = twice.part(frame if frame < loop_frames else loop_frames + frame % loop_frames, frames)
            due = replace(first, open_T=heard.open_T, wide_T=heard.wide_T)
            rows.append({"seconds": at_s} | look(reader, due, seen, studio.block_frames, MANY_FRAMES))
            tell(f"{at_s:.0f} s: " + " ".join(f"{k} {rows[-1][k]:.3f}" for k in SHOWN))
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
    draw_panels(out / "horizon.png", points, "log10 of the seconds before the window; shaded: what the last may be", bands)


def table(report: dict[str, Any]) -> str:
    """As markdown: a column a window, how far the last loop's first is from the first and whether it may be, and how far those loops are apart."""
    rows = report["windows"]
    verdict = ("PASS" if report["pass"] else "MISS") if report["complete"] else f"stopped after {len(rows)} windows"
    lines = [f"One stream over {report['seconds']:g} s: {verdict}", ""]
    lines += ["| measure | " + " | ".join(f"{row['seconds']:.0f} s" for row in rows) + " | change | may | | loops' mean change |", "|---" * (len(rows) + 5) + "|"]
    for key, d in report["drift"].items():
        held = f"{d['room']:.3f} | {'pass' if d['pass'] else 'MISS'}" if "room" in d else " | shown only"
        mean = f"{d['mean_change']:+.3f} +- {d['error']:.3f}"
        lines.append(f"| {key} | " + " | ".join(f"{row[key]:.3f}" for row in rows) + f" | {d['change']:+.3f} | {held} | {mean} |")
    return "\n".join(lines) + "\n"
