"""`everface train evaluate --levels`: does the same voice move the lips alike, however loud it was recorded?

Held-out characters listen to held-out voices, each at several levels, rounded to 16 bits as a file is. The lips are read from the pixels and
compared with those at the voice's own level.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everface.core.config import StreamConfig
from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.held_out import draw_held_out
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.stream_windows import Report

LEVELS_DB = (-3.0, -6.0, -10.0, -16.0, -20.0, -30.0)
MIN_CORRELATION = 0.95
AMPLITUDES = (0.9, 1.1)


def at_level(pcm_S: Tensor, level_db: float) -> Tensor:
    """The voice made louder, or quieter where `level_db` is negative, as a 16-bit file has it."""
    return (pcm_S * 10 ** (level_db / 20) * 32768).round().clamp(-32768, 32767) / 32768


def evaluate_levels(model: OfflineModel, reader: LipReader, audio_S: Sequence[Tensor], out: Path, progress: Report) -> dict[str, Any]:
    """One character per audio. Writes levels.json and levels.md to `out` after every character and returns the report.

    Of every level: `amplitude` and `correlation` of the mouth's opening against the opening at 0 dB, for each character.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[float, list[dict[str, float]]] = {level_db: [] for level_db in LEVELS_DB}
    report: dict[str, Any] = {}
    for number, clip in enumerate(draw_held_out(audio_S, size=model.image_size), 1):
        own_T = _opening(model, reader, clip.image_3HW, at_level(clip.pcm_S, 0.0))
        for level_db, of in rows.items():
            open_T = _opening(model, reader, clip.image_3HW, at_level(clip.pcm_S, level_db))
            of.append({"amplitude": metrics.amplitude_ratio(open_T, own_T), "correlation": correlation(open_T, own_T)})
        progress(f"character {number}/{len(audio_S)}: " + ", ".join(f"{db:g} dB {of[-1]['amplitude']:.3f}" for db, of in rows.items()))
        report = summarize(rows)
        (out / "levels.json").write_text(json.dumps(report, indent=1))
        (out / "levels.md").write_text(table(report))
    return report


def summarize(rows: dict[float, list[dict[str, float]]]) -> dict[str, Any]:
    """{"pass": bool, "levels": [{level_db, pass, characters}]}: every character must pass at every level."""
    levels = []
    for level_db, of in rows.items():
        good = all(AMPLITUDES[0] <= row["amplitude"] <= AMPLITUDES[1] and row["correlation"] >= MIN_CORRELATION for row in of)
        levels.append({"level_db": level_db, "pass": good, "characters": of})
    return {"pass": all(level["pass"] for level in levels), "levels": levels}


def table(report: dict[str, Any]) -> str:
    """As markdown, one line per level."""
    lines = [f"Lips at other levels against 0 dB, {len(report['levels'][0]['characters'])} held-out characters", ""]
    lines += ["| level, dB | opening amplitude, least .. most | correlation, least | |", "|---|---|---|---|"]
    for level in report["levels"]:
        amplitudes = [row["amplitude"] for row in level["characters"]]
        least = min(row["correlation"] for row in level["characters"])
        verdict = "pass" if level["pass"] else "MISS"
        lines.append(f"| {level['level_db']:g} | {min(amplitudes):.3f} .. {max(amplitudes):.3f} | {least:.3f} | {verdict} |")
    return "\n".join(lines) + "\n"


def _opening(model: OfflineModel, reader: LipReader, image_3HW: Tensor, pcm_S: Tensor) -> Tensor:
    with model.stream(image_3HW, StreamConfig()) as stream:
        stream.start_decoding()
        frames_THW3 = torch.cat([stream.decode(block) for block in stream.blocks([pcm_S])])
    return reader.read(metrics.as_rgb(frames_THW3))[0]
