"""Terminal output of a render: a progress bar while it runs, a table of figures at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from everface.core.standard_streams import escape, print_line, print_output

if TYPE_CHECKING:
    from rich.progress import Progress

    from everface.avatar.jobs import Job
    from everface.avatar.render import RenderReport
    from everface.models.live_avatar.step_costs import StepCost
    from everface.models.live_talk.forecast import Card
    from everface.runtime.planning.forecast import Forecast


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int | None, float], None] | None]:
    """Yields a function of (frames done, frames in all, fps) that moves a bar; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("frames, {task.fields[fps]:.1f} fps,"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None, fps=0.0)
    with contextlib.suppress(OSError):  # the terminal is gone: the work goes on
        bar.start()
    try:
        yield lambda frames, total, fps: bar.update(task, completed=frames, total=total, fps=fps)
    finally:
        with contextlib.suppress(OSError):
            bar.stop()


class _BatchBar:
    """A bar of jobs and one of the frames of the present job, on a terminal; and in any case one line a job."""

    def __init__(self, jobs: int, bar: Progress | None) -> None:
        self._jobs, self._bar, self._count = jobs, bar, 0
        self._tasks = [bar.add_task(name, total=total, visible=True) for name, total in (("videos", jobs), ("frames", None))] if bar else []

    @property
    def progress(self) -> Callable[[int, int | None, float], None] | None:
        return self._update if self._bar else None

    def finished(self, job: Job, report: RenderReport | None, error: str | None) -> None:
        self._count += 1
        where = f"[{self._count}/{self._jobs}]"
        if error:
            print_line(f"everface: {where} line {job.line}, {job.out}: {error}")
        else:
            figures = "was there" if report is None else f"{report.frames} frames, {report.fps:.1f} fps"
            print_output(f"{where} {escape(job.out)}: {figures}")
        if self._bar:
            self._bar.update(self._tasks[0], completed=self._count)
            self._bar.update(self._tasks[1], completed=0, total=None)

    def _update(self, frames: int, total: int | None, fps: float) -> None:
        if self._bar:
            self._bar.update(self._tasks[1], completed=frames, total=total)


@contextmanager
def batch_bar(jobs: int) -> Iterator[_BatchBar]:
    """Prints a line for every job, and moves bars if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield _BatchBar(jobs, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with contextlib.suppress(OSError):
        bar.start()
    try:
        yield _BatchBar(jobs, bar)
    finally:
        with contextlib.suppress(OSError):
            bar.stop()


def print_report(report: RenderReport) -> None:
    """Print the figures of a render, which is complete, whether or not they can be printed."""
    rows = {
        "video": f"{escape(report.out)} ({report.width}x{report.height}, {report.seconds:.2f} s)",
        "frames": f"{report.frames}",
        "speed": f"{report.fps:.1f} frames per second, {report.render_s:.1f} s in all, decoding and MP4 included",
        "first frame": f"{report.first_frame_s:.2f} s after the first audio",
        "placement": f"{report.placement}, sampler {report.sampler}, compat {report.compat}",
        "seed": f"{report.seed}",
        **({"signed": "yes, as everface verify shows"} if report.signed else {}),
    }
    error = print_output("\n".join(f"{name:<12} {value}" for name, value in rows.items()))
    if error and not error.reader_gone:
        print_line(f"everface: the figures cannot be printed ({error.strerror}), but the video is complete in {report.out}")


def print_live_talk(rows: Sequence[tuple[Card, float, float, float, Sequence[Forecast]]], sessions: int) -> None:
    """Print frames a second of LiveTalk on the cards of its forecast, and where their rates are from."""
    from everface.models.live_talk.forecast import SIZE
    from everface.models.live_talk.names import FPS

    print(
        f"LiveTalk-1.3B at {SIZE[1]}x{SIZE[0]}, {sessions} session(s): four forwards, decoding beside the clean forward. Real time is {FPS} frames per second.\n"
        "Everything is forecast, from counted operations over the rates below; audio features left out.\n"
    )
    devices = "".join(f"{f'{n + 1} device' + 's' * (n > 0):>12}" for n in range(len(rows[0][4])))
    print(f"{'card':<18} {'forward ms':>10} {'decode ms':>9} {'first frame ms':>14}{devices}")
    for card, step_ms, decode_ms, first_ms, forecasts in rows:
        cells = "".join(f"{f.fps:12.1f}" for f in forecasts)
        print(f"{card.name:<18} {step_ms:10.1f} {decode_ms:9.1f} {first_ms:14.0f}{cells}")
    print()
    for card, *_ in rows:
        print(f"{card.name:<18} linear {card.linear:g}, attention {card.attention:g}, decoder {card.decoder:g} TFLOP/s: {card.source}")


def print_forecasts(rows: Sequence[tuple[str, StepCost, Sequence[Forecast]]], steps: int, sessions: int) -> None:
    """Print frames a second and first frame of every configuration on 1, 2, .. devices, and which terms are measured."""
    from everface.models.live_avatar.step_costs import GPU, MEASURED_SESSIONS, Rates

    print(
        f"{steps} steps and the decoder of the 14B model at 704x384, {sessions} session(s), on {GPU}s (docs/tuning.md).\n"
        "Each cell is forecast: frames per second, first frame in seconds; audio features left out.\n"
    )
    devices = "".join(f"{f'{n + 1} device' + 's' * (n > 0):>14}" for n in range(len(rows[0][2])))
    print(f"{'configuration':<22} {'step ms':>8} {'measured':>9} {'decode ms':>9}{devices}")
    for name, cost, forecasts in rows:
        cells = "".join(f"{f'{f.fps:.1f}':>8} {f.first_frame_ms / 1e3:5.2f}" for f in forecasts)
        measured = "-" if cost["measured_ms"] is None else f"{cost['measured_ms']:.1f}"
        print(f"{name:<22} {cost['step_ms']:8.1f} {measured:>9} {cost['decode_ms']:9.1f}{cells}")
    print()
    for name, cost, _ in rows:
        print(f"{name:<22} rates {cost['assumes']}")
    print(f"\nmeasured: all rates, decode ms, the {100 * (Rates.repeated - 1):.1f} % that a step takes beyond the sum of its launches, column `measured`")
    for one in MEASURED_SESSIONS:
        if one.steps == steps:
            rate = f"{one.fps:g} frames per second, first frame {one.first_frame_ms / 1e3:.2f} s"
            print(f"measured: a session on 1 device with {one.configuration}: {rate}")
    print("forecast: step ms (counted work over those rates), every cell, transfers between devices\nnot measured: other GPUs, an H100 among them")
