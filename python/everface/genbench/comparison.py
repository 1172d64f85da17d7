"""Two reports beside each other: `everface genbench diff A B`."""

from __future__ import annotations

from everface.genbench.measures import MEASURES, gain
from everface.genbench.report import GenBenchReport, figure

WORDS = {1: "better", -1: "worse", 0: ""}


def compare_reports(before: GenBenchReport, after: GenBenchReport) -> str:
    """A Markdown table of every measure that both have, and of what only one has. Differences are named better or worse where the measure has
    a direction; whether they are more than chance, the ranges tell."""
    lines = [f"# {before.system} ({before.set_name}) and {after.system} ({after.set_name})", ""]
    if before.set_name != after.set_name:
        lines += ["**These are different sets: the figures cannot be compared.**", ""]
    elif before.clips != after.clips:
        lines += [f"**The first has {before.clips} clips, the second {after.clips}: compare only roughly.**", ""]
    lines += ["| measure | first | second | change | |", "|---|---|---|---|---|"]
    for name in MEASURES:
        a, b = before.measures.get(name), after.measures.get(name)
        if a and b:
            digits, change = MEASURES[name].digits, b.mean - a.mean
            sign = gain(name, a.mean, b.mean) if a.off is None or b.off is None else a.off - b.off
            shown = f"{change:+.{digits}f}"
            word = WORDS[(sign > 0) - (sign < 0)] if round(sign, digits) else ""
            lines.append(f"| {MEASURES[name].title} | {figure(name, a.mean)} | {figure(name, b.mean)} | {shown} | {word} |")
        elif a or b:
            cells = [figure(name, side.mean) if side else "not available" for side in (a, b)]
            lines.append(f"| {MEASURES[name].title} | {' | '.join(cells)} | | |")
    failed = [f"{len(report.failures)} of {report.clips}" for report in (before, after)]
    if before.failures or after.failures:
        lines.append(f"| failures | {' | '.join(failed)} | | |")
    changed = sorted(key for key in before.environment | after.environment if before.environment.get(key) != after.environment.get(key))
    if changed:
        lines += ["", "Differs: " + ", ".join(f"{k} {before.environment.get(k, '')} / {after.environment.get(k, '')}" for k in changed) + "."]
    return "\n".join([*lines, ""])
