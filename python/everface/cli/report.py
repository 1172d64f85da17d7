"""Terminal output of a render: a progress bar while it runs, a table of figures at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from everface.core.standard_streams import escape, print_line, print_output

if TYPE_CHECKING:
    from everface.avatar.render import RenderReport


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


def print_report(report: RenderReport) -> None:
    """Print the figures of a render, which is complete, whether or not they can be printed."""
    rows = {
        "video": f"{escape(report.out)} ({report.width}x{report.height}, {report.seconds:.2f} s)",
        "frames": f"{report.frames}",
        "speed": f"{report.fps:.1f} frames per second, {report.render_s:.1f} s in all, decoding and MP4 included",
        "first frame": f"{report.first_frame_s:.2f} s after the first audio",
        "placement": f"{report.placement}, sampler {report.sampler}, compat {report.compat}",
        "seed": f"{report.seed}",
    }
    error = print_output("\n".join(f"{name:<12} {value}" for name, value in rows.items()))
    if error and not error.reader_gone:
        print_line(f"everface: the figures cannot be printed ({error.strerror}), but the video is complete in {report.out}")
